"""Locks by name: one process at a time writes the same outputs."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from optlab.system import files, repository
from optlab.system.errors import BusyError, print_stderr

LOCKS = Path(".optlab") / "locks"
LOCK_TIMEOUT_S = 30.0  # for a process that is stopping
_LONG_LOCK_TIMEOUT_S = 3600.0


@contextmanager
def hold_lock(name: str, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of that name; the system releases it when this process ends, however it ends.

    Raises:
        BusyError: another process still holds it after `timeout_s` seconds; the message says which.
        StorageError: the lock cannot be written.
    """
    folder = repository.get_state_root() / LOCKS
    owner, path = folder / f"{name}.pid", folder / f"{name}.lock"
    lock = FileLock(path, thread_local=False)  # another thread may release it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise BusyError(
            f"{name}: {_describe_owner(owner)} is at work on it in this folder: wait for it to end, or stop it"
        ) from None
    except OSError as error:
        raise files.make_storage_error(path, error) from None
    try:
        with contextlib.suppress(OSError):  # on a full disk, the owner stays unknown
            owner.write_text(f"{os.getpid()} {' '.join(sys.argv)}", "utf-8", "backslashreplace")
        yield
    finally:
        lock.release()
        if repository.is_experiment_copy():
            delete_lock(name)  # no other process uses this name


@contextmanager
def wait_for_lock(name: str) -> Iterator[None]:
    """Hold the lock of that name as soon as it is free; after `LOCK_TIMEOUT_S`, print which process holds it.

    Raises:
        StorageError: the lock cannot be written.
    """
    timeout_s = LOCK_TIMEOUT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold_lock(name, timeout_s))
                break
            except BusyError as error:
                if timeout_s == LOCK_TIMEOUT_S:
                    print_stderr(f"waiting: {error}")
                timeout_s = _LONG_LOCK_TIMEOUT_S
        yield


def delete_lock(name: str) -> None:
    """Delete the files of a lock that no process will ask for again, as in a deleted copy of the repository."""
    for ending in ("pid", "lock"):
        (repository.get_state_root() / LOCKS / f"{name}.{ending}").unlink(missing_ok=True)


def _describe_owner(owner: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        pid, _, command = owner.read_text("utf-8").partition(" ")
        if psutil.pid_exists(int(pid)):
            return f"process {pid} (`{command[:100]}`)"
    return "another process"
