"""Errors that a user can mend, one line each, and the entry point that prints them.

A message says where, what, and what to do. The entry point also makes the console safe: no print fails, whatever the
encoding, and a user without an account has a name.
"""

import codecs
import contextlib
import errno
import getpass
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
ERROR_FILE_VARIABLE = "OPTLAB_ERROR_FILE"  # path of a file, into which a failing program writes its error

_AUTOFLUSH_PREFIX = "(raised as a result of Query-invoked autoflush"  # first line of SQLAlchemy's, above the reason
_ERROR_HANDLER = "optlab.ascii"
_ASCII_EQUIVALENTS = {
    "−": "-", "–": "-", "±": "+/-", "…": "...", "→": "->", "←": "<-", "×": "x", "÷": "/", "·": "*", "≤": "<=",
    "≥": ">=", "‖": "|", "─": "-", "²": "^2", "’": "'",
}  # fmt: skip


class OptlabError(Exception):
    """Base of every error that is shown as one line, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigError(OptlabError):
    """params.yaml, or a class or path that it names, cannot be used."""


class StepError(OptlabError):
    """A model or an optimizer fails while it trains."""


class ResourceError(OptlabError):
    """The machine lacks memory, disk space or a working GPU."""


class DataError(OptlabError):
    """The data set is missing, altered, or could not be downloaded."""


class WeightsError(OptlabError):
    """A weights file is missing, damaged, or belongs to another model."""


class RecordError(OptlabError):
    """A file of the record is missing or damaged."""


class StorageError(OptlabError):
    """A file cannot be written: the disk is full, or the place is not writable."""


class TrackingError(OptlabError):
    """MLflow cannot be reached, or refuses what is sent."""


class BusyError(OptlabError):
    """Another process holds the lock of the same outputs."""


class RevisionError(OptlabError):
    """A git revision cannot be released or reproduced."""


class ClusterError(OptlabError):
    """A cluster cannot be reached, or one of its nodes cannot do the work."""


class RunsFailedError(OptlabError):
    """Stages of a pipeline failed."""


class ImageError(OptlabError):
    """A file given to `optlab predict` is no image."""


def run_main(main: Callable[[], None]) -> None:
    """Run a program's main function; an `OptlabError` ends it with one line on stderr and exit status 1."""
    _prepare_console()
    try:
        main()
    except OptlabError as error:
        _exit_with_error(str(error))
    except BrokenPipeError:  # the reader of the output is gone; a print at exit would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(130)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            where = f"{error.filename}: " if error.filename else ""
            remedy = "make it writable" if error.errno == errno.EROFS else "make room or mend it"
            _exit_with_error(f"{where}{error.strerror}: {remedy}, then run the same command again")
        _write_error_file(f"{type(error).__name__}: {summarize_error(error)}")
        raise


def _exit_with_error(message: str) -> NoReturn:
    print_stderr(f"error: {message}")
    _write_error_file(message)
    sys.exit(1)


def _write_error_file(message: str) -> None:
    if ERROR_FILE_VARIABLE in os.environ:
        with contextlib.suppress(OSError):
            Path(os.environ[ERROR_FILE_VARIABLE]).write_text(message, "utf-8", "backslashreplace")


def print_stderr(text: str) -> None:
    """Print an error or a warning on stderr, on a line of its own even while a progress bar is shown.

    Text and newline are one write, also where Python's output is unbuffered: other processes write there, too.
    """
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def summarize_error(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type where it has none."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(_AUTOFLUSH_PREFIX)]
    return (lines or [type(error).__name__])[0]


def _prepare_console() -> None:
    """Print characters that the terminal's encoding lacks in ASCII, and to a closed stream nothing."""
    _open_closed_streams()
    _set_user_name()
    codecs.register_error(_ERROR_HANDLER, _replace_with_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != ("utf-8", "surrogateescape"):
            stream.reconfigure(errors=_ERROR_HANDLER)  # with those two, nothing fails


def _open_closed_streams() -> None:
    """Open /dev/null in the place of each closed stream, so that no file opened later gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _set_user_name() -> None:
    """Name a user without an account, such as a container's: DVC fails without a name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def _replace_with_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace each character by its nearest ASCII text, or by Python's escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII_EQUIVALENTS.get(each) or ascii(each)[1:-1] for each in text), error.end
