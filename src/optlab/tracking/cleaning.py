"""Journals that nobody needs any more: MLflow has all of them, and neither the record nor a training needs them."""

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from optlab.record.contents import Trained
from optlab.record.runs import RUNS
from optlab.system import locks
from optlab.system.errors import BusyError, TrackingError
from optlab.tracking import server
from optlab.tracking.journal import Journal, all_journals
from optlab.tracking.notes import Note, Summary
from optlab.tracking.replay import sent
from optlab.training.checkpoint import CHECKPOINTS

REMOVED = Path(".optlab") / "removed"  # where they lie while they are deleted: a journal is there whole or not at all

_NO_PIPELINES = (".git", ".optlab", "mlruns", "__pycache__")

_NOT_SENT = "not ended, or not all in MLflow"
_RECORDED = "of the present record"
_UNFINISHED = "their runs may go on"
_BUSY = "a process is at work on their runs"


@dataclass(frozen=True)
class Verdict:
    """What became of a journal.

    Attributes:
        kept: why it was, said of several; empty where it was removed.
        freed: bytes of its files, but for those that have another name elsewhere, as weights in DVC's cache.
    """

    name: str
    kept: str = ""
    freed: int = 0


def clean() -> Iterator[Verdict]:
    """Remove the journals that MLflow has whole, but for those of the present record and of runs that may go on.

    Raises:
        TrackingError: MLflow cannot be reached; nothing was removed.
        RecordError: a file of the record is damaged; nothing was removed.
        BusyError: another process does the same.
    """
    with locks.holding("clean"):
        shutil.rmtree(REMOVED, ignore_errors=True)  # of a call that was cut short
        looked_at = _look()
        recorded = _recorded()  # after that: what a training has ended in between is not in MLflow by that look
        finished: set[str] = set()
        for journal, said in reversed(looked_at):  # the newest first
            yield _judge(journal, said, recorded, finished)
            if said and said.status in ("completed", "diverged"):
                finished.add(said.lock)


def _look() -> list[tuple[Journal, Summary | None]]:
    """Every journal, with what it says where MLflow has taken all of it."""
    identity = functools.cache(server.identity)
    try:
        identity("")  # also where no journal asks
        return [(journal, _whole(sent(journal, identity), journal)) for journal in all_journals()]
    except Exception as error:  # whatever MLflow raises
        raise TrackingError(
            f"MLflow at {server.shown()} was not reached ({server.describe(error)}): nothing was removed"
        ) from None


def _whole(said: Summary | None, journal: Journal) -> Summary | None:
    """None where MLflow has refused a part; an earlier version has not noted whether."""
    return said if Note.read(journal.folder).refused == 0 else None


def _recorded() -> set[str]:
    """The SHA-256 of the weights of every run of the record, of all pipelines and of experiments under way."""
    linked = (path for depth in ("*/", "*/*/") for path in Path().glob(depth) if path.is_symlink())
    folders = (folder for top in (Path(), *linked) for folder in _folders(top))
    paths = (path for folder in folders for path in folder.glob(f"{RUNS}/*/train.json"))
    return {Trained.read(path).weights_sha256 for path in paths}


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all below it, but for what holds no pipeline and many files."""
    for folder, below, names in os.walk(top):
        if "pyvenv.cfg" in names:
            below.clear()
        own = Path(folder).name == ".dvc"  # its cache; what lies in tmp are experiments' copies
        below[:] = [name for name in below if (name == "tmp" if own else name not in _NO_PIPELINES)]
        yield Path(folder)


def _judge(journal: Journal, said: Summary | None, recorded: set[str], finished: set[str]) -> Verdict:
    name = journal.folder.name
    if said is None or said.status is None:
        return Verdict(name, _NOT_SENT)
    if recorded & set(said.weights):
        return Verdict(name, _RECORDED)
    if _may_go_on(journal, said, finished):
        return Verdict(name, _UNFINISHED)
    try:
        with locks.holding(said.lock), FileLock(journal.folder / "lock", timeout=0):
            if sent(journal) != said:  # somebody has added to it since
                return Verdict(name, _NOT_SENT)
            freed = _remove(journal.folder)
        if not said.is_ours(journal.run):
            locks.forget(said.lock)
        return Verdict(name, freed=freed)
    except (BusyError, Timeout):
        return Verdict(name, _BUSY)


def _may_go_on(journal: Journal, said: Summary, finished: set[str]) -> bool:
    """Whether the next training would go on with it: it was stopped, and the run has not come to its end since."""
    if said.status in ("completed", "diverged"):
        return False
    if not said.is_ours(journal.run):  # an experiment's copy does not come back
        return False
    return said.lock not in finished or any(CHECKPOINTS.glob(f"*/*/{journal.folder.name}"))


def _remove(folder: Path) -> int:
    """Returns the bytes that it freed."""
    REMOVED.mkdir(exist_ok=True)
    moved = folder.rename(REMOVED / folder.name)
    sizes = [path.stat() for path in moved.rglob("*") if path.is_file()]
    shutil.rmtree(moved)
    with contextlib.suppress(OSError):  # there may be another one
        REMOVED.rmdir()
    return sum(each.st_size for each in sizes if each.st_nlink == 1)
