"""A node's side of a cluster: does one order in a folder of its own, and says what comes of it while it comes.

It runs in a worker process of Ray's, whose working directory is the code that came with the call (`luggage`), and
imports no torch: the order is a child of a process that has imported what it needs (`warm`), as on any
machine, and that process serves the next order, too.

What it says is lists of messages, each a dictionary with one of these keys:

    node      its id: the order has come there; refused, why that node is not to be used, or nothing
    line      of the order's output
    journal   a journal's name; after, how many of its lines were known; lines, those that came since
    file      a path; content, its bytes, or same, a path that has them already; its sha256
    end       the exit status; told, why it failed, where it could say
"""

import collections
import contextlib
import hashlib
import os
import platform
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optlab.execution import checked, cores, place
from optlab.execution.jobs import Warm
from optlab.execution.place import Site, Task
from optlab.system import processes
from optlab.system.errors import REASON_VARIABLE
from optlab.tracking import link, notes
from optlab.tracking.journal import JOURNALS

Message = dict[str, Any]

_TICK_S = 0.5  # between two lists of messages
_ENDED = "ended"  # in a place: the order was done to its end
_warm: Warm | None = None


def versions(packages: list[str]) -> dict[str, str | None]:
    """What must be the same everywhere: Python's version, and those of the packages; None for one that is missing."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in packages:
        found[name] = None
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def differences(expected: Mapping[str, str | None]) -> str:
    """What is otherwise here, in words."""
    here = versions([name for name in expected if name != "Python"])
    return ", ".join(
        f"{name} {here[name] or 'is missing'} ({wanted or 'none'} here)"
        for name, wanted in expected.items()
        if here[name] != wanted
    )


@dataclass(frozen=True)
class Seen:
    """What a call is told of a node before anything is done there.

    Attributes:
        differences: from the machine that asks, in words; empty where there are none.
        machine: as `checked.machine` has it.
        places: those that an earlier call has left → whether their order was done to its end.
    """

    differences: str
    machine: str
    places: dict[str, bool]


def look(expected: Mapping[str, str | None], site: Site) -> Seen:
    """Look at this node."""
    _forget()
    every = site.places.iterdir() if site.places.is_dir() else ()
    kept = {each.name: any(each.glob(f"{_ENDED}-*")) for each in every}
    return Seen(differences(expected), checked.machine(), kept)


def _forget() -> None:
    """Leave what this process's environment says of a call, or of where Ray was started, out of what follows."""
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "OPTLAB_")):
            del os.environ[name]
    ours = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if others := [path for path in ours if path and Path(path) != Path.cwd()]:
        os.environ["PYTHONPATH"] = os.pathsep.join(others)


def clean(site: Site, everything: bool) -> None:
    """Remove what lies on this node, and with `everything` in the shared folder as well."""
    shutil.rmtree(site.own, ignore_errors=True)
    if everything and site.shared:
        shutil.rmtree(site.places.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # another working tree has something there
        site.own.parent.rmdir()


def work(task: Task, expected: Mapping[str, str | None], site: Site,
         data: Mapping[str, Any]) -> Iterator[list[Message]]:  # fmt: skip
    """Do an order, or go on with it where an earlier call left it in its place; yields messages.

    Args:
        expected: as in `look`: a node may have joined since.
        data: digest and name → content of the data's files, as arrays of uint8, mapped from the object store.
    """
    global _warm
    import ray

    refused = differences(expected)
    yield [{"node": ray.get_runtime_context().get_node_id(), "refused": refused}]
    if refused:
        return
    _forget()
    top = place.furnish(task, site, data)
    news = News(top, dict(task.files))
    ended = top / f"{_ENDED}-{place.decides(task, expected)}"
    status = 0
    if not ended.exists():
        reason = top / "reason"
        reason.unlink(missing_ok=True)
        if _warm is None:
            _warm = Warm(int(os.environ["OMP_NUM_THREADS"]) <= len(cores.available_cores()), "--training")
        over = threading.Event()
        own = str(os.getpid())
        environment = {
            link.FOLLOWED_VARIABLE: link.NOBODY,
            processes.CALLER_VARIABLE: own,
            REASON_VARIABLE: str(reason),
        }
        if ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            devices = {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES")}
        else:
            devices = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        job = _warm.start(
            task.place, task.words, top / task.folder, [], devices | environment | dict(task.environment), news.hear,
            lambda name: over.set(),
        )  # fmt: skip
        try:
            while not over.wait(_TICK_S):
                if messages := news.gathered():
                    yield messages
        except BaseException:
            processes.stop([job])
            raise
        status = job.wait()
        if status:
            told = reason.read_text("utf-8") if reason.exists() else job.reason
            yield [*news.gathered(), {"end": status, "told": told}]
            return
        ended.touch()
    yield [*news.gathered(), *news.files(task.outputs), {"end": status, "told": ""}]


@dataclass
class News:
    """What has come of an order and was not said yet.

    Attributes:
        top: of its place.
        known: path → bytes of what was sent along.
    """

    top: Path
    known: dict[Path, bytes]
    _lines: "collections.deque[str]" = field(default_factory=collections.deque)
    _said: dict[str, tuple[int, int]] = field(default_factory=dict)  # journal → bytes, lines
    _have: dict[str, str] = field(default_factory=dict)  # SHA-256 → path

    def __post_init__(self) -> None:
        for path, content in self.known.items():
            if path.is_relative_to(JOURNALS):
                self._said[path.parent.name] = (len(content), content.count(b"\n"))
            else:
                self._have[hashlib.sha256(content).hexdigest()] = str(path)

    def hear(self, line: str) -> bool:
        """The order has printed that."""
        self._lines.append(line)
        return True

    def gathered(self) -> list[Message]:
        """What has come since the last call."""
        said: list[Message] = [{"line": self._lines.popleft()} for _ in range(len(self._lines))]
        for path in sorted((self.top / JOURNALS).glob("*/events.jsonl")):
            name = path.parent.name
            size, after = self._said.get(name, (0, 0))
            with path.open("rb") as file:
                file.seek(size)
                lines = file.read().split(b"\n")[:-1]
            if lines:
                kept = [event["path"] for event in notes.events(lines, skip="metrics") if "path" in event]
                said += [*self.files([Path(each) for each in kept]), {"journal": name, "after": after, "lines": lines}]
                self._said[name] = (size + sum(len(line) + 1 for line in lines), after + len(lines))
        return said

    def files(self, paths: "tuple[Path, ...] | list[Path]") -> Iterator[Message]:
        """Those of the files that are there; of equal ones, the bytes are said once."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                content = (self.top / path).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                same = self._have.setdefault(digest, str(path))
                own = {"same": same} if same != str(path) else {"content": content}
                yield {"file": str(path), "sha256": digest, **own}
