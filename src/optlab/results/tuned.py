"""What the tunings have come to: their trials, and what these say about the way they were searched for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import Config
from optlab.config.ranges import Interval, Range
from optlab.record.contents import Choice, Trial, Trials
from optlab.record.runs import TuningFiles
from optlab.system.errors import RecordError, RevisionError
from optlab.system.revision import Revision
from optlab.tuning import search
from optlab.tuning.defaults import default_of

GUESSING = 0.1  # the accuracy of ten equally likely classes: what a trial that diverged counts as
NEAR = 0.01  # of accuracy: learning rates that come so near to the best are as good


@dataclass(frozen=True)
class Tuned:
    """One optimizer's tuning.

    Attributes:
        spec: with its ranges.
        is_whole: whether every trial was trained to the end, unless it diverged.
    """

    optimizer: str
    spec: OptimizerSpec
    choice: Choice
    trials: list[Trial]
    sensitivity: list[Trial]
    is_whole: bool

    @property
    def drawn(self) -> list[Trial]:
        """The trials of points, without the defaults."""
        return [each for each in self.trials if each.index is not None]

    @property
    def alike(self) -> list[Trial]:
        """Those drawn from the ranges as they stand in params.yaml: such as could be drawn again."""
        return [each for each in self.drawn if not each.beyond]

    def chosen(self, study: int) -> Trial | None:
        """The trial that a study's choice is from."""
        index = self.choice.studies[study].trial
        own = [each for each in self.trials if each.study == study and each.index == index]
        return own[0] if own else None

    def default(self, study: int = 0) -> Trial | None:
        """The trial of the entry's default."""
        return next((each for each in self.trials if each.study == study and each.index is None), None)

    def default_value(self, study: int, key: str) -> float | None:
        """What the entry's default had in place of a range: as recorded, else as the installed class has it."""
        trial = self.default(study)
        found = trial.values.get(key) if trial else None
        return default_of(self.spec, key) if found is None else float(found)

    @property
    def at_edge(self) -> list[str]:
        """The ranges at whose edge a chosen value lies, or outside of it, so that a better one may lie beyond."""
        at_edge = {key for study in self.choice.studies for key in study.at_edge}
        for number, study in enumerate(self.choice.studies):
            if study.trial is None and study.validation_accuracy is not None:
                ranges = self.spec.ranges.items()
                at_edge |= {key for key, own in ranges if _is_outside(own, self.default_value(number, key))}
        return sorted(at_edge)

    @property
    def rate(self) -> str | None:
        """The range of the learning rate, by its name in the trials."""
        return search.learning_rate(self.spec.ranges)

    @property
    def grid(self) -> dict[float, list[float]]:
        """Learning rate → what each trial of the sensitivity with it counts as."""
        found: dict[float, list[float]] = {}
        for each in self.sensitivity if self.rate else ():
            found.setdefault(each.values[str(self.rate)], []).append(counted(each))
        return found


def collect(config: Config, folders: Mapping[str, Path], revision: Revision | None = None) -> dict[str, Tuned]:
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
            place = TuningFiles(folders[name], name)
            choice, trials = _read(place, revision)
            if not choice.is_tuned or len(choice.studies) != config.tuning.studies:
                raise RecordError(f"{place.choice}: is of other parameters: run `dvc repro`")
            whole = config.tuning.halving == 1
            found[name] = Tuned(name, spec, choice, trials.trials, trials.sensitivity, whole)
    return found


def _read(place: TuningFiles, revision: Revision | None) -> tuple[Choice, Trials]:
    if revision is None:
        return Choice.read(place.choice), Trials.read(place.trials)
    choice, trials = Choice.at(revision, place.choice), Trials.at(revision, place.trials)
    if choice is None or trials is None:
        raise RevisionError(f"{revision.name}: {place.choice} or {place.trials} is missing or damaged there")
    return choice, trials


def accuracy(trial: Trial) -> float | None:
    """At its last look; None where it diverged or failed."""
    return trial.looks[-1].accuracy if trial.looks and trial.status in ("completed", "stopped") else None


def counted(trial: Trial) -> float:
    """Its accuracy, as it counts among others: one that diverged is as good as guessing."""
    found = accuracy(trial)
    return GUESSING if found is None else found


def best_after(accuracies: Sequence[float]) -> list[float]:
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


def width(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    """The decades between the lowest and the highest learning rate, above 0, within one point of the best accuracy."""
    both = [(rate, each) for rate, each in zip(rates, accuracies, strict=True) if rate > 0]
    best = max((each for _, each in both), default=0.0)
    near = [rate for rate, each in both if each >= best - NEAR]
    return math.log10(max(near) / min(near)) if near else 0.0


def saved(tuned: Tuned, steps: int) -> float:
    """The share of the steps that were not trained because trials stopped early.

    Args:
        steps: of a whole training.
    """
    done = [each.looks[-1].step for each in tuned.trials if each.status in ("completed", "stopped")]
    return 1 - sum(done) / (steps * len(done)) if done else 0.0


def _is_outside(own: Range, value: float | None) -> bool:
    return isinstance(own, Interval) and value is not None and not own.low <= value <= own.high
