"""Phrases that many messages share: what was probably meant, what is to blame, a value in brief, and how many."""

import difflib
import reprlib
from collections.abc import Callable, Sequence
from typing import Any


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """`: did you mean X?` for the nearest known word, regardless of case, or nothing."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f": did you mean {by_lower[near[0]]}?" if near else ""


def to_blame(complaint: str, values: dict[str, Any], said_of: Callable[[dict[str, Any]], str | None]) -> str | None:
    """The key of the one value that draws a complaint, or None where several draw it together.

    It is the only one without which there is no complaint. Where several values are wrong, each for itself, there is no
    such one: then it is the first that draws the same complaint alone, unless no value at all does so, too.

    Args:
        complaint: what was said of all `values`.
        said_of: tells what is said of some of them, or None.
    """
    needed = [key for key in values if said_of({each: values[each] for each in values if each != key}) is None]
    if needed:
        return needed[0] if len(needed) == 1 else None
    if said_of({}) == complaint:
        return None
    return next((key for key in values if said_of({key: values[key]}) == complaint), None)


def counted(count: int, what: str) -> str:
    """Such as `1 run` or `2 runs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def shown(value: Any) -> str:
    """The value as Python writes it, shortened: aliases in lists in lists can stand for billions of values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
