"""Files that are there whole or not at all, whatever stops the program that writes them."""

import contextlib
import errno
import os
from pathlib import Path

from optlab.system.errors import StorageError, summarize_error

_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "see who may write there"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "something else is in its place: move that away"),
    errno.ENAMETOOLONG: "choose a shorter name",
}
TEMPORARY_SUFFIX = ".new"  # of a file that is still being written; git and DVC ignore it


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, and on the disk before that: what was there stays until then.

    Raises:
        StorageError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise make_storage_error(path, error) from None


def make_storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell the user of a file that could not be written."""
    reason = error.strerror or summarize_error(error)
    remedy = _REMEDIES.get(error.errno or 0, "make room for it")
    return StorageError(f"{path}: cannot be written ({reason}): {remedy}, then run the same command again")
