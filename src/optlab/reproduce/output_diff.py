"""Is a run that was trained again the one that was recorded? Digests, numbers, and the conditions that differ."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from optlab.analysis import environment_diff
from optlab.records import Environment, EvalRecord, RunFiles, TrainRecord, TrialRecord, TrialsRecord, TuningFiles
from optlab.system.git import Revision

ReproductionVerdict = Literal["identical", "within tolerance", "different", "not run"]


@dataclasses.dataclass(frozen=True)
class OutputDigests:
    """One file of the record: the MD5 in dvc.lock, and that of the file just computed (None: not written)."""

    path: str
    recorded: str
    reproduced: str | None

    @property
    def is_identical(self) -> bool:
        return self.recorded == self.reproduced


@dataclasses.dataclass(frozen=True)
class MaxDifference:
    """How far two lists of numbers are apart.

    Attributes:
        absolute: the largest |a - b|.
        relative: of single figures the largest |a - b| / |a|; of weights the largest ‖a - b‖ / ‖a‖ of a tensor.
    """

    absolute: float
    relative: float


# How far rounding in another order may lead: about twice what AVX2 and AVX-512 are apart after 3,520 steps of Adam (see
# docs/determinism.md). It begins with the last bits of a float32; another computation begins with more.
TOLERANCES = {
    "first_loss": MaxDifference(np.inf, 1e-5),
    "train_loss": MaxDifference(np.inf, 0.01),
    "validation_loss": MaxDifference(np.inf, 0.1),
    "test_loss": MaxDifference(np.inf, 0.05),
    "test_accuracy": MaxDifference(0.02, np.inf),
}


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """The verdict on one run.

    Attributes:
        outputs: every output of its stages.
        first_difference: (epoch from 1, step from 0 over the run) of the first loss that differs.
        gaps: of the weights (where the recorded ones are at hand), of the losses of all steps, of the first of them
            that differs, of the epochs' train_loss and validation_loss, of test_loss and test_accuracy.
        conditions: name → (recorded, here) of what differs, the likely cause first.
        reason: why it could not be run, or what the numbers say.
    """

    run: str
    verdict: ReproductionVerdict
    outputs: list[OutputDigests]
    first_difference: tuple[int, int] | None = None
    gaps: dict[str, MaxDifference] = dataclasses.field(default_factory=dict)
    conditions: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    reason: str = ""


def compare_outputs(revision: Revision, tree: Path, files: RunFiles, outs: list[dict[str, Any]]) -> Reproduction:
    """Compare what a run wrote in `tree` with the record of the revision.

    Args:
        outs: the outputs of its stages as dvc.lock has them.
    """
    outputs = [OutputDigests(each["path"], each["md5"], compute_md5(tree / each["path"])) for each in outs]
    conditions = environment_diff.diff_environments(
        Environment.read_at_revision(revision, files.environment), Environment.read(tree / files.environment)
    )
    if all(output.is_identical for output in outputs):
        reason = "every output has the recorded digest"
        return Reproduction(files.id, "identical", outputs, conditions=conditions, reason=reason)
    recorded = TrainRecord.read_at_revision(revision, files.training)
    if recorded is None:
        reason = f"{files.training} is not in the revision, so there are no losses to compare"
        return Reproduction(files.id, "different", outputs, conditions=conditions, reason=reason)
    reproduced = TrainRecord.read(tree / files.training)
    tested = EvalRecord.read_at_revision(revision, files.test) or EvalRecord(status=recorded.status)
    first = find_first_difference(recorded.step_losses, reproduced.step_losses)
    gaps = {"weights": _compare_weights(revision.fetch_output(files.weights, outs), tree / files.weights)}
    gaps |= _compare_training(recorded, reproduced, first) | _compare_test_metrics(
        tested, EvalRecord.read(tree / files.test)
    )
    differences = {name: gap for name, gap in gaps.items() if gap}
    if first is None:
        close, reason = False, "every loss is the recorded one, so rounding does not explain another digest"
    else:
        same_shape = recorded.status == reproduced.status and _count_steps(recorded) == _count_steps(reproduced)
        close = same_shape and all(_is_within(differences.get(name), limit) for name, limit in TOLERANCES.items())
        reason = f"the loss first differs in epoch {first[0]}, step {first[1]}"
    return Reproduction(
        files.id, "within tolerance" if close else "different", outputs, first, differences, conditions, reason
    )


def compare_tuning(revision: Revision, tree: Path, stage: str, outs: list[dict[str, Any]]) -> Reproduction:
    """Compare the trials and the choice of a search, repeated in `tree`, with the record of the revision.

    The keys of the trials are not compared: they are digests of code and package versions as well as of parameters.

    Args:
        stage: such as `tune@adam`.
        outs: the outputs of the stage as dvc.lock has them.
    """
    outputs = [OutputDigests(each["path"], each["md5"], compute_md5(tree / each["path"])) for each in outs]
    if all(output.is_identical for output in outputs):
        return Reproduction(stage, "identical", outputs, reason="every trial and the choice are the recorded ones")
    path = TuningFiles(revision.folder, stage.removeprefix("tune@")).trials
    recorded, reproduced = (
        [trial.model_copy(update={"key": ""}) for trial in (*record.trials, *record.sensitivity)] if record else []
        for record in (TrialsRecord.read_at_revision(revision, path), TrialsRecord.read(tree / path))
    )
    names = [_format_trial_name(trial) for trial in reproduced if trial not in recorded]
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


def _format_trial_name(trial: TrialRecord) -> str:
    index = "default" if trial.index is None else trial.index
    return f"{index} of study {trial.study + 1}" if trial.study else str(index)


def _compare_training(
    recorded: TrainRecord, reproduced: TrainRecord, first: tuple[int, int] | None
) -> dict[str, MaxDifference | None]:
    before, after = _flatten(recorded.step_losses), _flatten(reproduced.step_losses)
    found = {
        "step_loss": _compare_values(before, after),
        "first_loss": _compare_values(before[first[1] :][:1], after[first[1] :][:1]) if first else None,
    }
    for name in ("train_loss", "validation_loss"):
        found[name] = _compare_values(
            *([getattr(epoch, name) for epoch in each.history] for each in (recorded, reproduced))
        )
    return found


def _compare_test_metrics(recorded: EvalRecord, reproduced: EvalRecord) -> dict[str, MaxDifference | None]:
    return {
        name: _compare_values([getattr(recorded, name)], [getattr(reproduced, name)])
        for name in ("test_loss", "test_accuracy")
    }


def find_first_difference(before: list[list[float | None]], after: list[list[float | None]]) -> tuple[int, int] | None:
    """(epoch from 1, step from 0 over the run) of the first loss that differs, or that only one of them has."""
    step = 0
    for epoch in range(1, max(len(before), len(after)) + 1):
        ours, theirs = (losses[epoch - 1] if epoch <= len(losses) else [] for losses in (before, after))
        for index in range(max(len(ours), len(theirs))):
            if ours[index : index + 1] != theirs[index : index + 1]:
                return epoch, step + index
        step += len(ours)
    return None


def compute_md5(path: Path) -> str | None:
    """DVC's digest of a file, or None if there is none."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else None


def _is_within(gap: MaxDifference | None, limit: MaxDifference) -> bool:
    """A figure that neither has is as close as can be."""
    return gap is None or (gap.absolute <= limit.absolute and gap.relative <= limit.relative)


def _compare_values(before: list[float | None], after: list[float | None]) -> MaxDifference | None:
    """Over the pairs that both have; infinite if only one of them has a figure, None if neither has any."""
    every = list(zip(before, after, strict=False))
    if any((one is None) != (other is None) for one, other in every):
        return MaxDifference(np.inf, np.inf)
    pairs = [(one, other) for one, other in every if one is not None and other is not None]
    if not pairs:
        return None
    ours, theirs = np.array(pairs).T
    distance = np.abs(ours - theirs)
    return MaxDifference(
        float(distance.max()), float((distance / np.maximum(np.abs(ours), np.finfo(np.float32).tiny)).max())
    )


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


def _flatten(losses: list[list[float | None]]) -> list[float | None]:
    return [loss for epoch in losses for loss in epoch]


def _count_steps(trained: TrainRecord) -> list[int]:
    return [len(losses) for losses in trained.step_losses]
