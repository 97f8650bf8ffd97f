"""DVC as a command, and its own copies of a damaged file.

DVC trusts its cache unread, and would put the damage back in place.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

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
    """The folder of the cache of the repository at `top`, which is the working directory's."""
    return top / (ask("cache", "dir").stdout.strip() or ".dvc/cache")


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
