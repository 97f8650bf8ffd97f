"""Phrases that many messages share: what was probably meant, what is to blame, a value in brief, and how many."""

import difflib
import re
import reprlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

_ERROR = re.compile(r"(?:remote: )?(?:(?:ERROR|error|fatal): |(?=! \[|ssh: ))")  # of DVC, git and what git starts


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


def reason_of(output: str) -> str:
    """Return the line of a failed command's output that says why, or the first two where none is marked as an error.

    Advice follows it, of git's and of DVC's.
    """
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if _ERROR.match(line)), " ".join(lines[:2]))
    return _ERROR.sub("", found) or "no reason given"


def counted(count: int, what: str) -> str:
    """Such as `1 run` or `2 runs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def terminal_width() -> int | None:
    """Return how many characters a line of the terminal has; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fold(text: str, width: int | None) -> str:
    """Break a paragraph at spaces, so that no line is longer than `width`, if there is one."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


def shown(value: Any) -> str:
    """The value as Python writes it, shortened: aliases in lists in lists can stand for billions of values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
