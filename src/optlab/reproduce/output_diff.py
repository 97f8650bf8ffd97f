"""Comparison of a reproduced run with the recorded one: digests, numbers, conditions; and the report on it.

Reports go to the terminal, as JSON to programs, into an experiment of MLflow, and into the exit status.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from optlab.analysis import environment_diff
from optlab.records import Environment, EvalRecord, RunFiles, TrainRecord, TrialsRecord, TuningFiles
from optlab.system.errors import StorageError
from optlab.system.files import compute_content_md5, compute_md5
from optlab.system.git import Revision
from optlab.tracking import mlflow_store, uploader
from optlab.tracking.event_log import EventLog, get_current_time_ms, get_experiment_name

ReproductionVerdict = Literal["identical", "within tolerance", "different", "not run"]

MLFLOW_EXPERIMENT = "optlab-reproductions"
_EXIT_STATUS: dict[ReproductionVerdict, int] = {  # the worst verdict first
    "not run": 2, "different": 1, "within tolerance": 3, "identical": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OutputDigests:
    """One output file: the MD5 in dvc.lock, and that of the reproduced file (None: not written)."""

    path: str
    recorded: str
    reproduced: str | None

    @property
    def is_identical(self) -> bool:
        return self.recorded == self.reproduced


@dataclasses.dataclass(frozen=True)
class MaxDifference:
    """Largest difference between two lists of numbers.

    Attributes:
        absolute: the largest |a - b|.
        relative: the largest |a - b| / |a| of numbers; the largest ‖a - b‖ / ‖a‖ of weight tensors.
    """

    absolute: float
    relative: float


# Largest differences that another order of rounding may cause: about twice those between AVX2 and AVX-512 after 3,520
# steps of Adam (docs/determinism.md). Rounding begins in a float32's last bits; another computation begins with more.
TOLERANCES = {
    "first_loss": MaxDifference(np.inf, 1e-5),
    "train_loss": MaxDifference(np.inf, 0.01),
    "validation_loss": MaxDifference(np.inf, 0.1),
    "test_loss": MaxDifference(np.inf, 0.05),
    "test_accuracy": MaxDifference(0.02, np.inf),
}


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """One run's, or tuning's, verdict. The field names are the keys of `optlab reproduce --json`.

    Attributes:
        outputs: every output of its stages.
        first_difference: (epoch from 1, step from 0 over the run) of the first loss that differs.
        gaps: of the weights (if the recorded ones are available), of the losses of all steps, of the first of them
            that differs, of the epochs' train_loss and validation_loss, of test_loss and test_accuracy.
        conditions: name → (recorded, here) of what differs, the likely cause first.
        reason: why it could not be run, or a summary of the numbers.
    """

    run: str
    verdict: ReproductionVerdict
    outputs: list[OutputDigests]
    first_difference: tuple[int, int] | None = None
    gaps: dict[str, MaxDifference] = dataclasses.field(default_factory=dict)
    conditions: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    reason: str = ""


def compare_outputs(revision: Revision, tree: Path, files: RunFiles, outs: list[dict[str, Any]]) -> Reproduction:
    """Compare the outputs of a run in `tree` with the record of the revision.

    Args:
        outs: the outputs of its stages in dvc.lock.
    """
    outputs = _compute_digests(tree, outs)
    conditions = environment_diff.diff_environments(
        read_environment(revision, files), Environment.read(tree / files.environment)
    )
    search_outs = revision.list_outs(TuningFiles.find(files.folder, files.optimizer, files.seed, revision).stage)
    if reason := _describe_altered_file(revision, [*outs, *search_outs]) or _describe_unlisted_file(
        revision, files, outs
    ):
        return Reproduction(files.id, "different", outputs, conditions=conditions, reason=reason)
    if all(output.is_identical for output in outputs):
        reason = "every output has the recorded digest"
        return Reproduction(files.id, "identical", outputs, conditions=conditions, reason=reason)
    if added := _find_added_fields(revision, tree, outputs):
        reason = f"identical but for fields that the record lacks: {', '.join(added)}"
        return Reproduction(files.id, "identical", outputs, conditions=conditions, reason=reason)
    recorded = TrainRecord.read_at_revision(revision, files.training)
    if recorded is None:
        reason = f"{files.training} is not in the revision, so there are no losses to compare"
        return Reproduction(files.id, "different", outputs, conditions=conditions, reason=reason)
    reproduced = TrainRecord.read(tree / files.training)
    tested = EvalRecord.read_at_revision(revision, files.test) or EvalRecord(status=recorded.status)
    first = find_first_difference(recorded.step_losses, reproduced.step_losses)
    gaps = {"weights": _compare_weights(revision.fetch_output(files.weights, outs), tree / files.weights)}
    gaps |= _compare_losses(recorded, reproduced, first)
    retested = EvalRecord.read(tree / files.test)
    for name in ("test_loss", "test_accuracy"):
        gaps[name] = _compare_values([getattr(tested, name)], [getattr(retested, name)])
    known = {name: gap for name, gap in gaps.items() if gap}
    if first is None:
        close, reason = False, "every loss is the recorded one, so rounding does not explain another digest"
    else:
        steps, other_steps = ([len(losses) for losses in each.step_losses] for each in (recorded, reproduced))
        close = recorded.status == reproduced.status and steps == other_steps
        close = close and all(_is_within(known.get(name), limit) for name, limit in TOLERANCES.items())
        reason = f"the loss first differs in epoch {first[0]}, step {first[1]}"
    verdict: ReproductionVerdict = "within tolerance" if close else "different"
    return Reproduction(files.id, verdict, outputs, first, known, conditions, reason)


def _describe_altered_file(revision: Revision, outs: list[dict[str, Any]]) -> str | None:
    """Return a sentence on the first output in git without the digest of dvc.lock: readers of the record read it."""
    for each in outs:
        content = revision.read(Path(each["path"]))
        if content is not None and compute_content_md5(content) != each["md5"]:
            return f"{each['path']} in the commit is not the file whose digest is in dvc.lock"
    return None


def _describe_unlisted_file(revision: Revision, files: RunFiles, outs: list[dict[str, Any]]) -> str | None:
    """Return a sentence on the first file of the run's record in git that dvc.lock has no digest of."""
    listed = {each["path"] for each in outs}
    for path in (files.training, files.test):
        if path.as_posix() not in listed and revision.read(path) is not None:
            return f"{path} is in the commit, and dvc.lock has no digest of it"
    return None


def read_environment(revision: Revision, files: RunFiles) -> Environment | None:
    """Return the recorded environment of a run; None if there is none, or if it is of another training."""
    environment = Environment.read_at_revision(revision, files.environment)
    trained = TrainRecord.read_at_revision(revision, files.training)
    known = environment.weights_sha256 if environment else None  # records of older versions have none
    return None if known and trained and known != trained.weights_sha256 else environment


def compare_tuning(
    revision: Revision, tree: Path, tuning_files: TuningFiles, outs: list[dict[str, Any]]
) -> Reproduction:
    """Compare the trials and the choice of a search, repeated in `tree`, with the record of the revision.

    The keys of the trials are not compared: they are digests of code and package versions as well as of parameters.

    Args:
        tuning_files: of the search, as the revision has them.
        outs: the outputs of its stage as dvc.lock has them.
    """
    stage, path = tuning_files.stage, tuning_files.trials
    outputs = _compute_digests(tree, outs)
    if reason := _describe_altered_file(revision, outs):
        return Reproduction(stage, "different", outputs, reason=reason)
    if all(output.is_identical for output in outputs):
        return Reproduction(stage, "identical", outputs, reason="every trial and the choice are the recorded ones")
    recorded, reproduced = (
        [trial.model_copy(update={"key": ""}) for trial in (*record.trials, *record.sensitivity)] if record else []
        for record in (TrialsRecord.read_at_revision(revision, path), TrialsRecord.read(tree / path))
    )
    names = ["default" if trial.index is None else str(trial.index) for trial in reproduced if trial not in recorded]
    if names:
        reason = f"{len(names)} of {len(reproduced)} trials differ: {', '.join(names[:10])}"
    elif recorded != reproduced:
        reason = f"{len(recorded)} trials are recorded, and {len(reproduced)} of them repeated"
    elif any(not output.is_identical for output in outputs if Path(output.path) != path):
        reason = "every trial is the recorded one, but the choice differs"
    else:
        reason = "every trial and the choice are the recorded ones; keys of trials differ, by code or package versions"
        return Reproduction(stage, "identical", outputs, reason=reason)
    return Reproduction(stage, "different", outputs, reason=reason)


def _compute_digests(tree: Path, outs: list[dict[str, Any]]) -> list[OutputDigests]:
    """Return the recorded digest of each output in dvc.lock, and that of the file in `tree`."""
    return [OutputDigests(each["path"], each["md5"], compute_md5(tree / each["path"])) for each in outs]


def _find_added_fields(revision: Revision, tree: Path, outputs: list[OutputDigests]) -> list[str]:
    """Return the fields that the reproduced JSON files have and the recorded ones have not; none if more differs."""
    added = []
    for output in outputs:
        if output.is_identical:
            continue
        content = revision.read(Path(output.path)) if output.path.endswith(".json") and output.reproduced else None
        try:
            recorded, reproduced = json.loads(content or b""), json.loads((tree / output.path).read_bytes())
        except ValueError:  # damaged, or no JSON file
            return []
        if not recorded.items() <= reproduced.items():
            return []
        added += [each for each in reproduced if each not in recorded]
    return added


def find_first_difference(before: list[list[float | None]], after: list[list[float | None]]) -> tuple[int, int] | None:
    """Return (epoch from 1, step from 0 over the run) of the first loss that differs, or that only one run has."""
    step = 0
    for epoch in range(1, max(len(before), len(after)) + 1):
        ours, theirs = (losses[epoch - 1] if epoch <= len(losses) else [] for losses in (before, after))
        for index in range(max(len(ours), len(theirs))):
            if ours[index : index + 1] != theirs[index : index + 1]:
                return epoch, step + index
        step += len(ours)
    return None


def _compare_losses(
    recorded: TrainRecord, reproduced: TrainRecord, first: tuple[int, int] | None
) -> dict[str, MaxDifference | None]:
    before, after = ([loss for epoch in each.step_losses for loss in epoch] for each in (recorded, reproduced))
    gaps = {
        "step_loss": _compare_values(before, after),
        "first_loss": _compare_values(before[first[1] :][:1], after[first[1] :][:1]) if first else None,
    }
    for name in ("train_loss", "validation_loss"):
        gaps[name] = _compare_values(
            *([getattr(epoch, name) for epoch in each.history] for each in (recorded, reproduced))
        )
    return gaps


def _compare_values(before: list[float | None], after: list[float | None]) -> MaxDifference | None:
    """Compare the pairs that both lists have; infinite if only one has a number, None if neither has any."""
    every = list(zip(before, after, strict=False))
    if any((one is None) != (other is None) for one, other in every):
        return MaxDifference(np.inf, np.inf)
    pairs = [(one, other) for one, other in every if one is not None and other is not None]
    if not pairs:
        return None
    ours, theirs = np.array(pairs).T
    distance = np.abs(ours - theirs)
    relative = distance / np.maximum(np.abs(ours), np.finfo(np.float32).tiny)
    return MaxDifference(float(distance.max()), float(relative.max()))


def _compare_weights(recorded: bytes | None, path: Path) -> MaxDifference | None:
    if recorded is None or not path.is_file():
        return None
    before, after = safetensors.numpy.load(recorded), safetensors.numpy.load_file(path)
    if before.keys() != after.keys() or any(before[key].shape != after[key].shape for key in before):
        return None
    differences = {key: before[key].astype(np.float64) - after[key] for key in before if before[key].size}
    norms = {key: max(float(np.linalg.norm(before[key])), float(np.finfo(np.float32).tiny)) for key in differences}
    return MaxDifference(
        max(float(np.abs(each).max()) for each in differences.values()),
        max(float(np.linalg.norm(each)) / norms[key] for key, each in differences.items()),
    )


def _is_within(gap: MaxDifference | None, limit: MaxDifference) -> bool:
    """Tell if a difference is within its tolerance; a number that neither run has is."""
    return gap is None or (gap.absolute <= limit.absolute and gap.relative <= limit.relative)


def get_exit_status(results: list[Reproduction]) -> int:
    """Return 0 if all are identical, else that of the worst: 2 not run, 1 different, 3 within tolerance."""
    verdicts = {result.verdict for result in results}
    return next(status for verdict, status in _EXIT_STATUS.items() if verdict in verdicts)


def format_json(revision: Revision, results: list[Reproduction]) -> str:
    """Format all results as JSON."""
    values = {
        "revision": revision.name,
        "commit": revision.commit,
        "exit_status": get_exit_status(results),
        "runs": [_replace_non_finite(dataclasses.asdict(result)) for result in results],
    }
    return json.dumps(values, indent=2, allow_nan=False)


def _replace_non_finite(value: Any) -> Any:
    """Replace the numbers that JSON lacks by text: a gap is infinite if only one run has a number."""
    if isinstance(value, dict):
        return {key: _replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def format_text(revision: Revision, results: list[Reproduction]) -> str:
    """Format a table of runs, then the differences of each run that is not identical."""
    lines = ["", f"{revision.name} ({revision.commit[:12]})", ""]
    width = max(len(result.run) for result in results)
    for result in results:
        same = sum(output.is_identical for output in result.outputs)
        lines.append(
            f"{result.run:<{width}}  {result.verdict:<16}  {same}/{len(result.outputs)} outputs  {result.reason}"
        )
    for result in results:
        if result.verdict != "identical":
            lines += ["", result.run, *_describe_differences(result)]
    return "\n".join([*lines, ""])


def _describe_differences(result: Reproduction) -> list[str]:
    lines = [
        f"  {output.path}  recorded {output.recorded}, now {output.reproduced or 'not written'}"
        for output in result.outputs
        if not output.is_identical
    ]
    lines += [
        f"  largest difference of {name.replace('_', ' ')}: {gap.absolute:.3g}, relative {gap.relative:.3g}"
        for name, gap in result.gaps.items()
    ]
    if result.gaps and "weights" not in result.gaps:
        lines.append("  the recorded weights are in no cache or remote here, so they are not compared")
    if result.conditions:
        lines.append("  conditions that differ, the likely cause first:")
        lines += [f"    {name}: {old} → {new}" for name, (old, new) in result.conditions.items()]
    elif result.verdict != "not run" and not result.run.startswith("tune@"):
        lines.append("  no recorded condition differs: is the code at the revision deterministic?")
    return lines


def log_to_mlflow(revision: Revision, result: Reproduction, weights: str | None) -> None:
    """Log a result as a run of MLflow's experiment `optlab-reproductions`; a failure is a warning on stderr.

    Args:
        weights: SHA-256 of the recorded weights, which finds the original run.
    """
    try:
        _write_event_log(revision, result, _find_original_run(revision, result.run, weights))
    except StorageError as error:
        print(f"warning: {error}", file=sys.stderr)


def _write_event_log(revision: Revision, result: Reproduction, original: str | None) -> None:
    event_log = EventLog.create(f"reproduce-{result.run}")
    tags: dict[str, Any] = {
        "reproduces.revision": revision.name,
        "reproduces.commit": revision.commit,
        "reproduces.run": result.run,
        "verdict": result.verdict,
    }
    if original:
        tags["reproduces.mlflow_run"] = original
    now = get_current_time_ms()
    event_log.append("start", time=now, name=f"{result.run} of {revision.name}", experiment=MLFLOW_EXPERIMENT,
                   tags=tags, dataset=None,
                   params={f"differs.{name}": f"{old} → {new}" for name, (old, new) in result.conditions.items()},
                   )  # fmt: skip
    identical = float(result.verdict == "identical")
    values = {"identical": identical} | {
        f"difference/{name}": gap.absolute if math.isfinite(gap.absolute) else math.nan  # MLflow shows inf as 1.8e308
        for name, gap in result.gaps.items()
    }
    event_log.log_metrics([(name, value, now, 0) for name, value in values.items()])
    event_log.end("failed" if result.verdict == "not run" else "completed")
    uploader.push_pending()


def _find_original_run(revision: Revision, run: str, weights: str | None) -> str | None:
    """Return the id of the MLflow run with these weights, if there is one here."""
    if weights is None:
        return None
    try:
        return mlflow_store.find_run_ids(get_experiment_name(revision.folder), [(run, weights)])[0]
    except Exception as error:
        print(f"warning: MLflow was not reached: {mlflow_store.describe_error(error)}", file=sys.stderr)
        return None
