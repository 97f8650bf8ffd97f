"""The figures of a training as points of MLflow's metrics: their names, and how many digits of them are shown.

MLflow shows every digit of a float, so that a table of losses cannot be read: metrics have four digits. The files of
the record have all of them.

The journal: one folder per run, outside git and DVC, from which MLflow is filled now or later.

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
import math
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
from optlab.tracking import sync_state
from optlab.tracking.sync_state import WEIGHTS_TAG, LogSummary, SyncState

MetricPoint = tuple[str, float, int, int]  # name, value, time in ms since 1970, step

_TRAINING_METRICS = (
    "gradients",
    "images_per_second",
    "lr",
)  # in a section of their own, after the losses and accuracies


def round_metric(value: float) -> float:
    """The value with four decimals; one below 0.1 with four significant digits."""
    if not math.isfinite(value) or value == 0:
        return value
    return round(value, 3 - min(-1, math.floor(math.log10(abs(value)))))


def make_epoch_points(epoch: dict[str, Any], timestamp_ms: int, params: dict[str, Any]) -> list[MetricPoint]:
    """An epoch's figures; what is None, or a learning rate that does not change, is left out.

    Args:
        params: the run's parameters in MLflow.
    """
    metrics = {key: value for key, value in epoch.items() if key != "epoch" and value is not None}
    if "lr" in metrics and _is_constant(metrics["lr"], params):
        del metrics["lr"]
    return [
        (
            f"{'training' if key in _TRAINING_METRICS else 'epoch'}/{key}",
            round_metric(value),
            timestamp_ms,
            epoch["epoch"],
        )
        for key, value in metrics.items()
    ]


def make_validation_points(validation: dict[str, Any], timestamp_ms: int) -> list[MetricPoint]:
    """A validation's figures, at the step that they were seen after."""
    metrics = {key: validation[key] for key in ("loss", "accuracy") if validation[key] is not None}
    return [
        (f"step/validation_{key}", round_metric(value), timestamp_ms, validation["step"])
        for key, value in metrics.items()
    ]


def _is_constant(lr: float, params: dict[str, Any]) -> bool:
    """Whether no schedule changes it, and the optimizer has not, either."""
    planned = params.get("schedule.name") == "constant" and not float(params.get("schedule.warmup_epochs", 0))
    return planned and str(params.get("optimizer.lr")) == str(lr)


LOG_FOLDER = Path(".optlab") / "journal"
FIGURES_FOLDER = "figures"  # the folder of an evaluated run's pictures

_EVENTS_FILE = "events.jsonl"
_KEY_DIGITS = 16


def get_current_time_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class EventLog:
    """An append-only list of events in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / _EVENTS_FILE
        self.on_flush: Callable[[], None] = lambda: None  # set by who still holds figures back

    @classmethod
    def create(cls, run: str, key: str = "", draft: bool = False) -> "EventLog":
        """A new, empty journal; its folder's name starts with the time, so names sort by age.

        Args:
            key: a digest of all that decides the run, for `find_resumable` to find it by.
            draft: nobody sees it until `commit_draft` is called; a kill before that leaves nothing to be sent.

        Raises:
            StorageError: the folder cannot be made.
        """
        suffix = _build_key_suffix(key) if key else uuid.uuid4().hex[:_KEY_DIGITS]
        folder = get_log_folder() / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{run}-{suffix}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise files.make_storage_error(folder, error) from None
        log = cls(folder)
        if draft:
            log.path = folder / "events.draft"
        return log

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
                size = _measure_complete_lines(file)
                if size != file.seek(0, os.SEEK_END):
                    file.truncate(size)  # a kill cut the line after that
                try:
                    while content:  # a disk that fills up takes a part of it first
                        content = content[file.write(content) :]
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise files.make_storage_error(self.path, error) from None

    def flush(self) -> None:
        """Return when all that was written would survive a power failure."""
        self.on_flush()
        self.fsync()

    def fsync(self) -> None:
        """Bring what is in the file to the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def get_size(self) -> int:
        """Of its events, in bytes; 0 where there are none, or it was removed."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def run(self) -> str:
        """The id of the run that it was created for."""
        return self.folder.name.split("-", 2)[2].rpartition("-")[0]

    def load_summary(self) -> LogSummary:
        """What it says besides its figures: from the note beside it, unless it has grown since; then it is read."""
        known = SyncState.read(self.folder).summary
        return known if known and known.size == self.get_size() else LogSummary.from_lines(self.read_lines())

    def commit_draft(self) -> None:
        """End the draft: from now on the journal is seen, and sent."""
        if self.path != self.folder / _EVENTS_FILE:
            self.fsync()
            self.path = self.path.rename(self.folder / _EVENTS_FILE)

    def log_start_or_resume(self, metadata: dict[str, Any], steps_done: int) -> None:
        """Say that the run starts; or, where an earlier process has said that, that it goes on after so many steps."""
        lifecycle = self.read_lifecycle()
        if not lifecycle:
            self.append("start", **metadata)
            return
        last = lifecycle[-1]
        after = last["status"] if last["event"] == "end" and not last.get("killed") else "killed"
        if after in ("completed", "diverged"):
            after += ", but stopped before its result was recorded"
        number = 1 + sum(each["event"] == "resume" for each in lifecycle)
        self.append("resume", time=get_current_time_ms(), step=steps_done, after=after, number=number)

    def log_metrics(self, points: list[MetricPoint]) -> None:
        """Write (name, value, time in ms, step) points."""
        self.append("metrics", points=points)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file that belongs to the run, and name it."""
        self.append("artifact", **self._store_file(path), folder=folder)

    def log_weights(self, path: Path | None, digest: str) -> None:
        """Name the weights that came out, and keep the file where it is at hand."""
        if path:
            self.log_artifact(path, "weights")
        self.append("tags", tags={WEIGHTS_TAG: digest})

    def log_model(self, path: Path, name: str, model: str) -> None:
        """Keep weights, to be logged as a model of that name."""
        self.append("model", **self._store_file(path), name=name, model=model)

    def log_figures(self, run: str, confusion: list[list[int]]) -> None:
        """Keep what the figures of an evaluated run show."""
        self.append("figures", run=run, confusion=confusion)

    def end(self, status: str) -> None:
        """Close the journal."""
        self.on_flush()
        self.append("end", status=status, time=get_current_time_ms())

    def read_lifecycle(self) -> list[dict[str, Any]]:
        """Its events of the kinds start, resume and end."""
        return [event for event in self.read_events(skip="metrics") if event["event"] in ("start", "resume", "end")]

    def read_metric_values(self) -> dict[tuple[str, int], float]:
        """(name, step) → the value last written there, of every metric."""
        points = (point for event in self.read_events() for point in event.get("points", ()))
        return {(name, step): value for name, value, _, step in points}

    @property
    def is_evaluated(self) -> bool:
        """Whether it holds what the evaluation adds, up to the figures."""
        legacy_figure = {
            "event": "artifact",
            "folder": FIGURES_FOLDER,
        }.items()  # whose figures were drawn before they were sent
        return any(
            event["event"] == "figures" or legacy_figure <= event.items() for event in self.read_events(skip="metrics")
        )

    def close_if_dead(self) -> None:
        """If the run began, has no end, and no process is at work on it: end it at the time of its last figure."""
        summary = self.load_summary()
        if summary.lock and summary.status is None:
            with contextlib.suppress(BusyError), locks.hold_lock(summary.lock):
                self._end_as_killed()
                if not summary.is_from_this_tree(self.run):
                    locks.delete_lock(summary.lock)  # the copy is gone

    def _end_as_killed(self) -> None:
        lifecycle = self.read_lifecycle()
        if lifecycle and lifecycle[-1]["event"] != "end":
            times = [when for event in self.read_events() for _, _, when, _ in event.get("points", ())]
            last = max([lifecycle[-1]["time"], *times])
            self.append("end", status="interrupted", time=last, killed=True)

    def _store_file(self, path: Path) -> dict[str, str]:
        """The file under a name in the journal's folder, and its SHA-256.

        What lies at its old place may be another run's by the time it is sent.
        """
        stored = self.folder / path.name
        if stored != path:
            stored.unlink(missing_ok=True)
            try:
                os.link(path, stored)
            except OSError:  # another file system, or one without links
                try:
                    shutil.copyfile(path, stored)
                except OSError as error:
                    raise files.make_storage_error(stored, error) from None
        return {
            "path": str(stored.relative_to(repository.get_state_root())),
            "sha256": hashlib.sha256(stored.read_bytes()).hexdigest(),
        }

    def read_lines(self) -> list[bytes]:
        """Its lines, without their ends; one that is cut short, or still being written, is left out."""
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []

    def read_events(self, skip: str = "") -> Iterator[dict[str, Any]]:
        """Its events, but for those of the kind `skip`; a damaged line is an event `cut`."""
        return sync_state.parse_events(self.read_lines(), skip)


def _measure_complete_lines(file: FileIO) -> int:
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


def end_abandoned(lock: str, current: EventLog) -> None:
    """End every other journal of the runs that this lock guards; whoever holds it knows that they are dead."""
    for log in list_logs():
        if not lock.endswith(f"-{log.run}") or log.folder == current.folder:
            continue
        summary = log.load_summary()
        if summary.lock == lock and summary.status is None:
            log._end_as_killed()


def list_logs() -> list[EventLog]:
    """Every journal, the oldest first."""
    return [EventLog(path.parent) for path in sorted(get_log_folder().glob("*/events.jsonl"))]


def find_resumable(run: str, key: str) -> EventLog | None:
    """The newest journal of the run that this key decides; None if it was evaluated: a repetition is another run."""
    for found in find_by_key(run, key):
        return None if found.is_evaluated else found
    return None


def find_by_key(run: str, key: str) -> list[EventLog]:
    """The journals that were created for that run with that key, the newest first."""
    return [
        EventLog(folder) for folder in sorted(get_log_folder().glob(f"*-{run}-{_build_key_suffix(key)}"), reverse=True)
    ]


def get_log_folder() -> Path:
    """The folder of all journals."""
    return repository.get_state_root() / LOG_FOLDER


def _build_key_suffix(key: str) -> str:
    """How the names of the journals with that key end; those of another pipeline or of a copy are their own."""
    folder = repository.get_pipeline()
    place = [
        *([Path.cwd().name] if repository.is_experiment_copy() else []),
        *([folder.as_posix()] if folder != Path() else []),
    ]
    if place:
        key = hashlib.sha256(" ".join([*place, key]).encode()).hexdigest()
    return key[:_KEY_DIGITS]


def find_by_weights(run: str, weights_sha256: str) -> EventLog | None:
    """The newest journal of a run whose training ended with these weights.

    Equal runs of several experiments end with equal weights. Those of another pipeline are not meant; of the same
    one, a copy takes its own only, and the repository another's only where it has none.
    """
    other_tree, experiment = None, sync_state.get_experiment_name(repository.get_pipeline())
    for log in reversed(list_logs()):
        summary = log.load_summary() if log.run == run else None
        if summary and summary.experiment == experiment and weights_sha256 in summary.weights:
            if summary.is_from_this_tree(run):
                return log
            other_tree = other_tree or log
    return None if repository.is_experiment_copy() else other_tree
