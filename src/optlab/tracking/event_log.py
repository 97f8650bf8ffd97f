"""Event log of a run: an append-only file outside git and DVC, from which MLflow is filled now or later.

Each run has a folder in `.optlab/event_logs` with `events.jsonl`, one JSON object a line, and `synced.json`, which says
how much of it MLflow has. Kinds of events:

    start     id, name, experiment, params, tags, dataset, time, lock; older versions wrote no id and no lock
    resume    step, after, number, time: a later process continues an interrupted run
    metrics   points: [[name, value, time, step], …]
    artifact  path, sha256, folder
    figures   run, confusion: the uploader draws them
    model     path, sha256, name, model
    tags      tags
    end       status, time; killed, if another process closed the log of a dead one

Times are milliseconds since 1970, as in MLflow: sending a line twice changes nothing.
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
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from optlab.system import files, locks, repository, source_code
from optlab.system.errors import BusyError, StorageError

EXPERIMENT_PREFIX = "optlab"  # of the name of every MLflow experiment
WEIGHTS_TAG = "weights.sha256"  # in MLflow as well
FIGURES_FOLDER = "figures"  # artifact folder of an evaluated run
LOG_FOLDER = Path(".optlab") / "event_logs"

_LEGACY_LOG_FOLDER = Path(".optlab") / "journal"  # of older versions
_EVENTS_FILE = "events.jsonl"
_STATE_FILE = "synced.json"
_KEY_DIGITS = 16
_TRAINING_METRICS = ("gradients", "images_per_second", "lr")  # in a section after the losses and accuracies

MetricPoint = tuple[str, float, int, int]  # name, value, time in ms since 1970, step


def get_current_time_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def get_experiment_name(folder: Path) -> str:
    """Return the name of a pipeline's MLflow experiment; `folder` is the pipeline's, relative to the top."""
    return EXPERIMENT_PREFIX if folder == Path() else f"{EXPERIMENT_PREFIX}-{folder.name}"


def get_lock_name(folder: Path, run: str) -> str:
    """Return the name of the lock that a process holds while it writes the outputs of a pipeline's run."""
    return build_lock_name(get_experiment_name(folder), run)


def build_lock_name(experiment: str, run: str) -> str:
    """Return the name of a run's lock; runs of an experiment's copy of the repository have other locks."""
    return repository.add_copy_suffix(f"{experiment}-{run}")


def round_metric(value: float) -> float:
    """Round to four decimals, or below 0.1 to four significant digits: MLflow shows every digit of a float."""
    if not math.isfinite(value) or value == 0:
        return value
    return round(value, 3 - min(-1, math.floor(math.log10(abs(value)))))


def make_epoch_points(epoch: dict[str, Any], timestamp_ms: int, params: dict[str, Any]) -> list[MetricPoint]:
    """Return the points of an epoch's metrics, without those that are None and without a constant learning rate.

    Args:
        params: the run's parameters in MLflow.
    """
    metrics = {key: value for key, value in epoch.items() if key != "epoch" and value is not None}
    if "lr" in metrics and _is_constant(metrics["lr"], params):
        del metrics["lr"]
    return [
        (f"{'training' if key in _TRAINING_METRICS else 'epoch'}/{key}", round_metric(value), timestamp_ms,
         epoch["epoch"])
        for key, value in metrics.items()
    ]  # fmt: skip


def make_validation_points(validation: dict[str, Any], timestamp_ms: int) -> list[MetricPoint]:
    """Return the points of a validation, at the step after which it took place."""
    return [
        (f"step/validation_{key}", round_metric(validation[key]), timestamp_ms, validation["step"])
        for key in ("loss", "accuracy")
        if validation[key] is not None
    ]


def _is_constant(lr: float, params: dict[str, Any]) -> bool:
    planned = params.get("schedule.name") == "constant" and not float(params.get("schedule.warmup_epochs", 0))
    return planned and str(params.get("optimizer.lr")) == str(lr)


def parse_event(line: bytes) -> dict[str, Any]:
    """Parse a line; a damaged one becomes the event `cut`."""
    try:
        event = json.loads(line.decode(errors="replace"))
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "event" in event else {"event": "cut"}


def parse_events(lines: list[bytes], skip: str = "") -> Iterator[dict[str, Any]]:
    """Parse lines, but for events of the kind `skip`, of which there may be many."""
    skipped = f'{{"event": "{skip}"'.encode()
    return (parse_event(line) for line in lines if not line.startswith(skipped))


class LogSummary(BaseModel):
    """Content of an event log besides its metrics.

    Attributes:
        size: bytes of the complete lines that it summarizes.
        experiment: MLflow experiment of the run; empty before the start event.
        lock: name of the run's lock; empty before the start event.
        status: of the end event; None for a log without an end.
        weights: SHA-256 of every weights file that the run has written.
    """

    model_config = ConfigDict(frozen=True)

    size: int
    experiment: str = ""
    lock: str = ""
    status: str | None = None
    weights: tuple[str, ...] = ()

    @classmethod
    def from_lines(cls, lines: list[bytes]) -> Self:
        """Summarize lines, which are given without their line ends."""
        fields: dict[str, Any] = {}
        weights = []
        for event in parse_events(lines, skip="metrics"):
            kind, tags = event["event"], event.get("tags")
            if kind == "start" and not fields.get("lock"):
                fields |= _parse_start(event)
            if kind in ("start", "resume", "end"):
                fields["status"] = str(event.get("status")) if kind == "end" else None
            if kind == "tags" and isinstance(tags, dict) and WEIGHTS_TAG in tags:
                weights.append(str(tags[WEIGHTS_TAG]))
        return cls(size=sum(len(line) + 1 for line in lines), weights=tuple(weights), **fields)

    def is_from_this_tree(self, run: str) -> bool:
        """Return whether this working tree has written the log of that run, and not another copy of the repository."""
        return self.lock == build_lock_name(self.experiment, run)


def _parse_start(start: dict[str, Any]) -> dict[str, str]:
    try:
        run = start["tags"].get("optlab.run", start["name"])
        lock = start.get("lock") or f"{start['experiment']}-{run}"  # older versions wrote no lock
        return {"experiment": str(start["experiment"]), "lock": str(lock)}
    except (KeyError, AttributeError):  # damaged: the store will refuse it
        return {}


class SyncState(BaseModel):
    """Progress of an event log's upload, as the uploader keeps it beside the log.

    Attributes:
        store: id of the store that got the log last.
        run_id: the run's id in MLflow; None before the start event.
        events: number of lines that were sent.
        refused: number of refused parts of them; None if an older version did not count them.
        summary: of the log, once all of it was sent.
    """

    store: str = ""
    run_id: str | None = None
    events: int = 0
    refused: int | None = None
    summary: LogSummary | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the state in a log's folder; return an empty one if there is none, or a damaged one."""
        try:
            return cls.model_validate_json((folder / _STATE_FILE).read_bytes())
        except (OSError, ValueError):
            return cls()

    def write(self, folder: Path) -> None:
        """Replace the state in a log's folder atomically.

        A full disk is ignored: without the state, the next push sends everything again, which changes nothing.
        """
        path = folder / _STATE_FILE
        temporary = path.with_suffix(".new")
        try:
            temporary.write_text(self.model_dump_json(), "utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)


class EventLog:
    """Event log in a folder, whose name is the time, the run's id and a key.

    Attributes:
        on_flush: called before the log is flushed or ended; set by the writer that buffers metrics.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / _EVENTS_FILE
        self.on_flush: Callable[[], None] = lambda: None

    @classmethod
    def create(cls, run: str, key: str = "", draft: bool = False) -> "EventLog":
        """Create an empty log; its folder's name starts with the time, so that names sort by age.

        Args:
            run: id of the run.
            key: digest of all that decides the run, by which `find_resumable` finds the log.
            draft: hide the log until `commit_draft` is called; after a kill before that, nothing is uploaded.

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

    @property
    def run(self) -> str:
        """Id of the run."""
        return self.folder.name.split("-", 2)[2].rpartition("-")[0]

    def append(self, event: str, **values: Any) -> None:
        """Write one event completely before anything else happens.

        Raises:
            StorageError: it cannot be written; the file is unchanged.
        """
        self.extend([json.dumps({"event": event, **values}).encode()])

    def extend(self, lines: list[bytes]) -> None:
        """Write lines, which are given without their line ends, as `append` does.

        Raises:
            StorageError: they cannot be written; the file is unchanged.
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
        """Write buffered metrics, and return when the file would survive a power failure."""
        self.on_flush()
        self.fsync()

    def fsync(self) -> None:
        """Bring the file to the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def get_size(self) -> int:
        """Return the bytes of the events; 0 if there are none, or the log was removed."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def load_summary(self) -> LogSummary:
        """Return the summary from the sync state, or from the events if the log has grown since."""
        known = SyncState.read(self.folder).summary
        return known if known and known.size == self.get_size() else LogSummary.from_lines(self.read_lines())

    def commit_draft(self) -> None:
        """Make a draft visible, so that it is uploaded."""
        if self.path != self.folder / _EVENTS_FILE:
            self.fsync()
            self.path = self.path.rename(self.folder / _EVENTS_FILE)

    def log_start_or_resume(self, metadata: dict[str, Any], steps_done: int) -> None:
        """Write the start event or, in a log that has one, the event that the run resumes after so many steps."""
        lifecycle = self.read_lifecycle()
        if not any(each["event"] == "start" for each in lifecycle):  # it may have ended before it began
            self.append("start", **metadata)
            return
        last = lifecycle[-1]
        after = last["status"] if last["event"] == "end" and not last.get("killed") else "killed"
        if after in ("completed", "diverged"):
            after += ", but stopped before its result was recorded"
        number = 1 + sum(each["event"] == "resume" for each in lifecycle)
        self.append("resume", time=get_current_time_ms(), step=steps_done, after=after, number=number)

    def log_metrics(self, points: list[MetricPoint]) -> None:
        """Write metric points."""
        self.append("metrics", points=points)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file of the run, to be uploaded into an artifact folder."""
        self.append("artifact", **self._store_file(path), folder=folder)

    def log_weights(self, path: Path | None, digest: str) -> None:
        """Write the SHA-256 of the trained weights, and keep their file if it is there."""
        if path:
            self.log_artifact(path, "weights")
        self.append("tags", tags={WEIGHTS_TAG: digest})

    def log_model(self, path: Path, name: str, model: str) -> None:
        """Keep weights, to be logged as an MLflow model of that name; `model` is the name in params.yaml."""
        code = source_code.hash_files(source_code.find_user_modules([model]))
        self.append("model", **self._store_file(path), name=name, model=model, code=code)

    def log_figures(self, run: str, confusion: list[list[int]]) -> None:
        """Write the data of an evaluated run's figures."""
        self.append("figures", run=run, confusion=confusion)

    def end(self, status: str) -> None:
        """Write buffered metrics and the end event."""
        self.on_flush()
        self.append("end", status=status, time=get_current_time_ms())

    def read_lines(self) -> list[bytes]:
        """Return the complete lines, without their line ends."""
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []

    def read_events(self, skip: str = "") -> Iterator[dict[str, Any]]:
        """Return the events, but for those of the kind `skip`; a damaged line is an event `cut`."""
        return parse_events(self.read_lines(), skip)

    def read_lifecycle(self) -> list[dict[str, Any]]:
        """Return the events of the kinds start, resume and end."""
        return [event for event in self.read_events(skip="metrics") if event["event"] in ("start", "resume", "end")]

    def read_metric_values(self) -> dict[tuple[str, int], float]:
        """Return (name, step) → last value of every metric."""
        points = (point for event in self.read_events() for point in event.get("points", ()))
        return {(name, step): value for name, value, _, step in points}

    @property
    def is_evaluated(self) -> bool:
        """Whether the log has all events of an evaluation."""
        legacy_figure = {"event": "artifact", "folder": FIGURES_FOLDER}.items()  # older versions drew the figures
        return any(
            event["event"] == "figures" or legacy_figure <= event.items() for event in self.read_events(skip="metrics")
        )

    def close_if_dead(self) -> None:
        """End a run that has started and not ended, and whose lock no process holds, at its last metric's time."""
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
        """Link or copy a file into the log's folder; its old place may be another run's before it is uploaded.

        A file of that name is replaced in one step: the uploader may be reading it.
        """
        stored = self.folder / path.name
        if stored != path:
            temporary = stored.with_name(f"{path.name}.new")
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:  # another file system, or one without links
                try:
                    shutil.copyfile(path, temporary)
                except OSError as error:
                    raise files.make_storage_error(stored, error) from None
            temporary.replace(stored)
            temporary.unlink(missing_ok=True)  # still there where both names were one file's
        return {
            "path": str(stored.relative_to(repository.get_state_root())),
            "sha256": hashlib.sha256(stored.read_bytes()).hexdigest(),
        }

    def find_stored_file(self, event_path: str) -> Path:
        """Return the path of an event's file; an older version, or another machine, may have had the log elsewhere."""
        path = Path(event_path)
        return self.folder / path.name if path.parent.name == self.folder.name else path


def _measure_complete_lines(file: FileIO) -> int:
    """Return the number of bytes up to the end of the last complete line."""
    size = file.seek(0, os.SEEK_END)
    while size:
        start = max(0, size - 65536)
        file.seek(start)
        line_end = file.read(size - start).rfind(b"\n")
        if line_end >= 0:
            return start + line_end + 1
        size = start
    return 0


def get_log_folder() -> Path:
    """Return the folder of all event logs, after those of an older version were moved into it."""
    root = repository.get_state_root()
    if (root / _LEGACY_LOG_FOLDER).is_dir():
        _move_legacy_logs(root / _LEGACY_LOG_FOLDER, root / LOG_FOLDER)
    return root / LOG_FOLDER


def _move_legacy_logs(legacy: Path, folder: Path) -> None:
    """Move each log atomically, but for those that a process of an older version still writes.

    An error, as on a full disk, leaves the rest to the next call.
    """
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        for log in map(EventLog, list(legacy.iterdir())):
            summary = log.load_summary()
            lock = locks.hold_lock(summary.lock) if summary.lock else contextlib.nullcontext()
            with contextlib.suppress(BusyError, StorageError, OSError), lock:
                log.folder.rename(folder / log.folder.name)
                if summary.lock and not summary.is_from_this_tree(log.run):
                    locks.delete_lock(summary.lock)
        legacy.rmdir()


def measure_logs() -> dict[str, int]:
    """Return the size in bytes of each event log, by the name of its folder."""
    sizes = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(get_log_folder()) as folders:
        for folder in folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                sizes[folder.name] = os.stat(f"{folder.path}/{_EVENTS_FILE}").st_size  # noqa: PTH116 - twice a second
    return sizes


def list_logs() -> list[EventLog]:
    """Return all event logs, the oldest first."""
    return [EventLog(path.parent) for path in sorted(get_log_folder().glob(f"*/{_EVENTS_FILE}"))]


def end_abandoned(lock: str, current: EventLog) -> None:
    """End every other log of the runs that this lock guards; the caller holds it, so their processes are dead."""
    for log in list_logs():
        if not lock.endswith(f"-{log.run}") or log.folder == current.folder:
            continue
        summary = log.load_summary()
        if summary.lock == lock and summary.status is None:
            log._end_as_killed()


def find_resumable(run: str, key: str) -> EventLog | None:
    """Return the newest log of a run with that key; None if it was evaluated: a repetition is another run."""
    logs = find_by_key(run, key)
    return logs[0] if logs and not logs[0].is_evaluated else None


def find_by_key(run: str, key: str) -> list[EventLog]:
    """Return the logs of a run that were created with that key, the newest first."""
    return [
        EventLog(folder) for folder in sorted(get_log_folder().glob(f"*-{run}-{_build_key_suffix(key)}"), reverse=True)
    ]


def _build_key_suffix(key: str) -> str:
    """Return the end of the names of logs with that key; it differs between pipelines and experiments' copies."""
    folder = repository.get_pipeline()
    place = [
        *([Path.cwd().name] if repository.is_experiment_copy() else []),
        *([folder.as_posix()] if folder != Path() else []),
    ]
    if place:
        key = hashlib.sha256(" ".join([*place, key]).encode()).hexdigest()
    return key[:_KEY_DIGITS]


def find_by_weights(run: str, weights_sha256: str) -> EventLog | None:
    """Return the newest log of a run of this pipeline whose training ended with these weights.

    Equal runs of several experiments end with equal weights. A copy of the repository takes its own logs only, and the
    repository another tree's only if it has none.
    """
    other_tree, experiment = None, get_experiment_name(repository.get_pipeline())
    for log in reversed(list_logs()):
        summary = log.load_summary() if log.run == run else None
        if summary and summary.experiment == experiment and weights_sha256 in summary.weights:
            if summary.is_from_this_tree(run):
                return log
            other_tree = other_tree or log
    return None if repository.is_experiment_copy() else other_tree
