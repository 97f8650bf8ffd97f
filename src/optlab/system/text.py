"""Parts of messages: suggestions, values in short, counts, and the error line of a command's output."""

import difflib
import re
import reprlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# DVC, git and ssh mark the line with the error by a prefix, and print advice or progress around it.
_ERROR_PREFIX = re.compile(r"(?:remote: )?(?:(?:ERROR|error|fatal): |(?=! \[|ssh: ))")
_CONFLICT_MARKER = re.compile(r"^(?:[<|>]{7}(?: |$)|={7}$)", re.MULTILINE)  # of git merge
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "y"), "true") | dict.fromkeys(("false", "no", "off", "n"), "false")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def parse_yaml(text: str) -> Any:
    """Return the content of a text in YAML 1.2, as plain objects.

    Raises:
        YAMLError: it is no YAML.
    """
    from ruamel.yaml import YAML  # too slow for the shell's completion, which imports this module

    return YAML(typ="safe", pure=True).load(text)


def format_place(folder: Path) -> str:
    """Return ` in FOLDER`, to follow a command that has to be run there; nothing for the top of the repository."""
    return "" if folder == Path() else f" in {folder}"


def join_commands(command: str | Sequence[str]) -> str:
    """Return a stage's command, of one line or several, as one for the shell: the first line that fails ends it."""
    lines = command.splitlines() if isinstance(command, str) else command
    return "\n".join(lines if len(lines) == 1 else ["set -e", *lines])


def suggest_similar(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Return `: did you mean X?` for the known word with the fewest edits, regardless of case, or nothing."""
    by_lower = {name.lower(): name for name in known}
    similar = difflib.get_close_matches(word.lower(), by_lower, n=max(1, len(by_lower)), cutoff=0.6)
    nearest = min(similar, key=lambda name: count_edits(word.lower(), name), default=None)
    return f": did you mean {by_lower[nearest]}?" if nearest is not None else ""


def count_edits(first: str, second: str) -> int:
    """Return how many insertions, deletions, replacements and swaps of two neighbours turn one word into the other.

    No letter is edited twice: the optimal string alignment distance.
    """
    rows = [list(range(len(second) + 1))]
    for i, a in enumerate(first, 1):
        rows.append([i])
        for j, b in enumerate(second, 1):
            edits = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, first[i - 2]) == (second[j - 2], b):
                edits = min(edits, rows[i - 2][j - 2] + 1)
            rows[i].append(edits)
    return rows[-1][-1]


def find_culprit(error: str, values: dict[str, Any], validate: Callable[[dict[str, Any]], str | None]) -> str | None:
    """Return the key whose value causes an error, or None where several cause it together.

    That is the only key whose removal makes the error disappear. Where there is none, because several values are wrong
    independently, it is the first key that alone causes the same error, unless the error occurs without any value.

    Args:
        error: the error of all `values`.
        validate: returns the error of some of them, or None.
    """
    needed = [key for key in values if validate({each: values[each] for each in values if each != key}) is None]
    if needed:
        return needed[0] if len(needed) == 1 else None
    if validate({}) == error:
        return None
    return next((key for key in values if validate({key: values[key]}) == error), None)


def extract_error(output: str) -> str:
    """Return the first line of a failed command's output that is marked as an error, or else its first two lines."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    error = next((line for line in lines if _ERROR_PREFIX.match(line)), " ".join(lines[:2]))
    return _ERROR_PREFIX.sub("", error) or "no reason given"


def find_conflict_marker(text: str) -> int | None:
    """Return the line, from 1, of the first conflict marker of a git merge; None if there is none."""
    marker = _CONFLICT_MARKER.search(text)
    return text.count("\n", 0, marker.start()) + 1 if marker else None


def describe_conflict(path: object, line: int) -> str:
    """Return the error of a recorded file with conflict markers from that line on, with the remedy."""
    return (
        f"{path}:{line}: conflict markers of a git merge: `git checkout --merge {path}` merges it again; after the "
        f"commit, `git checkout HEAD^ {path}` takes one side"
    )


def get_terminal_width() -> int | None:
    """Return the number of characters in a line of the terminal; None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrap_text(text: str, width: int | None) -> str:
    """Break a paragraph at spaces into lines of at most `width` characters; None leaves it whole."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


def format_value(value: Any) -> str:
    """Return the value's repr, shortened: aliases in lists in lists can stand for billions of values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def suggest_spelling(value: Any, kinds: set[type]) -> str | None:
    """Return how to write a value in YAML 1.2, which reads `off` as text, so that it has one of these types.

    Args:
        kinds: of bool, int and float.

    Returns:
        The spelling, or None if no value of these types is evident.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if bool in kinds and word in _BOOLEANS:
            is_quoted = word == _BOOLEANS[word]
            reason = ", without quotes" if is_quoted else f", for YAML 1.2 reads {format_value(value)[1:-1]} as text"
            return f"{_BOOLEANS[word]}{reason}"
        if (float in kinds and _NUMBER.fullmatch(word)) or (int in kinds and _INTEGER.fullmatch(word)):
            return f"{word}, without quotes"
    if isinstance(value, float) and int in kinds and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    if isinstance(value, int) and value in (0, 1) and bool in kinds:
        return "true" if value else "false"
    return None
