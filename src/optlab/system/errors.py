"""Errors that a user can mend: each is one line that says where it is and what to do."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from optlab.system import startup

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# Names a file in which a program that fails leaves its reason in one line, for who started it among others.
ERROR_FILE_VARIABLE = "OPTLAB_ERROR_FILE"

_SQLALCHEMY_PREFIX = (
    "(raised as a result of Query-invoked autoflush"  # what SQLAlchemy puts before a database's own words
)


class OptlabError(Exception):
    """Base of every error that is shown as one line, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigError(OptlabError):
    """params.yaml, or a class or path that it names, cannot be used."""


class StepError(OptlabError):
    """A model or an optimizer fails while it trains."""


class ResourceError(OptlabError):
    """The machine has not got what a training wants: memory, room on its disk, a GPU that answers."""


class DataError(OptlabError):
    """The data set is missing, altered, or could not be downloaded."""


class WeightsError(OptlabError):
    """A weights file is missing, damaged, or belongs to another model."""


class RecordError(OptlabError):
    """A file of the record is missing or damaged."""


class StorageError(OptlabError):
    """A file cannot be written: the disk is full, or the place does not permit it."""


class TrackingError(OptlabError):
    """MLflow cannot be reached, or does not take what is sent."""


class BusyError(OptlabError):
    """Another process is at work on the same outputs."""


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
    startup.prepare()
    try:
        main()
    except OptlabError as error:
        _exit_with_error(str(error))
    except BrokenPipeError:  # who reads the output has stopped; a print at exit would raise again
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


def _exit_with_error(reason: str) -> NoReturn:
    print_stderr(f"error: {reason}")
    _write_error_file(reason)
    sys.exit(1)


def _write_error_file(reason: str) -> None:
    """Write the reason where the caller looks for it, if it asked for that."""
    if ERROR_FILE_VARIABLE in os.environ:
        with contextlib.suppress(OSError):
            Path(os.environ[ERROR_FILE_VARIABLE]).write_text(reason, "utf-8", "backslashreplace")


def print_stderr(text: str) -> None:
    """Print an error or a warning on stderr, on a line of its own also where a progress bar is at work."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def summarize_error(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has none."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(_SQLALCHEMY_PREFIX)]
    return (lines or [type(error).__name__])[0]
