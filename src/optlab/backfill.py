"""MLflow's view of a record that was made elsewhere: journals written from what git, and DVC's cache, have of it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optlab import config, project, runlog, store, tracking
from optlab.errors import RevisionError, TrackingError, one_line
from optlab.journal import with_key
from optlab.record import RunFiles
from optlab.revision import Revision


def write(revision: Revision) -> Iterator[str]:
    """Write a journal for each run of the revision that MLflow has not got; yields a sentence about each.

    All times are that of the commit: the record has none.

    Raises:
        RevisionError: its record is incomplete.
        ConfigError: its params.yaml cannot be used with this version.
        TrackingError: MLflow cannot be reached.
    """
    text = revision.read(config.PARAMS)
    if text is None:
        raise RevisionError(f"{revision.name}: has no {config.PARAMS}")
    settings = config.parse(text.decode(errors="replace"), Path(f"{revision.name}:{config.PARAMS}"))
    for name, seed in settings.runs():
        files = RunFiles(Path(), name, seed)
        trained, measured = revision.read_json(files.training), revision.read_json(files.test)
        if trained is None or measured is None:
            raise RevisionError(
                f"{revision.name}: the record of {files.id} is incomplete: `dvc repro` was not committed"
            )
        there = _in_mlflow(files.id, trained["weights_sha256"])
        if there:
            yield f"{files.id}: MLflow has it already, as run {there}"
            continue
        with_weights = _write(revision, settings, files, trained, measured)
        yield f"{files.id}: taken from {revision.name}, {'with' if with_weights else 'without'} its weights"


def _in_mlflow(run: str, weights: str) -> str | None:
    try:
        return tracking.find_run(runlog.EXPERIMENT, run, weights)
    except Exception as error:
        raise TrackingError(f"MLflow at {store.uri()} was not reached ({one_line(error)[:200]}): try later") from None


def _write(revision: Revision, settings: config.Config, files: RunFiles, trained: dict[str, Any],
           measured: dict[str, Any]) -> bool:  # fmt: skip
    """Returns whether the weights were at hand."""
    for earlier in with_key(files.id, trained["weights_sha256"]):  # from a call that was cut short, or another server's
        shutil.rmtree(earlier.folder)
    seconds = project.git("show", "-s", "--format=%ct", revision.commit) or "0"
    when, git = int(seconds) * 1000, {"git.commit": revision.commit, "git.dirty": "no"}
    conditions = revision.read_json(files.conditions) or {}
    content = revision.output(files.weights, revision.lock().get(f"train@{files.id}", {}).get("outs", []))
    with tempfile.TemporaryDirectory(prefix="optlab-sync-") as folder:
        weights = Path(folder) / files.weights.name if content else None
        if weights and content:
            weights.write_bytes(content)
        journal = runlog.restored(settings, files, weights, trained, conditions, when, git)
        runlog.evaluation(journal, files.id, weights, trained, measured, settings.model, when)
        journal.publish()
    return content is not None
