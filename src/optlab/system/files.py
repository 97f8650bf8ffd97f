"""Files: atomic writes, which leave a file complete or absent whatever stops the program, and digests."""

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from optlab.system.errors import StorageError, summarize_error

TEMPORARY_SUFFIX = ".new"  # of a file that is still being written; git and DVC ignore it
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "see who may write there"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "something else is in its place: move that away"),
    errno.ENAMETOOLONG: "choose a shorter name",
}


def get_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return size, time of the last change in ns, and inode: a file whose stamp is the same was not changed.

    Returns:
        None if there is no such file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content` in one step, once that is on the disk; makes missing folders.

    Raises:
        StorageError: the disk is full, or the place is not writable.
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


def compute_md5(path: Path) -> str | None:
    """Return DVC's digest of a file, or None if there is none."""
    return compute_content_md5(path.read_bytes()) if path.is_file() else None


def compute_content_md5(content: bytes) -> str:
    """Return the digest that DVC has of a file with this content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def make_storage_error(path: Path, error: OSError) -> StorageError:
    """Return the error, with its remedy, for a file that could not be written."""
    reason = error.strerror or summarize_error(error)
    remedy = _REMEDIES.get(error.errno or 0, "make room for it")
    return StorageError(f"{path}: cannot be written ({reason}): {remedy}, then run the same command again")
