"""The journal: one folder per run, outside git and DVC, from which MLflow is filled now or later.

`events.jsonl` has one JSON object a line. Its kinds:

    start     run, experiment, params, tags, time
    metrics   points: [[name, value, time, step], …]
    artifact  path, folder
    model     path, name, model
    tags      tags
    end       status, time

Times are milliseconds since 1970, as MLflow counts them: replaying a line twice changes nothing.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

JOURNALS = Path(".optlab") / "journal"

Point = tuple[str, float, int, int]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """An append-only list of events in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before_end: Callable[[], None] = lambda: None  # set by who still holds figures back

    @classmethod
    def create(cls, run: str) -> "Journal":
        """A new, empty journal; its folder's name starts with the time, so names sort by age."""
        folder = JOURNALS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{run}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return cls(folder)

    @property
    def path(self) -> Path:
        return self.folder / "events.jsonl"

    def append(self, event: str, **values: Any) -> None:
        """Write one event, whole, before anything else happens."""
        line = json.dumps({"event": event, **values}).encode() + b"\n"
        with self.path.open("ab+") as file:
            if file.tell() and self._last_byte(file) != b"\n":  # a kill cut the line before
                line = b"\n" + line
            file.write(line)

    @staticmethod
    def _last_byte(file: BinaryIO) -> bytes:
        file.seek(-1, os.SEEK_END)
        return file.read(1)

    def metrics(self, points: list[Point]) -> None:
        """Write (name, value, time in ms, step) points."""
        self.append("metrics", points=points)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file that belongs to the run, and name it."""
        self.append("artifact", path=str(self._keep(path)), folder=folder)

    def model(self, path: Path, name: str, model: str) -> None:
        """Keep weights, to be logged as a model of that name."""
        self.append("model", path=str(self._keep(path)), name=name, model=model)

    def end(self, status: str) -> None:
        """Close the journal."""
        self.before_end()
        self.append("end", status=status, time=now_ms())

    def _keep(self, path: Path) -> Path:
        """The file under a name in the journal's folder: what lies at its old place may be another run's by then."""
        kept = self.folder / path.name
        if kept == path:
            return path
        kept.unlink(missing_ok=True)
        try:
            os.link(path, kept)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, kept)
        return kept

    def events(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The events from number `start` on. A line cut short by a kill is an event `cut`, or left out at the end."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            for number, line in enumerate(file):
                if number >= start and line.endswith("\n"):
                    yield self._parse(line)

    @staticmethod
    def _parse(line: str) -> dict[str, Any]:
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            return {"event": "cut"}
        return event


def epoch_points(epoch: dict[str, Any], when: int) -> list[Point]:
    """An epoch's figures under MLflow's names; what is None is left out."""
    figures = {key: value for key, value in epoch.items() if key != "epoch" and value is not None}
    return [(f"epoch/{key}", value, when, epoch["epoch"]) for key, value in figures.items()]


def all_journals() -> list[Journal]:
    """Every journal, the oldest first."""
    return [Journal(path.parent) for path in sorted(JOURNALS.glob("*/events.jsonl"))]


def find(run: str, weights_sha256: str) -> Journal | None:
    """The newest journal of a run whose training ended with these weights."""
    for journal in reversed(all_journals()):
        if f"-{run}-" not in journal.folder.name:
            continue
        if any(event.get("tags", {}).get("weights.sha256") == weights_sha256 for event in journal.events()):
            return journal
    return None
