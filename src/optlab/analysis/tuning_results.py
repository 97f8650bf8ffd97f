"""Recorded tunings: the trials of each optimizer, and statistics about its search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optlab.records import TrialRecord, TrialsRecord, TuningFiles, TuningResult
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.schema.search_space import NumericRange
from optlab.system.errors import RecordError, RevisionError
from optlab.system.git import Revision
from optlab.tuning import search

CHANCE_ACCURACY = 0.1  # of ten equally likely classes: the accuracy of a trial that diverged
NEAR_BEST_MARGIN = 0.01  # of accuracy: learning rates this close to the best are as good


@dataclass(frozen=True)
class OptimizerTuning:
    """One optimizer's tuning: all its studies.

    Attributes:
        spec: the entry with its ranges.
        trials: of all studies, defaults included.
        sensitivity: trials of the grid over the learning rate.
        is_fully_trained: whether every trial that did not diverge was trained to the end.
    """

    optimizer: str
    spec: OptimizerSpec
    choice: TuningResult
    trials: list[TrialRecord]
    sensitivity: list[TrialRecord]
    is_fully_trained: bool

    @property
    def sampled_trials(self) -> list[TrialRecord]:
        """Trials of sampled points, without the defaults."""
        return [trial for trial in self.trials if trial.index is not None]

    @property
    def in_range_trials(self) -> list[TrialRecord]:
        """Sampled trials within the ranges of params.yaml, without those beyond an edge."""
        return [trial for trial in self.sampled_trials if not trial.beyond]

    @property
    def in_range_accuracies(self) -> list[float]:
        """Final accuracies of `in_range_trials`, chance level where a trial diverged."""
        return [get_accuracy_or_chance(trial) for trial in self.in_range_trials]

    def get_chosen_trial(self, study: int) -> TrialRecord | None:
        return self._get_trial(study, self.choice.studies[study].trial)

    def get_default_trial(self, study: int) -> TrialRecord | None:
        return self._get_trial(study, None)

    def _get_trial(self, study: int, index: int | None) -> TrialRecord | None:
        return next((trial for trial in self.trials if (trial.study, trial.index) == (study, index)), None)

    def get_default_value(self, study: int, key: str) -> float | None:
        """Return the default trial's value of a range: as recorded, else as the entry has it; None if not known.

        Records of older versions lack the value where the entry leaves it to the class.
        """
        trial = self.get_default_trial(study)
        value = (trial.values if trial else {}).get(key, self.spec.get_default(key))
        return float(value) if isinstance(value, int | float) else None

    @property
    def ranges_at_edge(self) -> list[str]:
        """Ranges with a chosen value at or outside their edge, so that a better value may lie beyond it."""
        at_edge = {key for study in self.choice.studies for key in study.at_edge}
        for number, study in enumerate(self.choice.studies):
            if study.trial is None and study.validation_accuracy is not None:
                for key, limits in self.spec.ranges.items():
                    if isinstance(limits, NumericRange):
                        value = self.get_default_value(number, key)
                        if value is not None and not limits.low <= value <= limits.high:
                            at_edge.add(key)
        return sorted(at_edge)

    @property
    def learning_rate_key(self) -> str | None:
        """Key of the learning rate's range in the trials' values; None without such a range."""
        return search.find_learning_rate_key(self.spec.ranges)

    @property
    def sensitivity_grid(self) -> dict[float, list[float]]:
        """Learning rate → accuracy of each of its trials in `sensitivity`."""
        grid: dict[float, list[float]] = {}
        for trial in self.sensitivity if self.learning_rate_key else ():
            grid.setdefault(trial.values[str(self.learning_rate_key)], []).append(get_accuracy_or_chance(trial))
        return grid


def collect(
    config: Config, folders: Mapping[str, Path], revision: Revision | None = None
) -> dict[str, OptimizerTuning]:
    """Read the tuning of every optimizer with a range.

    Args:
        folders: optimizer → folder of the pipeline with its tuning.

    Raises:
        RecordError: a file is missing, damaged or of other parameters.
        RevisionError: a file is missing or damaged at the revision.
    """
    tunings = {}
    for name, spec in config.optimizers.items():
        if spec.ranges:
            tuning_files = TuningFiles(folders[name], name)
            choice, trials = _load_record(tuning_files, revision)
            if not choice.is_tuned or len(choice.studies) != config.tuning.studies:
                raise RecordError(f"{tuning_files.choice}: is of other parameters: run `dvc repro`")
            is_fully_trained = config.tuning.halving == 1
            tunings[name] = OptimizerTuning(name, spec, choice, trials.trials, trials.sensitivity, is_fully_trained)
    return tunings


def _load_record(tuning_files: TuningFiles, revision: Revision | None) -> tuple[TuningResult, TrialsRecord]:
    if revision is None:
        return TuningResult.read(tuning_files.choice), TrialsRecord.read(tuning_files.trials)
    choice = TuningResult.read_at_revision(revision, tuning_files.choice)
    trials = TrialsRecord.read_at_revision(revision, tuning_files.trials)
    if choice is None or trials is None:
        raise RevisionError(
            f"{revision.name}: {tuning_files.choice} or {tuning_files.trials} is missing or damaged there"
        )
    return choice, trials


def get_final_accuracy(trial: TrialRecord) -> float | None:
    """Return the accuracy of the last validation; None where the trial diverged or failed."""
    return trial.looks[-1].accuracy if trial.looks and trial.status in ("completed", "stopped") else None


def get_accuracy_or_chance(trial: TrialRecord) -> float:
    """Return the final accuracy, chance level where the trial diverged or failed."""
    accuracy = get_final_accuracy(trial)
    return CHANCE_ACCURACY if accuracy is None else accuracy


def compute_expected_best(accuracies: Sequence[float]) -> list[float]:
    """Return the expected best of k of n trials, for k = 1 … n: the exact mean over all subsets of size k.

    ∑ y₍ᵢ₎ C(i-1, k-1) / C(n, k) over the ordered y₍₁₎ ≤ … ≤ y₍ₙ₎ (Dodge et al. 2019, "Show Your Work").
    """
    ordered, n = sorted(accuracies), len(accuracies)
    expected = []
    for k in range(1, n + 1):
        weight, terms = k / n, list[float]()  # share of the subsets with this maximum: C(n-1, k-1) / C(n, k), and down
        for rank in range(n - 1, k - 2, -1):
            terms.append(ordered[rank] * weight)
            weight *= (rank - k + 1) / rank if rank else 0
        expected.append(math.fsum(terms))
    return expected


def compute_near_best_width(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    """Return the decades spanned by the positive learning rates within one point of the best accuracy."""
    trials = [(rate, accuracy) for rate, accuracy in zip(rates, accuracies, strict=True) if rate > 0]
    best = max((accuracy for _, accuracy in trials), default=0.0)
    near = [rate for rate, accuracy in trials if accuracy >= best - NEAR_BEST_MARGIN]
    return math.log10(max(near) / min(near)) if near else 0.0


def compute_saved_fraction(tuning: OptimizerTuning, steps: int) -> float:
    """Return the share of training steps saved by stopping trials early.

    Args:
        steps: of a complete training.
    """
    done = [trial.looks[-1].step for trial in tuning.trials if trial.status in ("completed", "stopped")]
    return 1 - sum(done) / (steps * len(done)) if done else 0.0
