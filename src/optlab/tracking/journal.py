"""The journal: one folder per run, outside git and DVC, from which MLflow is filled now or later.

`events.jsonl` has one JSON object a line. Its kinds:

    start     id, name, experiment, params, tags, dataset, time; versions before had no id, which no two runs share
    resume    step, after, number, time: a later process goes on with a run whose first one was stopped
    metrics   points: [[name, value, time, step], …]
    artifact  path, sha256, folder
    figures   run, confusion: to be drawn by whoever sends it
    model     path, sha256, name, model
    tags      tags
    end       status, time; killed, if it was found without an end and without a process

Times are milliseconds since 1970, as MLflow counts them: replaying a line twice changes nothing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from optlab.system import files, locks, repository
from optlab.system.errors import BusyError
from optlab.tracking import notes
from optlab.tracking.notes import WEIGHTS_TAG, Note, Summary
from optlab.tracking.points import Point

JOURNALS = Path(".optlab") / "journal"
FIGURES = "figures"  # the folder of an evaluated run's pictures

_EVENTS = "events.jsonl"
_KEY_DIGITS = 16


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """An append-only list of events in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / _EVENTS
        self.before_end: Callable[[], None] = lambda: None  # set by who still holds figures back

    @classmethod
    def create(cls, run: str, key: str = "", draft: bool = False) -> "Journal":
        """A new, empty journal; its folder's name starts with the time, so names sort by age.

        Args:
            key: a digest of all that decides the run, for `resumable` to find it by.
            draft: nobody sees it until `publish` is called; a kill before that leaves nothing to be sent.

        Raises:
            StorageError: the folder cannot be made.
        """
        ending = _ending(key) if key else uuid.uuid4().hex[:_KEY_DIGITS]
        folder = journals() / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{run}-{ending}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise files.storage_error(folder, error) from None
        created = cls(folder)
        if draft:
            created.path = folder / "events.draft"
        return created

    def append(self, event: str, **values: Any) -> None:
        """Write one event, whole, before anything else happens.

        Raises:
            StorageError: it cannot be written; nothing of it is.
        """
        self.extend([json.dumps({"event": event, **values}).encode()])

    def extend(self, lines: list[bytes]) -> None:
        """Write lines, which are given without their ends, as `append` does one.

        Raises:
            StorageError: they cannot be written; nothing of them is.
        """
        content = b"".join(line + b"\n" for line in lines)
        try:
            with self.path.open("ab+", buffering=0) as file:
                size = _whole(file)
                if size != file.seek(0, os.SEEK_END):
                    file.truncate(size)  # a kill cut the line after that
                try:
                    while content:  # a disk that fills up takes a part of it first
                        content = content[file.write(content) :]
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise files.storage_error(self.path, error) from None

    def to_disk(self) -> None:
        """Return when all that was written would survive a power failure."""
        self.before_end()
        self.sync()

    def sync(self) -> None:
        """Bring what is in the file to the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def size(self) -> int:
        """Of its events, in bytes; 0 where there are none, or it was removed."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def run(self) -> str:
        """The id of the run that it was created for."""
        return self.folder.name.split("-", 2)[2].rpartition("-")[0]

    def summary(self) -> Summary:
        """What it says besides its figures: from the note beside it, unless it has grown since; then it is read."""
        known = Note.read(self.folder).summary
        return known if known and known.size == self.size() else Summary.of(self.lines())

    def publish(self) -> None:
        """End the draft: from now on the journal is seen, and sent."""
        if self.path != self.folder / _EVENTS:
            self.sync()
            self.path = self.path.rename(self.folder / _EVENTS)

    def begin(self, facts: dict[str, Any], steps_done: int) -> None:
        """Say that the run starts; or, where an earlier process has said that, that it goes on after so many steps."""
        lifecycle = self.lifecycle()
        if not lifecycle:
            self.append("start", **facts)
            return
        last = lifecycle[-1]
        after = last["status"] if last["event"] == "end" and not last.get("killed") else "killed"
        if after in ("completed", "diverged"):
            after += ", but stopped before its result was recorded"
        number = 1 + sum(each["event"] == "resume" for each in lifecycle)
        self.append("resume", time=now_ms(), step=steps_done, after=after, number=number)

    def metrics(self, points: list[Point]) -> None:
        """Write (name, value, time in ms, step) points."""
        self.append("metrics", points=points)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file that belongs to the run, and name it."""
        self.append("artifact", **self._keep(path), folder=folder)

    def weights(self, path: Path | None, digest: str) -> None:
        """Name the weights that came out, and keep the file where it is at hand."""
        if path:
            self.artifact(path, "weights")
        self.append("tags", tags={WEIGHTS_TAG: digest})

    def model(self, path: Path, name: str, model: str) -> None:
        """Keep weights, to be logged as a model of that name."""
        self.append("model", **self._keep(path), name=name, model=model)

    def figures(self, run: str, confusion: list[list[int]]) -> None:
        """Keep what the figures of an evaluated run show."""
        self.append("figures", run=run, confusion=confusion)

    def end(self, status: str) -> None:
        """Close the journal."""
        self.before_end()
        self.append("end", status=status, time=now_ms())

    def lifecycle(self) -> list[dict[str, Any]]:
        """Its events of the kinds start, resume and end."""
        return [event for event in self.events(skip="metrics") if event["event"] in ("start", "resume", "end")]

    def recorded(self) -> dict[tuple[str, int], float]:
        """(name, step) → the value last written there, of every metric."""
        points = (point for event in self.events() for point in event.get("points", ()))
        return {(name, step): value for name, value, _, step in points}

    @property
    def evaluated(self) -> bool:
        """Whether it holds what the evaluation adds, up to the figures."""
        of_older = {"event": "artifact", "folder": FIGURES}.items()  # whose figures were drawn before they were sent
        return any(event["event"] == "figures" or of_older <= event.items() for event in self.events(skip="metrics"))

    def close_if_dead(self) -> None:
        """If the run began, has no end, and no process is at work on it: end it at the time of its last figure."""
        said = self.summary()
        if said.lock and said.status is None:
            with contextlib.suppress(BusyError), locks.holding(said.lock):
                self._end_of_dead()
                if not said.is_ours(self.run):
                    locks.forget(said.lock)  # the copy is gone

    def _end_of_dead(self) -> None:
        lifecycle = self.lifecycle()
        if lifecycle and lifecycle[-1]["event"] != "end":
            times = [when for event in self.events() for _, _, when, _ in event.get("points", ())]
            last = max([lifecycle[-1]["time"], *times])
            self.append("end", status="interrupted", time=last, killed=True)

    def _keep(self, path: Path) -> dict[str, str]:
        """The file under a name in the journal's folder, and its SHA-256.

        What lies at its old place may be another run's by the time it is sent.
        """
        kept = self.folder / path.name
        if kept != path:
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:  # another file system, or one without links
                try:
                    shutil.copyfile(path, kept)
                except OSError as error:
                    raise files.storage_error(kept, error) from None
        return {
            "path": str(kept.relative_to(repository.home())),
            "sha256": hashlib.sha256(kept.read_bytes()).hexdigest(),
        }

    def lines(self) -> list[bytes]:
        """Its lines, without their ends; one that is cut short, or still being written, is left out."""
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []

    def events(self, skip: str = "") -> Iterator[dict[str, Any]]:
        """Its events, but for those of the kind `skip`; a damaged line is an event `cut`."""
        return notes.events(self.lines(), skip)


def _whole(file: FileIO) -> int:
    """The number of bytes up to the end of the last whole line."""
    size = file.seek(0, os.SEEK_END)
    while size:
        start = max(0, size - 65536)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def end_abandoned(lock: str, own: Journal) -> None:
    """End every other journal of the runs that this lock guards; whoever holds it knows that they are dead."""
    for journal in all_journals():
        if not lock.endswith(f"-{journal.run}") or journal.folder == own.folder:
            continue
        said = journal.summary()
        if said.lock == lock and said.status is None:
            journal._end_of_dead()


def all_journals() -> list[Journal]:
    """Every journal, the oldest first."""
    return [Journal(path.parent) for path in sorted(journals().glob("*/events.jsonl"))]


def resumable(run: str, key: str) -> Journal | None:
    """The newest journal of the run that this key decides; None if it was evaluated: a repetition is another run."""
    for found in with_key(run, key):
        return None if found.evaluated else found
    return None


def with_key(run: str, key: str) -> list[Journal]:
    """The journals that were created for that run with that key, the newest first."""
    return [Journal(folder) for folder in sorted(journals().glob(f"*-{run}-{_ending(key)}"), reverse=True)]


def journals() -> Path:
    """The folder of all journals."""
    return repository.home() / JOURNALS


def _ending(key: str) -> str:
    """How the names of the journals with that key end; those of another pipeline or of a copy are their own."""
    folder = repository.pipeline()
    place = [*([Path.cwd().name] if repository.is_copy() else []), *([folder.as_posix()] if folder != Path() else [])]
    if place:
        key = hashlib.sha256(" ".join([*place, key]).encode()).hexdigest()
    return key[:_KEY_DIGITS]


def find(run: str, weights_sha256: str) -> Journal | None:
    """The newest journal of a run whose training ended with these weights.

    Equal runs of several experiments end with equal weights. Those of another pipeline are not meant; of the same
    one, a copy takes its own only, and the repository another's only where it has none.
    """
    another, experiment = None, notes.experiment(repository.pipeline())
    for journal in reversed(all_journals()):
        said = journal.summary() if journal.run == run else None
        if said and said.experiment == experiment and weights_sha256 in said.weights:
            if said.is_ours(run):
                return journal
            another = another or journal
    return None if repository.is_copy() else another
