"""One process at a time on the same outputs."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from optlab.system import files, repository
from optlab.system.errors import BusyError, say

PATIENCE_S = 30.0  # for a process that is stopping
_LONG_S = 3600.0
LOCKS = Path(".optlab") / "locks"


@contextmanager
def holding(name: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of that name; the system lets go of it when this process ends, however it ends.

    Raises:
        BusyError: another process still has it after `patience_s` seconds; the message says which.
        StorageError: the lock cannot be written.
    """
    folder = repository.home() / LOCKS
    owner, path = folder / f"{name}.pid", folder / f"{name}.lock"
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise BusyError(
            f"{name}: {_who(owner)} is at work on it in this folder: wait for it to end, or stop it"
        ) from None
    except OSError as error:
        raise files.storage_error(path, error) from None
    try:
        with contextlib.suppress(OSError):  # on a full disk, nobody is told who
            owner.write_text(f"{os.getpid()} {' '.join(sys.argv)}", "utf-8", "backslashreplace")
        yield
    finally:
        lock.release()
        if repository.is_copy():
            forget(name)  # nobody else has locks of that name


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """Hold the lock of that name as soon as nobody else does; after a while, say who does.

    Raises:
        StorageError: the lock cannot be written.
    """
    patience_s = PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(holding(name, patience_s))
                break
            except BusyError as error:
                if patience_s == PATIENCE_S:
                    say(f"waiting: {error}")
                patience_s = _LONG_S
        yield


def forget(name: str) -> None:
    """Remove the files of a lock that nobody will ask for again: that of a copy of the repository which is gone."""
    for ending in ("pid", "lock"):
        (repository.home() / LOCKS / f"{name}.{ending}").unlink(missing_ok=True)


def _who(owner: Path) -> str:
    try:
        number, _, command = owner.read_text("utf-8").partition(" ")
        if psutil.pid_exists(int(number)):
            return f"process {number} (`{command[:100]}`)"
    except (OSError, ValueError):
        pass
    return "another process"
