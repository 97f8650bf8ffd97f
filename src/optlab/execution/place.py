"""An order's place on a node: a repository's top, with the code and the data by links, and what it has left there."""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from optlab.system import files, repository
from optlab.system.errors import DataError
from optlab.tracking import notes
from optlab.tracking.journal import JOURNALS


@dataclass(frozen=True)
class Site:
    """Where a working tree's orders are done on the nodes.

    Attributes:
        project: a name for the working tree.
        shared: a folder that all nodes see, for the places; None for each node's own.
    """

    project: str
    shared: Path | None = None

    @property
    def own(self) -> Path:
        """The folder on this node."""
        return Path(tempfile.gettempdir()) / f"optlab-{os.getuid()}" / self.project

    @property
    def places(self) -> Path:
        """Where each order has a folder."""
        return (self.shared / f"optlab-{self.project}" if self.shared else self.own) / "places"


@dataclass(frozen=True)
class Task:
    """An order as it travels.

    Attributes:
        words: the command's.
        folder: relative to the top.
        place: as in `Order`.
        environment: what it has besides the worker's.
        files: path → bytes of what it reads besides the code and the data; journals that it may go on with included.
        outputs: paths.
    """

    words: list[str]
    folder: Path
    place: str
    environment: Mapping[str, str]
    files: Mapping[Path, bytes]
    outputs: tuple[Path, ...]


def furnish(task: Task, site: Site, data: Mapping[str, Any]) -> Path:
    """Make an order's place, or find it: a repository's top, with the code and the data by links."""
    top = site.places / task.place
    _end_former(top)
    for name in ("locks", "checked"):  # of this node, also where the places are not
        (site.own / name).mkdir(parents=True, exist_ok=True)
        _link(top / ".optlab" / name, site.own / name)
    files.write(top / ".dvc" / "config", b"")
    code = Path.cwd()
    for path in code.rglob("*"):
        if path.is_file() and path.relative_to(code).parts[0] != "optlab" and "__pycache__" not in path.parts:
            _link(top / path.relative_to(code), path)
    _link(top / repository.DATA, _data(site, data))
    for path in top.rglob("*"):
        if path.is_symlink() and not path.exists():  # of code that is no more
            path.unlink()
    for path, content in task.files.items():
        here = (top / path).read_bytes() if (top / path).is_file() and path.is_relative_to(JOURNALS) else b""
        files.write(top / path, joined(content, here))
    return top


def _end_former(top: Path) -> None:
    """Kill who is still at work there: Ray's worker has died, and what it had started does not know it yet."""
    for process in psutil.process_iter() if top.exists() else ():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(top):
                process.kill()
                process.wait(10)


def decides(task: Task, expected: Mapping[str, str | None]) -> str:
    """A digest of what an order's place does not name: its words, versions, and modules at the top."""
    own = ("optlab", "pipeline", "custom")
    code = [path for path in sorted(Path.cwd().rglob("*.py")) if path.relative_to(Path.cwd()).parts[0] not in own]
    decides = [task.words, dict(expected), [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]


def joined(sent: bytes, here: bytes) -> bytes:
    """A journal as it was sent, and the lines after those in which it was equal here: they did not arrive.

    Who has asked may have written lines, too: that the run is dead, or what another node has said of the same steps.
    """
    theirs, ours = sent.split(b"\n")[:-1], here.split(b"\n")[:-1]
    pairs = zip(theirs, ours, strict=False)
    equal = next((count for count, (one, other) in enumerate(pairs) if one != other), min(len(theirs), len(ours)))
    if equal == len(ours):
        return sent
    known = {(point[0], point[3]) for event in notes.events(theirs) for point in event.get("points", ())}
    return sent + b"".join(line + b"\n" for line in map(functools.partial(_less, known), ours[equal:]) if line)


def _less(known: set[tuple[str, int]], line: bytes) -> bytes:
    """A line without the points that are known; nothing, if it had no others."""
    event = notes.parse(line)
    if event["event"] != "metrics":
        return line
    points = [point for point in event["points"] if (point[0], point[3]) not in known]
    return json.dumps(event | {"points": points}).encode() if points else b""


def _data(site: Site, data: Mapping[str, Any]) -> Path:
    """The folder of the data's files, which are written once, and checked as they arrive: their names are digests."""
    every = hashlib.sha256("".join(sorted(data)).encode()).hexdigest()[:16]
    folder = site.own / "data" / every
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        for named, content in data.items():
            digest, _, name = named.partition(" ")
            if not (folder / name).exists():
                if hashlib.sha256(content).hexdigest() != digest:
                    raise DataError(f"{name} arrived damaged: repeat the command")
                files.write(folder / name, content.tobytes())
    return folder


def _link(path: Path, target: Path) -> None:
    """A link to the target, in the place of an older one."""
    if path.is_symlink() and path.readlink() == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{files.SUFFIX}")
    temporary.symlink_to(target)
    temporary.replace(path)
