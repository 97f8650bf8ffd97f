"""DVC as a command, its cache and remotes, and its own copies of a damaged file.

DVC trusts its cache unread, and would put the damage back in place.
"""

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from optlab.system import repository
from optlab.system.errors import OptlabError
from optlab.system.wording import reason_of

COMMAND = (sys.executable, "-m", "dvc")


def ask(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a DVC command to its end, here, and keep what it prints."""
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, errors="surrogateescape", check=False)


def complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """Why a command failed, in one line."""
    return reason_of(result.stderr)


def cache(top: Path) -> Path:
    """The folder of the cache of the repository at `top`."""
    return top / (_settings(top)["cache"].get("dir") or ".dvc/cache")


def fetch(commit: str, path: Path, md5: str) -> bytes | None:
    """Return an output of a commit from DVC's cache or a remote, or None if neither has it with this digest.

    Args:
        path: relative to the top of the repository, which is the working directory.
        md5: the digest in dvc.lock, 32 hexadecimal digits.
    """
    try:
        top = Path.cwd()
        content = _read(cache(top) / "files" / "md5" / md5[:2] / md5[2:])
        if content is None and has_remote(top):
            content = _file_system(commit).read_bytes(path.as_posix())
    except Exception:  # whatever a missing cache, remote or network makes DVC raise
        return None
    return content if content and hashlib.md5(content, usedforsecurity=False).hexdigest() == md5 else None


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def has_remote(top: Path) -> bool:
    """Return whether the repository at `top` has a remote that outputs can be pulled from."""
    return bool(_settings(top)["remote"])


def _settings(top: Path) -> Any:
    """Return DVC's configuration of the repository at `top`."""
    from dvc.config import Config

    return Config(dvc_dir=str(top / ".dvc"))


@functools.cache
def _file_system(commit: str) -> Any:
    """Return DVC's view of a commit; it reads the dvc.lock of every pipeline, which takes seconds."""
    import dvc.api

    return dvc.api.DVCFileSystem(os.curdir, rev=commit)


def remedy(path: Path, content: bytes, command: str) -> str:
    """What to do about an output with this damaged content, so that `command` makes it anew."""
    try:
        damaged = [str(copy) for copy in _copies(path, content)]
    except OSError:
        damaged = []
    also = f", and DVC's damaged copy {' and '.join(damaged)}" if damaged else ""
    return f"delete it{also}, then run `{command}`"


def _copies(path: Path, content: bytes) -> list[Path]:
    """The objects of DVC's cache that hold this content under the digest of another."""
    try:
        top = repository.root()
    except OptlabError:
        return []
    if not path.resolve().is_relative_to(top.resolve()):
        return []
    folder = cache(top) / "files" / "md5"
    own = hashlib.md5(content, usedforsecurity=False).hexdigest()
    found = [
        each
        for each in folder.glob("??/*")
        if each.stat().st_size == len(content) and each.parent.name + each.name != own and each.read_bytes() == content
    ]
    here = Path.cwd()
    return [each.relative_to(here) if each.is_relative_to(here) else each for each in sorted(found)]
