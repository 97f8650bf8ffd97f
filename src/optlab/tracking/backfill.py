"""MLflow's view of a record that was made elsewhere: journals written from what git, and DVC's cache, have of it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optlab.config import reading
from optlab.config.parameters import Config
from optlab.record.contents import Choice
from optlab.record.runs import RunFiles, TuningFiles
from optlab.results.comparison import Run, recorded
from optlab.system import git
from optlab.system.errors import TrackingError
from optlab.system.revision import Revision
from optlab.tracking import facts, notes, server
from optlab.tracking.journal import with_key
from optlab.tuning import settling


def write(revision: Revision) -> Iterator[str]:
    """Write a journal for each run of the revision that MLflow has not got; yields a sentence about each.

    All times are that of the commit: the record has none.

    Raises:
        RevisionError: its record is incomplete.
        ConfigError: its params.yaml cannot be used with this version.
        TrackingError: MLflow cannot be reached.
    """
    settings = reading.at(revision, revision.folder)
    runs = [recorded(revision, RunFiles(revision.folder, name, seed)) for name, seed in settings.runs()]
    for run, there in zip(runs, _find_in_mlflow(revision.folder, runs), strict=True):
        if there:
            yield f"{run.files.id}: MLflow has it already, as run {there}"
            continue
        with_weights = _write(revision, settings, run)
        yield f"{run.files.id}: taken from {revision.name}, {'with' if with_weights else 'without'} its weights"


def _tags(revision: Revision, settings: Config, files: RunFiles) -> dict[str, str]:
    choice = Choice.at(revision, TuningFiles(files.folder, files.optimizer).choice)
    return settling.tags(settings, choice, files.seed) if choice else {}


def _find_in_mlflow(folder: Path, runs: list[Run]) -> list[str | None]:
    """Return the id that each run has in MLflow, or None."""
    wanted = [(run.files.id, run.trained.weights_sha256) for run in runs]
    try:
        return server.find_run_ids(notes.experiment(folder), wanted)
    except Exception as error:
        raise TrackingError(
            f"MLflow at {server.shown()} was not reached ({server.describe(error)}): try later"
        ) from None


def _write(revision: Revision, settings: Config, run: Run) -> bool:
    """Returns whether the weights were at hand."""
    files, trained = run.files, run.trained
    for earlier in with_key(files.id, trained.weights_sha256):  # from a call that was cut short, or another server's
        shutil.rmtree(earlier.folder)
    seconds = git.ask("show", "-s", "--format=%ct", revision.commit) or "0"
    when, state = int(seconds) * 1000, {"git.commit": revision.commit, "git.dirty": "no"}
    content = revision.output(files.weights, revision.outs(f"train@{files.id}"))
    with tempfile.TemporaryDirectory(prefix="optlab-sync-") as folder:
        weights = Path(folder) / files.weights.name if content else None
        if weights and content:
            weights.write_bytes(content)
        journal = facts.restored(
            settings, files, weights, trained, run.conditions, when, state, _tags(revision, settings, files)
        )
        facts.evaluation(journal, files.id, weights, trained, run.tested, settings.model, when)
        journal.publish()
    return content is not None
