"""What a process has from its start: streams that take any text, and a user with a name."""

import codecs
import getpass
import io
import os
import sys

_ERROR_HANDLER = "optlab.plain"
_ASCII_EQUIVALENTS = {
    "−": "-", "–": "-", "±": "+/-", "…": "...", "→": "->", "←": "<-", "×": "x", "÷": "/", "·": "*", "≤": "<=",
    "≥": ">=", "‖": "|", "─": "-", "²": "^2", "’": "'",
}  # fmt: skip


def prepare() -> None:
    """Let no print of this process fail, and nothing that asks for the user's name.

    What a terminal's encoding lacks becomes ASCII, and what is printed to a closed stream goes nowhere.
    """
    _open_closed_streams()
    _set_user_name()
    codecs.register_error(_ERROR_HANDLER, _replace_with_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != ("utf-8", "surrogateescape"):
            stream.reconfigure(errors=_ERROR_HANDLER)  # with those two, nothing fails


def _open_closed_streams() -> None:
    """Put nothing's device in the place of a closed stream, so that no file which is opened later gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _set_user_name() -> None:
    """Give a user without an account a name, such as a container's: DVC fails without one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def _replace_with_ascii(error: UnicodeError) -> tuple[str, int]:
    """The nearest text in ASCII; a character that has none as Python escapes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII_EQUIVALENTS.get(each) or ascii(each)[1:-1] for each in text), error.end
