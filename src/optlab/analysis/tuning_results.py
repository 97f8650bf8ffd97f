"""What the tunings have come to: their trials, and what these say about the way they were searched for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optlab.records import TrialRecord, TrialsRecord, TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.schema.search_space import NumericRange, Range
from optlab.system.errors import RecordError, RevisionError
from optlab.system.git import Revision
from optlab.tuning import search
from optlab.tuning.defaults import find_default_value

CHANCE_ACCURACY = 0.1  # the accuracy of ten equally likely classes: what a trial that diverged counts as
NEAR_BEST_MARGIN = 0.01  # of accuracy: learning rates that come so near to the best are as good


@dataclass(frozen=True)
class OptimizerTuning:
    """One optimizer's tuning.

    Attributes:
        spec: with its ranges.
        is_fully_trained: whether every trial was trained to the end, unless it diverged.
    """

    optimizer: str
    spec: OptimizerSpec
    choice: TuningResult
    trials: list[TrialRecord]
    sensitivity: list[TrialRecord]
    is_fully_trained: bool

    @property
    def sampled_trials(self) -> list[TrialRecord]:
        """The trials of points, without the defaults."""
        return [each for each in self.trials if each.index is not None]

    @property
    def in_range_trials(self) -> list[TrialRecord]:
        """Those drawn from the ranges as they stand in params.yaml: such as could be drawn again."""
        return [each for each in self.sampled_trials if not each.beyond]

    def get_chosen_trial(self, study: int) -> TrialRecord | None:
        """The trial that a study's choice is from."""
        index = self.choice.studies[study].trial
        own = [each for each in self.trials if each.study == study and each.index == index]
        return own[0] if own else None

    def get_default_trial(self, study: int = 0) -> TrialRecord | None:
        """The trial of the entry's default."""
        return next((each for each in self.trials if each.study == study and each.index is None), None)

    def get_default_value(self, study: int, key: str) -> float | None:
        """What the entry's default had in place of a range: as recorded, else as the installed class has it."""
        trial = self.get_default_trial(study)
        found = trial.values.get(key) if trial else None
        return find_default_value(self.spec, key) if found is None else float(found)

    @property
    def ranges_at_edge(self) -> list[str]:
        """The ranges at whose edge a chosen value lies, or outside of it, so that a better one may lie beyond."""
        at_edge = {key for study in self.choice.studies for key in study.at_edge}
        for number, study in enumerate(self.choice.studies):
            if study.trial is None and study.validation_accuracy is not None:
                ranges = self.spec.ranges.items()
                at_edge |= {key for key, own in ranges if _is_outside(own, self.get_default_value(number, key))}
        return sorted(at_edge)

    @property
    def learning_rate_key(self) -> str | None:
        """The range of the learning rate, by its name in the trials."""
        return search.find_learning_rate_key(self.spec.ranges)

    @property
    def sensitivity_grid(self) -> dict[float, list[float]]:
        """Learning rate → what each trial of the sensitivity with it counts as."""
        found: dict[float, list[float]] = {}
        for each in self.sensitivity if self.learning_rate_key else ():
            found.setdefault(each.values[str(self.learning_rate_key)], []).append(get_accuracy_or_chance(each))
        return found


def collect(
    config: Config, folders: Mapping[str, Path], revision: Revision | None = None
) -> dict[str, OptimizerTuning]:
    """Read the tuning of every optimizer with a range.

    Args:
        folders: by optimizer, of the pipelines that have them.

    Raises:
        RecordError: a file is missing or damaged.
        RevisionError: the revision has it not.
    """
    found = {}
    for name, spec in config.optimizers.items():
        if spec.ranges:
            tuning_files = TuningFiles(folders[name], name)
            choice, trials = _load_record(tuning_files, revision)
            if not choice.is_tuned or len(choice.studies) != config.tuning.studies:
                raise RecordError(f"{tuning_files.choice}: is of other parameters: run `dvc repro`")
            is_fully_trained = config.tuning.halving == 1
            found[name] = OptimizerTuning(name, spec, choice, trials.trials, trials.sensitivity, is_fully_trained)
    return found


def _load_record(tuning_files: TuningFiles, revision: Revision | None) -> tuple[TuningResult, TrialsRecord]:
    if revision is None:
        return TuningResult.read(tuning_files.choice), TrialsRecord.read(tuning_files.trials)
    choice, trials = (
        TuningResult.read_at_revision(revision, tuning_files.choice),
        TrialsRecord.read_at_revision(revision, tuning_files.trials),
    )
    if choice is None or trials is None:
        raise RevisionError(
            f"{revision.name}: {tuning_files.choice} or {tuning_files.trials} is missing or damaged there"
        )
    return choice, trials


def get_final_accuracy(trial: TrialRecord) -> float | None:
    """At its last look; None where it diverged or failed."""
    return trial.looks[-1].accuracy if trial.looks and trial.status in ("completed", "stopped") else None


def get_accuracy_or_chance(trial: TrialRecord) -> float:
    """Its accuracy, as it counts among others: one that diverged is as good as guessing."""
    found = get_final_accuracy(trial)
    return CHANCE_ACCURACY if found is None else found


def compute_expected_best(accuracies: Sequence[float]) -> list[float]:
    """The expected best of k trials, for k from 1 to all n of them: the mean over all subsets of k, exactly.

    ∑ y₍ᵢ₎ C(i-1, k-1) / C(n, k) over the ordered y₍₁₎ ≤ … ≤ y₍ₙ₎ (Dodge et al. 2019, "Show Your Work").
    """
    ordered, n = sorted(accuracies), len(accuracies)
    expected = []
    for k in range(1, n + 1):
        share, found = k / n, list[float]()  # of the subsets, in which it is the best: C(n-1, k-1) / C(n, k), and down
        for rank in range(n - 1, k - 2, -1):
            found.append(ordered[rank] * share)
            share *= (rank - k + 1) / rank if rank else 0
        expected.append(math.fsum(found))
    return expected


def compute_near_best_width(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    """The decades between the lowest and the highest learning rate, above 0, within one point of the best accuracy."""
    both = [(rate, each) for rate, each in zip(rates, accuracies, strict=True) if rate > 0]
    best = max((each for _, each in both), default=0.0)
    near = [rate for rate, each in both if each >= best - NEAR_BEST_MARGIN]
    return math.log10(max(near) / min(near)) if near else 0.0


def compute_saved_fraction(tuning: OptimizerTuning, steps: int) -> float:
    """The share of the steps that were not trained because trials stopped early.

    Args:
        steps: of a whole training.
    """
    done = [each.looks[-1].step for each in tuning.trials if each.status in ("completed", "stopped")]
    return 1 - sum(done) / (steps * len(done)) if done else 0.0


def _is_outside(limits: Range, value: float | None) -> bool:
    return isinstance(limits, NumericRange) and value is not None and not limits.low <= value <= limits.high
