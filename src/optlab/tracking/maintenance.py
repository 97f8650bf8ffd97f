"""MLflow's view of a record that was made elsewhere: journals written from what git, and DVC's cache, have of it.

Journals that nobody needs any more: MLflow has all of them, and neither the record nor a training needs them.
"""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from optlab.analysis.comparison import Run, load_run_at_revision
from optlab.config import loader
from optlab.records import RUNS_FOLDER, RunFiles, TrainRecord, TuningFiles, TuningResult
from optlab.schema.parameters import Config
from optlab.system import git, locks
from optlab.system.errors import BusyError, TrackingError
from optlab.system.git import Revision
from optlab.tracking import mlflow_store, run_metadata, sync_state
from optlab.tracking.event_log import EventLog, find_by_key, list_logs
from optlab.tracking.log_uploader import get_uploaded_summary
from optlab.tracking.sync_state import LogSummary, SyncState
from optlab.training import tuned_values
from optlab.training.checkpoint import CHECKPOINTS_DIR


def backfill_runs(revision: Revision) -> Iterator[str]:
    """Write a journal for each run of the revision that MLflow has not got; yields a sentence about each.

    All times are that of the commit: the record has none.

    Raises:
        RevisionError: its record is incomplete.
        ConfigError: its params.yaml cannot be used with this version.
        TrackingError: MLflow cannot be reached.
    """
    settings = loader.load_at_revision(revision, revision.folder)
    runs = [
        load_run_at_revision(revision, RunFiles(revision.folder, name, seed)) for name, seed in settings.list_runs()
    ]
    for run, there in zip(runs, _find_existing_runs(revision.folder, runs), strict=True):
        if there:
            yield f"{run.files.id}: MLflow has it already, as run {there}"
            continue
        with_weights = _write_log(revision, settings, run)
        yield f"{run.files.id}: taken from {revision.name}, {'with' if with_weights else 'without'} its weights"


def _build_tags(revision: Revision, settings: Config, files: RunFiles) -> dict[str, str]:
    choice = TuningResult.read_at_revision(revision, TuningFiles(files.folder, files.optimizer).choice)
    return tuned_values.build_trial_tags(settings, choice, files.seed) if choice else {}


def _find_existing_runs(folder: Path, runs: list[Run]) -> list[str | None]:
    """Return the id that each run has in MLflow, or None."""
    wanted = [(run.files.id, run.trained.weights_sha256) for run in runs]
    try:
        return mlflow_store.find_run_ids(sync_state.get_experiment_name(folder), wanted)
    except Exception as error:
        raise TrackingError(
            f"MLflow at {mlflow_store.get_redacted_uri()} was not reached ({mlflow_store.describe_error(error)}): try "
            f"later"
        ) from None


def _write_log(revision: Revision, settings: Config, run: Run) -> bool:
    """Returns whether the weights were at hand."""
    files, trained = run.files, run.trained
    for earlier in find_by_key(files.id, trained.weights_sha256):  # from a call that was cut short, or another server's
        shutil.rmtree(earlier.folder)
    seconds = git.get_output("show", "-s", "--format=%ct", revision.commit) or "0"
    timestamp_ms, provenance = int(seconds) * 1000, {"git.commit": revision.commit, "git.dirty": "no"}
    content = revision.fetch_output(files.weights, revision.list_outs(f"train@{files.id}"))
    with tempfile.TemporaryDirectory(prefix="optlab-sync-") as folder:
        weights = Path(folder) / files.weights.name if content else None
        if weights and content:
            weights.write_bytes(content)
        log = run_metadata.create_log_from_record(
            settings,
            files,
            weights,
            trained,
            run.conditions,
            timestamp_ms,
            provenance,
            _build_tags(revision, settings, files),
        )
        run_metadata.log_evaluation(log, files.id, weights, trained, run.tested, settings.model, timestamp_ms)
        log.commit_draft()
    return content is not None


TRASH_FOLDER = (
    Path(".optlab") / "removed"
)  # where they lie while they are deleted: a journal is there whole or not at all

_SKIPPED_FOLDERS = (".git", ".optlab", "mlruns", "__pycache__")

_NOT_UPLOADED = "not ended, or not all in MLflow"
_IN_RECORD = "of the present record"
_RESUMABLE = "their runs may go on"
_LOCKED = "a process is at work on their runs"


@dataclass(frozen=True)
class PruneResult:
    """What became of a journal.

    Attributes:
        kept_reason: why it was, said of several; empty where it was removed.
        freed_bytes: bytes of its files, but for those that have another name elsewhere, as weights in DVC's cache.
    """

    name: str
    kept_reason: str = ""
    freed_bytes: int = 0


def prune() -> Iterator[PruneResult]:
    """Remove the journals that MLflow has whole, but for those of the present record and of runs that may go on.

    Raises:
        TrackingError: MLflow cannot be reached; nothing was removed.
        RecordError: a file of the record is damaged; nothing was removed.
        BusyError: another process does the same.
    """
    with locks.hold_lock("clean"):
        shutil.rmtree(TRASH_FOLDER, ignore_errors=True)  # of a call that was cut short
        logs = _find_uploaded_logs()
        recorded_digests = (
            _collect_recorded_digests()
        )  # after that: what a training has ended in between is not in MLflow by that look
        finished: set[str] = set()
        for log, summary in reversed(logs):  # the newest first
            yield _try_prune(log, summary, recorded_digests, finished)
            if summary and summary.status in ("completed", "diverged"):
                finished.add(summary.lock)


def _find_uploaded_logs() -> list[tuple[EventLog, LogSummary | None]]:
    """Every journal, with what it says where MLflow has taken all of it."""
    get_store_id = functools.cache(mlflow_store.get_store_id)
    try:
        get_store_id("")  # also where no journal asks
        return [(log, _drop_if_refused(get_uploaded_summary(log, get_store_id), log)) for log in list_logs()]
    except Exception as error:  # whatever MLflow raises
        raise TrackingError(
            f"MLflow at {mlflow_store.get_redacted_uri()} was not reached ({mlflow_store.describe_error(error)}): "
            f"nothing was removed"
        ) from None


def _drop_if_refused(summary: LogSummary | None, log: EventLog) -> LogSummary | None:
    """None where MLflow has refused a part; an earlier version has not noted whether."""
    return summary if SyncState.read(log.folder).refused == 0 else None


def _collect_recorded_digests() -> set[str]:
    """The SHA-256 of the weights of every run of the record, of all pipelines and of experiments under way."""
    linked = (path for depth in ("*/", "*/*/") for path in Path().glob(depth) if path.is_symlink())
    folders = (folder for top in (Path(), *linked) for folder in _walk_folders(top))
    paths = (path for folder in folders for path in folder.glob(f"{RUNS_FOLDER}/*/train.json"))
    return {TrainRecord.read(path).weights_sha256 for path in paths}


def _walk_folders(top: Path) -> Iterator[Path]:
    """A folder and all below it, but for what holds no pipeline and many files."""
    for folder, below, names in os.walk(top):
        if "pyvenv.cfg" in names:
            below.clear()
        own = Path(folder).name == ".dvc"  # its cache; what lies in tmp are experiments' copies
        below[:] = [name for name in below if (name == "tmp" if own else name not in _SKIPPED_FOLDERS)]
        yield Path(folder)


def _try_prune(
    log: EventLog, summary: LogSummary | None, recorded_digests: set[str], finished: set[str]
) -> PruneResult:
    name = log.folder.name
    if summary is None or summary.status is None:
        return PruneResult(name, _NOT_UPLOADED)
    if recorded_digests & set(summary.weights):
        return PruneResult(name, _IN_RECORD)
    if _can_resume(log, summary, finished):
        return PruneResult(name, _RESUMABLE)
    try:
        with locks.hold_lock(summary.lock), FileLock(log.folder / "lock", timeout=0):
            if get_uploaded_summary(log) != summary:  # somebody has added to it since
                return PruneResult(name, _NOT_UPLOADED)
            freed_bytes = _delete_folder(log.folder)
        if not summary.is_from_this_tree(log.run):
            locks.delete_lock(summary.lock)
        return PruneResult(name, freed_bytes=freed_bytes)
    except (BusyError, Timeout):
        return PruneResult(name, _LOCKED)


def _can_resume(log: EventLog, summary: LogSummary, finished: set[str]) -> bool:
    """Whether the next training would go on with it: it was stopped, and the run has not come to its end since."""
    if summary.status in ("completed", "diverged"):
        return False
    if not summary.is_from_this_tree(log.run):  # an experiment's copy does not come back
        return False
    return summary.lock not in finished or any(CHECKPOINTS_DIR.glob(f"*/*/{log.folder.name}"))


def _delete_folder(folder: Path) -> int:
    """Returns the bytes that it freed."""
    TRASH_FOLDER.mkdir(exist_ok=True)
    moved = folder.rename(TRASH_FOLDER / folder.name)
    sizes = [path.stat() for path in moved.rglob("*") if path.is_file()]
    shutil.rmtree(moved)
    with contextlib.suppress(OSError):  # there may be another one
        TRASH_FOLDER.rmdir()
    return sum(each.st_size for each in sizes if each.st_nlink == 1)
