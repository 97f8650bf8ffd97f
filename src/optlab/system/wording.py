"""Phrases that many messages share: what was probably meant, and a value in brief."""

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """`: did you mean X?` for the nearest known word, regardless of case, or nothing."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f": did you mean {by_lower[near[0]]}?" if near else ""


def shown(value: Any) -> str:
    """The value as Python writes it, shortened: aliases in lists in lists can stand for billions of values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
