"""DVC's own copies of a damaged file. DVC trusts its cache unread, and would put the damage back in place."""

import hashlib
import subprocess
import sys
from pathlib import Path

from optlab import project
from optlab.errors import OptlabError

_DVC = (sys.executable, "-m", "dvc")


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
        top = project.root()
    except OptlabError:
        return []
    if not path.resolve().is_relative_to(top.resolve()):
        return []
    asked = subprocess.run([*_DVC, "cache", "dir"], cwd=top, capture_output=True, text=True, check=False)
    folder = top / (asked.stdout.strip() or ".dvc/cache") / "files" / "md5"
    own = hashlib.md5(content, usedforsecurity=False).hexdigest()
    found = [
        each
        for each in folder.glob("??/*")
        if each.stat().st_size == len(content) and each.parent.name + each.name != own and each.read_bytes() == content
    ]
    here = Path.cwd()
    return [each.relative_to(here) if each.is_relative_to(here) else each for each in sorted(found)]
