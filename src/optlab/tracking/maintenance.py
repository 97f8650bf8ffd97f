"""Maintenance of event logs: write those of a git revision's recorded runs, and prune those that nobody needs."""

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
from optlab.records import RUNS_FOLDER, Choice, RunFiles, TrainRecord, TuningFiles
from optlab.schema.parameters import Config
from optlab.system import git, locks, repository, source_code
from optlab.system.errors import BusyError, TrackingError
from optlab.system.git import Revision
from optlab.tracking import event_log, mlflow_store, run_metadata
from optlab.tracking.event_log import EventLog, LogSummary, SyncState, find_by_key, list_logs
from optlab.tracking.uploader import get_uploaded_summary
from optlab.training.checkpoint import CHECKPOINTS_DIR

TRASH_FOLDER = Path(".optlab") / "trash"  # of logs while they are deleted: a log is in its place whole, or not at all

_LEGACY_TRASH_FOLDER = Path(".optlab") / "removed"  # of older versions
_SKIPPED_FOLDERS = (".git", ".optlab", "mlruns", "__pycache__")
_NOT_UPLOADED = "not ended, or not all in MLflow"
_IN_RECORD = "of the present record"
_RESUMABLE = "their runs may go on"
_LOCKED = "a process is at work on their runs"


def backfill_runs(revision: Revision) -> Iterator[str]:
    """Write an event log for each run of a revision that MLflow does not have; yield a sentence about each run.

    All times are that of the commit: the record has none.

    Raises:
        RevisionError: its record is incomplete.
        ConfigError: its params.yaml cannot be used with this version.
        TrackingError: MLflow cannot be reached.
    """
    config = loader.load_at_revision(revision, revision.folder)
    runs = [load_run_at_revision(revision, RunFiles(revision.folder, name, seed)) for name, seed in config.list_runs()]
    for run, run_id in zip(runs, _find_run_ids(revision.folder, runs), strict=True):
        if run_id:
            yield f"{run.files.id}: MLflow has it already, as run {run_id}"
            continue
        has_weights = _write_log(revision, config, run)
        yield f"{run.files.id}: taken from {revision.name}, {'with' if has_weights else 'without'} its weights"


def _find_changed_modules(revision: Revision, model: str) -> list[Path]:
    """Return the modules of a model that differ from the revision's: with them, its weights make another model."""
    top, present = model.partition(".")[0], source_code.find_user_modules([model])
    former = [Path(f"{top}.py"), repository.CUSTOM / f"{top}.py"] if "." in model and not present else []
    return [
        *(name for name in present if revision.read(name) != name.read_bytes()),
        *(name for name in former if revision.read(name) is not None),
    ]


def _find_run_ids(folder: Path, runs: list[Run]) -> list[str | None]:
    wanted = [(run.files.id, run.trained.weights_sha256) for run in runs]
    try:
        return mlflow_store.find_run_ids(event_log.get_experiment_name(folder), wanted)
    except Exception as error:
        raise _make_unreachable_error(error, "try later") from None


def _make_unreachable_error(error: Exception, consequence: str) -> TrackingError:
    uri = mlflow_store.get_redacted_uri()
    return TrackingError(f"MLflow at {uri} was not reached ({mlflow_store.describe_error(error)}): {consequence}")


def _write_log(revision: Revision, config: Config, run: Run) -> bool:
    """Write the log of a run, and return whether git or DVC's cache has its weights."""
    files, trained = run.files, run.trained
    for earlier in find_by_key(files.id, trained.weights_sha256):  # from a call that was cut short, or another server's
        shutil.rmtree(earlier.folder)
    seconds = git.get_output("show", "-s", "--format=%ct", revision.commit) or "0"
    timestamp_ms, provenance = int(seconds) * 1000, {"git.commit": revision.commit, "git.dirty": "no"}
    tuning_files = TuningFiles.find(files.folder, files.optimizer, files.seed, revision)
    choice = Choice.read_at_revision(revision, tuning_files.choice)
    tags = run_metadata.build_trial_tags(config, choice, files.seed)
    content = revision.fetch_output(files.weights, revision.list_outs(f"train@{files.id}"))
    with tempfile.TemporaryDirectory(prefix="optlab-sync-") as folder:
        weights = Path(folder) / files.weights.name if content else None
        if weights and content:
            weights.write_bytes(content)
        log = run_metadata.create_log_from_record(
            config, files, weights, trained, run.conditions, timestamp_ms, provenance, tags
        )
        has_same_code = not _find_changed_modules(revision, config.model)
        run_metadata.log_evaluation(
            log, files.id, weights if has_same_code else None, trained, run.tested, config.model, timestamp_ms
        )
        log.commit_draft()
    return content is not None


@dataclass(frozen=True)
class PruneResult:
    """Outcome for one event log.

    Attributes:
        name: of the log's folder.
        kept_reason: reason in words about several logs; empty if the log was removed.
        freed_bytes: bytes of its files, but for those that have another name elsewhere, as weights in DVC's cache.
    """

    name: str
    kept_reason: str = ""
    freed_bytes: int = 0


def prune() -> Iterator[PruneResult]:
    """Remove the logs that MLflow has completely, but for those of the present record and of runs that may resume.

    Raises:
        TrackingError: MLflow cannot be reached; nothing was removed.
        RecordError: a file of the record is damaged; nothing was removed.
        BusyError: another process does the same.
    """
    with locks.hold_lock("clean"):
        for folder in (TRASH_FOLDER, _LEGACY_TRASH_FOLDER):
            shutil.rmtree(folder, ignore_errors=True)  # of a call that was cut short
        logs = _list_logs_with_uploads()
        # After that: a training that has ended in between had not been uploaded when its log was examined.
        recorded_digests = _collect_recorded_digests()
        finished: set[str] = set()
        for log, summary in reversed(logs):  # the newest first
            yield _try_prune(log, summary, recorded_digests, finished)
            if summary and summary.status in ("completed", "diverged"):
                finished.add(summary.lock)


def _list_logs_with_uploads() -> list[tuple[EventLog, LogSummary | None]]:
    """Return every log, with its summary if MLflow has taken all of it."""
    get_store_id = functools.cache(mlflow_store.get_store_id)
    try:
        get_store_id("")  # also where no log asks
        # A log of which MLflow has refused a part, or of an older version that did not count that, is not complete.
        return [
            (log, get_uploaded_summary(log, get_store_id) if SyncState.read(log.folder).refused == 0 else None)
            for log in list_logs()
        ]
    except Exception as error:  # whatever MLflow raises
        raise _make_unreachable_error(error, "nothing was removed") from None


def _collect_recorded_digests() -> set[str]:
    """Return the SHA-256 of the weights of every recorded run, of all pipelines and of experiments under way."""
    linked = (path for depth in ("*/", "*/*/") for path in Path().glob(depth) if path.is_symlink())
    folders = (folder for top in (Path(), *linked) for folder in _walk_folders(top))
    paths = (path for folder in folders for path in folder.glob(f"{RUNS_FOLDER}/*/train.json"))
    return {TrainRecord.read(path).weights_sha256 for path in paths}


def _walk_folders(top: Path) -> Iterator[Path]:
    """Yield a folder and all below it, but for those that hold no pipeline and many files."""
    for folder, below, names in os.walk(top):
        if "pyvenv.cfg" in names:
            below.clear()
        is_dvc = Path(folder).name == ".dvc"  # with its cache; experiments' copies are in its tmp
        below[:] = [name for name in below if (name == "tmp" if is_dvc else name not in _SKIPPED_FOLDERS)]
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
            if get_uploaded_summary(log) != summary:  # it has grown since
                return PruneResult(name, _NOT_UPLOADED)
            freed_bytes = _delete_folder(log.folder)
        if not summary.is_from_this_tree(log.run):
            locks.delete_lock(summary.lock)
        return PruneResult(name, freed_bytes=freed_bytes)
    except (BusyError, Timeout):
        return PruneResult(name, _LOCKED)


def _can_resume(log: EventLog, summary: LogSummary, finished: set[str]) -> bool:
    """Return whether the next training may resume the run: it was stopped, and no later process has finished it."""
    if summary.status in ("completed", "diverged"):
        return False
    if not summary.is_from_this_tree(log.run):  # an experiment's copy does not come back
        return False
    return summary.lock not in finished or any(CHECKPOINTS_DIR.glob(f"*/*/{log.folder.name}"))


def _delete_folder(folder: Path) -> int:
    """Delete a log's folder, and return the bytes that this frees."""
    TRASH_FOLDER.mkdir(exist_ok=True)
    moved = folder.rename(TRASH_FOLDER / folder.name)
    sizes = [path.stat() for path in moved.rglob("*") if path.is_file()]
    shutil.rmtree(moved)
    with contextlib.suppress(OSError):  # there may be another one
        TRASH_FOLDER.rmdir()
    return sum(each.st_size for each in sizes if each.st_nlink == 1)
