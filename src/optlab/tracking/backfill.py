"""MLflow's view of a record that was made elsewhere: journals written from what git, and DVC's cache, have of it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optlab.config import parameters, reading
from optlab.record.contents import Conditions, Evaluated, Trained
from optlab.record.runs import RunFiles
from optlab.system import git
from optlab.system.errors import RevisionError, TrackingError, one_line
from optlab.system.revision import Revision
from optlab.tracking import facts, server
from optlab.tracking.journal import with_key


def write(revision: Revision) -> Iterator[str]:
    """Write a journal for each run of the revision that MLflow has not got; yields a sentence about each.

    All times are that of the commit: the record has none.

    Raises:
        RevisionError: its record is incomplete.
        ConfigError: its params.yaml cannot be used with this version.
        TrackingError: MLflow cannot be reached.
    """
    text = revision.read(parameters.PARAMS)
    if text is None:
        raise RevisionError(f"{revision.name}: has no {parameters.PARAMS}")
    settings = reading.parse(text.decode(errors="replace"), Path(f"{revision.name}:{parameters.PARAMS}"))
    for name, seed in settings.runs():
        files = RunFiles(Path(), name, seed)
        trained, measured = Trained.at(revision, files.training), Evaluated.at(revision, files.test)
        if trained is None or measured is None:
            raise RevisionError(
                f"{revision.name}: the record of {files.id} is incomplete: `dvc repro` was not committed"
            )
        there = _in_mlflow(files.id, trained.weights_sha256)
        if there:
            yield f"{files.id}: MLflow has it already, as run {there}"
            continue
        with_weights = _write(revision, settings, files, trained, measured)
        yield f"{files.id}: taken from {revision.name}, {'with' if with_weights else 'without'} its weights"


def _in_mlflow(run: str, weights: str) -> str | None:
    try:
        return server.find_run(facts.EXPERIMENT, run, weights)
    except Exception as error:
        raise TrackingError(f"MLflow at {server.uri()} was not reached ({one_line(error)[:200]}): try later") from None


def _write(revision: Revision, settings: parameters.Config, files: RunFiles, trained: Trained,
           measured: Evaluated) -> bool:  # fmt: skip
    """Returns whether the weights were at hand."""
    for earlier in with_key(files.id, trained.weights_sha256):  # from a call that was cut short, or another server's
        shutil.rmtree(earlier.folder)
    seconds = git.ask("show", "-s", "--format=%ct", revision.commit) or "0"
    when, state = int(seconds) * 1000, {"git.commit": revision.commit, "git.dirty": "no"}
    conditions = Conditions.at(revision, files.conditions)
    content = revision.output(files.weights, revision.lock().get(f"train@{files.id}", {}).get("outs", []))
    with tempfile.TemporaryDirectory(prefix="optlab-sync-") as folder:
        weights = Path(folder) / files.weights.name if content else None
        if weights and content:
            weights.write_bytes(content)
        journal = facts.restored(settings, files, weights, trained, conditions, when, state)
        facts.evaluation(journal, files.id, weights, trained, measured, settings.model, when)
        journal.publish()
    return content is not None
