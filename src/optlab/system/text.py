"""Phrases that many messages share: what was probably meant, what is to blame, a value in brief, and how many.

How a value is spelled in YAML 1.2, which reads `off` as text, where another spelling was probably meant.
"""

import difflib
import re
import reprlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

_ERROR_PREFIX = re.compile(
    r"(?:remote: )?(?:(?:ERROR|error|fatal): |(?=! \[|ssh: ))"
)  # of DVC, git and what git starts


def suggest_similar(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """`: did you mean X?` for the nearest known word, regardless of case, or nothing."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f": did you mean {by_lower[matches[0]]}?" if matches else ""


def find_culprit(error: str, values: dict[str, Any], validate: Callable[[dict[str, Any]], str | None]) -> str | None:
    """The key of the one value that draws a complaint, or None where several draw it together.

    It is the only one without which there is no complaint. Where several values are wrong, each for itself, there is no
    such one: then it is the first that draws the same complaint alone, unless no value at all does so, too.

    Args:
        error: what was said of all `values`.
        validate: tells what is said of some of them, or None.
    """
    needed = [key for key in values if validate({each: values[each] for each in values if each != key}) is None]
    if needed:
        return needed[0] if len(needed) == 1 else None
    if validate({}) == error:
        return None
    return next((key for key in values if validate({key: values[key]}) == error), None)


def extract_error(output: str) -> str:
    """Return the line of a failed command's output that says why, or the first two where none is marked as an error.

    Advice follows it, of git's and of DVC's.
    """
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if _ERROR_PREFIX.match(line)), " ".join(lines[:2]))
    return _ERROR_PREFIX.sub("", found) or "no reason given"


def get_terminal_width() -> int | None:
    """Return how many characters a line of the terminal has; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrap_text(text: str, width: int | None) -> str:
    """Break a paragraph at spaces, so that no line is longer than `width`, if there is one."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


def format_value(value: Any) -> str:
    """The value as Python writes it, shortened: aliases in lists in lists can stand for billions of values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


_BOOLEANS = {"true": "true", "yes": "true", "on": "true", "y": "true", "false": "false", "no": "false", "off": "false",
           "n": "false"}  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def suggest_spelling(value: Any, kinds: set[type]) -> str | None:
    """How a value is to be written in YAML 1.2 to be of one of these types, where that can be told.

    Args:
        kinds: of bool, int and float.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if bool in kinds and word in _BOOLEANS:
            same = word == _BOOLEANS[word]
            reason = ", without quotes" if same else f", for YAML 1.2 reads {format_value(value)[1:-1]} as text"
            return f"{_BOOLEANS[word]}{reason}"
        whole = re.fullmatch(r"[-+]?[0-9]+", word)
        if (float in kinds and _NUMBER.fullmatch(word)) or (int in kinds and whole):
            return f"{word}, without quotes"
    if isinstance(value, float) and int in kinds and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    if isinstance(value, int) and value in (0, 1) and bool in kinds:
        return "true" if value else "false"
    return None
