"""Recorded tunings: the trials of each optimizer, and statistics about its search."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optlab.records import Choice, TrialRecord, TrialsRecord, TuningFiles
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.schema.search_space import NumericRange
from optlab.system.errors import RecordError, RevisionError
from optlab.system.git import Revision
from optlab.tuning import search

CHANCE_ACCURACY = 0.1  # of ten equally likely classes: the accuracy of a trial that diverged
NEAR_BEST_MARGIN = 0.01  # of accuracy: learning rates this close to the best are as good
NEIGHBOUR_DECADES = 0.3  # between a learning rate and its neighbour


@dataclass(frozen=True)
class OptimizerTuning:
    """One optimizer's tuning: all its searches.

    Attributes:
        spec: the entry with its ranges.
        choices: number of the search → its choice: a search for each seed, or number 0 for all seeds.
        trials: of all searches, defaults included.
        sensitivity: trials of the grid over the learning rate.
        has_older_rule: whether an earlier version searched: plain successive halving over the whole ranges.
    """

    optimizer: str
    spec: OptimizerSpec
    choices: dict[int, Choice]
    trials: list[TrialRecord]
    sensitivity: list[TrialRecord]
    has_older_rule: bool = False

    @property
    def sampled_trials(self) -> list[TrialRecord]:
        """Trials of sampled points, without the defaults."""
        return [trial for trial in self.trials if trial.index is not None]

    @property
    def trials_per_search(self) -> int:
        """Number of sampled points of a search."""
        return len(self.sampled_trials) // len(self.choices)

    def get_choice(self, seed: int) -> Choice:
        """Return the choice that the run with a seed confirms."""
        return self.choices[seed] if seed in self.choices else self.choices[0]

    def get_chosen_trial(self, number: int) -> TrialRecord | None:
        """Return the trial that a search has chosen."""
        return self._get_trial(number, self.choices[number].trial)

    def get_default_trial(self, number: int) -> TrialRecord | None:
        """Return the trial of the default in a search."""
        return self._get_trial(number, None)

    def _get_trial(self, number: int, index: int | None) -> TrialRecord | None:
        return next((trial for trial in self.trials if (trial.search, trial.index) == (number, index)), None)

    def get_default_value(self, number: int, key: str) -> float | None:
        """Return the default trial's value of a range: as recorded, else as the entry has it; None if not known.

        Records of older versions lack the value where the entry leaves it to the class.
        """
        trial = self.get_default_trial(number)
        value = (trial.values if trial else {}).get(key, self.spec.get_default(key))
        return float(value) if isinstance(value, int | float) else None

    @property
    def ranges_at_edge(self) -> list[str]:
        """Ranges for which at least half of the choices lie at or outside an edge: a better value may lie beyond it."""
        counts: Counter[str] = Counter()
        for number, choice in self.choices.items():
            counts.update(choice.at_edge)
            if choice.trial is None and choice.validation_accuracy is not None:
                counts.update(key for key in self.spec.ranges if self._is_default_outside(number, key))
        return sorted(key for key, count in counts.items() if 2 * count >= len(self.choices))

    def _is_default_outside(self, number: int, key: str) -> bool:
        limits, value = self.spec.ranges[key], self.get_default_value(number, key)
        return isinstance(limits, NumericRange) and value is not None and not limits.low <= value <= limits.high

    @property
    def learning_rate_key(self) -> str | None:
        """Key of the learning rate's range in the trials' values; None without such a range."""
        return search.find_learning_rate_key(self.spec.ranges)

    @property
    def sensitivity_grids(self) -> dict[int, dict[float, list[float]]]:
        """Search → learning rate, in increasing order → accuracy of each of its trials in `sensitivity`."""
        key = str(self.learning_rate_key)
        grids: dict[int, dict[float, list[float]]] = {}
        for trial in sorted(self.sensitivity, key=lambda trial: trial.values[key]) if self.learning_rate_key else ():
            grid = grids.setdefault(trial.search, {})
            grid.setdefault(trial.values[key], []).append(get_accuracy_or_chance(trial))
        return dict(sorted(grids.items()))

    @property
    def has_near_neighbours(self) -> bool | None:
        """Whether on both sides of the best learning rate another one near to it reaches an accuracy within a point.

        It considers complete trials only, and is None if the learning rate has no range or no trial is complete.
        """
        key = str(self.learning_rate_key)
        complete = [trial for trial in self.trials if trial.status == "completed" and trial.values.get(key)]
        whole = [(trial.values[key], get_accuracy_or_chance(trial)) for trial in complete]
        if not whole:
            return None
        best_rate, best = max(whole, key=lambda each: each[1])
        near = [math.log10(rate / best_rate) for rate, accuracy in whole if accuracy >= best - NEAR_BEST_MARGIN]
        return any(-NEIGHBOUR_DECADES <= each < 0 for each in near) and any(
            0 < each <= NEIGHBOUR_DECADES for each in near
        )


def collect(
    config: Config, searched: Mapping[str, tuple[Path, tuple[int, ...]]], revision: Revision | None = None
) -> dict[str, OptimizerTuning]:
    """Read the searches of every optimizer with a range.

    Args:
        searched: optimizer → folder of the pipeline with its searches, and the seeds of its runs.

    Raises:
        RecordError: a file is missing, damaged or of other parameters.
        RevisionError: a file is missing or damaged at the revision.
    """
    tunings = {}
    for name, spec in config.optimizers.items():
        if spec.ranges:
            folder, seeds = searched[name]
            is_older = TuningFiles.find(folder, name, seeds[0], revision).has_older_layout
            tuning = OptimizerTuning(name, spec, {}, [], [], is_older)
            for seed in seeds:
                tuning_files = TuningFiles.find(folder, name, seed, revision)
                number = 0 if tuning_files.has_older_layout else config.get_search_number(seed)
                if number not in tuning.choices:
                    tuning.choices[number], record = _load_record(tuning_files, revision)
                    tuning.trials.extend(record.trials)
                    tuning.sensitivity.extend(record.sensitivity)
            tunings[name] = tuning
    return tunings


def _load_record(tuning_files: TuningFiles, revision: Revision | None) -> tuple[Choice, TrialsRecord]:
    choice: Choice | None
    record: TrialsRecord | None
    if revision is None:
        choice, record = Choice.read(tuning_files.choice), TrialsRecord.read(tuning_files.trials)
    else:
        choice = Choice.read_at_revision(revision, tuning_files.choice)
        record = TrialsRecord.read_at_revision(revision, tuning_files.trials)
        if choice is None or record is None:
            raise RevisionError(
                f"{revision.name}: {tuning_files.choice} or {tuning_files.trials} is missing or damaged there"
            )
    if not choice.is_tuned:
        raise RecordError(f"{tuning_files.choice}: is of other parameters: run `dvc repro`")
    return choice, record


def get_final_accuracy(trial: TrialRecord) -> float | None:
    """Return the accuracy of the last validation; None where the trial diverged or failed."""
    return trial.looks[-1].accuracy if trial.looks and trial.status in ("completed", "stopped") else None


def get_accuracy_or_chance(trial: TrialRecord) -> float:
    """Return the final accuracy, chance level where the trial diverged or failed."""
    accuracy = get_final_accuracy(trial)
    return CHANCE_ACCURACY if accuracy is None else accuracy


def compute_saved_fraction(tuning: OptimizerTuning, steps: int) -> float:
    """Return the share of training steps saved by stopping trials early.

    Args:
        steps: of a complete training.
    """
    done = [trial.looks[-1].step for trial in tuning.trials if trial.status in ("completed", "stopped")]
    return 1 - sum(done) / (steps * len(done)) if done else 0.0
