"""How a value is spelled in YAML 1.2, which reads `off` as text, where another spelling was probably meant."""

import re
from typing import Any

from optlab.system.wording import shown

_TRUTHS = {"true": "true", "yes": "true", "on": "true", "y": "true", "false": "false", "no": "false", "off": "false",
           "n": "false"}  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def rewritten(value: Any, kinds: set[type]) -> str | None:
    """How a value is to be written in YAML 1.2 to be of one of these types, where that can be told.

    Args:
        kinds: of bool, int and float.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if bool in kinds and word in _TRUTHS:
            same = word == _TRUTHS[word]
            return (
                f"{_TRUTHS[word]}{', without quotes' if same else f', for YAML 1.2 reads {shown(value)[1:-1]} as text'}"
            )
        whole = re.fullmatch(r"[-+]?[0-9]+", word)
        if (float in kinds and _NUMBER.fullmatch(word)) or (int in kinds and whole):
            return f"{word}, without quotes"
    if isinstance(value, float) and int in kinds and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    if isinstance(value, int) and value in (0, 1) and bool in kinds:
        return "true" if value else "false"
    return None
