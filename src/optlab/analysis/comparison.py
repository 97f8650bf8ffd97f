"""Comparison of all runs of a params.yaml: means per optimizer, and differences between optimizers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, takewhile
from pathlib import Path
from typing import NamedTuple

from optlab.analysis import environment_diff, sequential, tuning_results
from optlab.analysis.mean_ci import ALPHA, MeanCI, compute_mean_ci
from optlab.analysis.presentation import assign_colours
from optlab.analysis.sequential import Pair, PairComparison, Plan
from optlab.analysis.tuning_results import OptimizerTuning
from optlab.records import Environment, EvalRecord, RunFiles, Status, TrainRecord
from optlab.schema.parameters import SPLIT_SIZES, Config
from optlab.system.errors import RecordError, RevisionError
from optlab.system.git import Revision
from optlab.system.text import format_place


@dataclass(frozen=True)
class Run:
    """One run's record.

    Attributes:
        conditions: None where none are recorded for these weights.
    """

    files: RunFiles
    trained: TrainRecord
    tested: EvalRecord
    conditions: Environment | None = None

    @property
    def status(self) -> Status:
        """`diverged` if the training or the evaluation diverged."""
        return "diverged" if "diverged" in (self.trained.status, self.tested.status) else "completed"

    @property
    def is_consistent(self) -> bool:
        """True unless the evaluation names other weights than the training."""
        return self.tested.weights_sha256 in (None, self.trained.weights_sha256)


@dataclass(frozen=True)
class Row:
    """One optimizer over all its seeds.

    Attributes:
        statuses: of each run.
        validation_accuracy, …: means over the completed runs; None where one of them has no value.
        mirrored_test_accuracy: as these; None without `data.mirror_test`.
        gradients_per_step: mean number of gradients per step; None in records of older versions.
    """

    optimizer: str
    statuses: tuple[str, ...]
    validation_accuracy: MeanCI | None
    validation_loss: MeanCI | None
    train_loss: MeanCI | None
    test_accuracy: MeanCI | None
    mirrored_test_accuracy: MeanCI | None
    test_loss: MeanCI | None
    calibration_error: MeanCI | None
    gradients_per_step: float | None

    @property
    def all_completed(self) -> bool:
        """True without a diverged run: those that survive a divergence are a biased sample."""
        return "diverged" not in self.statuses

    @property
    def status(self) -> str:
        """`completed`, `diverged`, or how many of the runs diverged."""
        n, diverged = len(self.statuses), self.statuses.count("diverged")
        if 0 < diverged < n:
            return f"{diverged} of {n} diverged"
        return "diverged" if diverged else "completed"


@dataclass(frozen=True)
class Target:
    """One validation accuracy, and the steps after which a validation of each run first reached it.

    Attributes:
        accuracy: a fraction.
        is_given: whether params.yaml names it.
        steps: optimizer → steps of each seed; None where no validation reached it.
    """

    accuracy: float
    is_given: bool
    steps: dict[str, tuple[int | None, ...]]

    def count_reached(self, optimizer: str) -> int:
        """Return the number of the optimizer's runs that reached the target."""
        return sum(step is not None for step in self.steps[optimizer])

    def compute_median_steps(self, optimizer: str) -> int | None:
        """Return the steps after which at least half of the optimizer's runs had reached the target, or None.

        This is the median of the Kaplan-Meier estimate (1958) for runs that are all observed for the same time.
        """
        reached = sorted(step for step in self.steps[optimizer] if step is not None)
        half = math.ceil(len(self.steps[optimizer]) / 2)
        return reached[half - 1] if len(reached) >= half else None


@dataclass(frozen=True)
class Comparison:
    """All runs and optimizers of a params.yaml.

    Attributes:
        rows: one per optimizer, best mean of the verdict metric first, those with a diverged run last; with one seed
            in the order of params.yaml, because one run is no ranking.
        runs: in the order of params.yaml.
        selection_metric: chooses the champion: validation accuracy, or training loss without a validation split.
        verdict_metric: orders the rows, and is what verdicts are about: test accuracy, or training loss where the runs
            were trained on the test split.
        champion: the completed run with the best selection metric; None if every run diverged.
        differing_conditions: result of `environment_diff.find_differing_conditions`.
        tunings: optimizer → tuning, for optimizers with a range.
        challenger: the optimizer that is compared with each other one; None to compare all pairs.
        attempt: number of this comparison among those on the same confirmation seeds, from 1; it has 1 / (j (j + 1)) of
            the error, which sums to 1 over all attempts j. 0 where attempts are not counted.
        notes: further sentences for the report.
    """

    config: Config
    rows: list[Row]
    runs: list[Run]
    selection_metric: str
    verdict_metric: str
    champion: Run | None
    differing_conditions: dict[str, dict[str, list[str]]]
    tunings: dict[str, OptimizerTuning]
    challenger: str | None = None
    attempt: int = 0
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of seeds of each optimizer."""
        return len(self.config.seeds)

    @cached_property
    def colours(self) -> dict[str, str]:
        """Optimizer → colour; a challenger does not change the others' colours."""
        return assign_colours(sorted(self.config.optimizers, key=lambda name: name == self.challenger))

    @cached_property
    def plan(self) -> Plan:
        """What the verdicts test: fixed by params.yaml, also for optimizers with a diverged run."""
        count = len(self.rows)
        higher_is_better = self.verdict_metric == "test_accuracy"
        return Plan(
            looks=tuple(self.config.verdict.looks),
            n_pairs=max(1, count - 1 if self.challenger else math.comb(count, 2)),
            margin=self.config.verdict.margin if higher_is_better else None,
            higher_is_better=higher_is_better,
            resolution=self.resolution,
            alpha=ALPHA / (self.attempt * (self.attempt + 1)) if self.attempt else ALPHA,
        )

    @property
    def n_looks_taken(self) -> int:
        """Number of planned looks for which there are enough replicates."""
        return self.plan.count_taken(self.n)

    @property
    def n_used(self) -> int:
        """Number of seeds that the verdicts use: those of the last look taken, or all before the first."""
        return self.plan.looks[self.n_looks_taken - 1] if self.n_looks_taken else self.n

    @property
    def next_look(self) -> int | None:
        """Number of replicates at the next planned look; None after the last."""
        return next((look for look in self.plan.looks if look > self.n), None)

    @cached_property
    def pairs(self) -> dict[Pair, PairComparison]:
        """Comparisons in the verdict metric at the last look taken, of optimizers whose runs all completed.

        With a challenger, only its pairs with each other optimizer. Empty before the first look.
        """
        before = {row.optimizer: self._get_runs_before_divergence(row.optimizer) for row in self.rows}
        # Holm's correction needs the looks that an optimizer had before it diverged: what was told then stays told.
        every = sequential.compare_pairs(
            {name: [self.get_value(run) for run in runs] for name, runs in before.items()},
            self._pair_up([*self.completed, *(row.optimizer for row in self.rows if not row.all_completed)]),
            self.plan,
            {name: [run.files.seed for run in runs] for name, runs in before.items()},
        )
        return {names: every[names] for names in self._pair_names if names in every}

    def _get_runs_before_divergence(self, optimizer: str) -> list[Run]:
        runs = [run for run in self.runs if run.files.optimizer == optimizer]
        return list(takewhile(lambda run: run.status == "completed", runs))

    @cached_property
    def completed(self) -> list[str]:
        """Optimizers whose runs all completed, the best mean of the seeds that the verdicts use first."""
        names = [row.optimizer for row in self.rows if row.all_completed]
        if self.n_used == self.n:
            return names
        return sorted(names, key=self.compute_used_mean, reverse=self.plan.higher_is_better)

    def compute_used_mean(self, optimizer: str) -> float:
        """Return the mean of the verdict metric over the seeds that the verdicts use."""
        return statistics.fmean(self.get_values(optimizer)[: self.n_used])

    @property
    def _pair_names(self) -> list[Pair]:
        return self._pair_up(self.completed)

    def _pair_up(self, names: Sequence[str]) -> list[Pair]:
        if self.challenger:
            others = [name for name in names if name != self.challenger]
            return [(self.challenger, name) for name in others] if self.challenger in names else []
        return list(combinations(names, 2))

    @property
    def undecided(self) -> list[Pair]:
        """Pairs that are neither better nor equivalent; all before the first look."""
        return [
            names for names in self._pair_names
            if names not in self.pairs or self.pairs[names].verdict == "undecided"
        ]  # fmt: skip

    @property
    def unbeaten(self) -> list[str]:
        """Optimizers with a verdict to which no other is better, in the order of `completed`."""
        beaten = {
            names[1] if pair.first_is_better else names[0] for names, pair in self.pairs.items() if pair.is_better
        }
        return [name for name in self.completed if any(name in names for names in self.pairs) and name not in beaten]

    @property
    def best(self) -> list[str]:
        """The one best optimizer, or several that are equivalent; each is better than all others. Empty if not known.

        Also empty with a challenger.
        """
        leaders, pairs = self.unbeaten, self.pairs
        if self.challenger:
            return []
        for (first, second), pair in pairs.items():
            n_leaders = (first in leaders) + (second in leaders)
            if (n_leaders == 2 and pair.verdict != "equivalent") or (n_leaders == 1 and not pair.is_better):
                return []
        return leaders

    @property
    def resolution(self) -> float:
        """Smallest possible difference of two runs in the verdict metric: one test image; 0 for a loss."""
        return 1 / SPLIT_SIZES[self.config.data.dataset]["test"] if self.verdict_metric == "test_accuracy" else 0.0

    @cached_property
    def target(self) -> Target | None:
        """Target of params.yaml, or the second highest final mean; None where there is neither."""
        given = self.config.verdict.target
        known = [row for row in self.rows if row.validation_accuracy]
        completed = [row for row in known if row.all_completed]
        rows = completed if len(completed) > 1 else known  # those that survive a divergence are a biased sample
        ends = sorted((row.validation_accuracy.mean for row in rows if row.validation_accuracy), reverse=True)
        if given is None and len(ends) < 2:
            return None
        accuracy = ends[1] if given is None else given
        steps: dict[str, tuple[int | None, ...]] = {row.optimizer: () for row in self.rows}
        for run in self.runs:
            steps[run.files.optimizer] += (_find_target_step(run.trained, accuracy),)
        return Target(accuracy, given is not None, steps)

    def get_values(self, optimizer: str) -> list[float]:
        """Return the verdict metric of each completed run in the order of the seeds."""
        return [self.get_value(run) for run in self.get_completed_runs(optimizer)]

    def get_completed_runs(self, optimizer: str) -> list[Run]:
        """Return the optimizer's completed runs in the order of their seeds."""
        return [run for run in self.runs if run.files.optimizer == optimizer and run.status == "completed"]

    def get_value(self, run: Run) -> float:
        """Return the verdict metric of a completed run."""
        record = run.tested if self.verdict_metric == "test_accuracy" else run.trained
        return float(getattr(record, self.verdict_metric))


class RecordFolders(NamedTuple):
    """Folders of the pipelines with an optimizer's runs, and with its tuning.

    Attributes:
        seeds: of its runs; None for those of params.yaml.
        tuning_seeds: of the runs for which it was tuned; None for `seeds`.
    """

    runs: Path
    tuning: Path
    seeds: tuple[int, ...] | None = None
    tuning_seeds: tuple[int, ...] | None = None


def collect(config: Config, folder: Path, revision: Revision | None = None,
            folder_overrides: Mapping[str, RecordFolders] | None = None) -> Comparison:  # fmt: skip
    """Read the record of every run that params.yaml names.

    Args:
        folder: of the pipeline.
        revision: read the record of a git revision; default: of the working tree.
        folder_overrides: optimizer → folders, for records that are not in `folder`.

    Raises:
        RecordError: a file of the record is missing, damaged or of other parameters, or evaluates other weights.
        RevisionError: the revision's record is incomplete or evaluates other weights.
    """
    has_validation = config.data.validation_size > 0
    selection_metric, sign = ("validation_accuracy", -1) if has_validation else ("train_loss", 1)
    folders = dict.fromkeys(config.optimizers, RecordFolders(folder, folder)) | dict(folder_overrides or {})
    runs = [
        _load_run(RunFiles(folders[name].runs, name, seed), selection_metric, revision)
        for name in config.optimizers
        for seed in folders[name].seeds or config.seeds
    ]
    rows = [
        _build_row(config, name, [run for run in runs if run.files.optimizer == name]) for name in config.optimizers
    ]

    verdict_metric, direction = ("test_accuracy", -1) if config.data.train_split == "train" else ("train_loss", 1)

    def get_sort_key(row: Row) -> tuple[bool, bool, float]:
        mean: MeanCI | None = getattr(row, verdict_metric)
        return not row.all_completed, mean is None, direction * mean.mean if mean else 0.0

    if len(config.seeds) > 1:
        rows.sort(key=get_sort_key)
    completed = [run for run in runs if run.status == "completed"]
    champion = min(completed, key=lambda run: sign * getattr(run.trained, selection_metric), default=None)
    environments = {run.files.id: run.conditions for run in runs}
    differing_conditions = environment_diff.find_differing_conditions(
        environments, portable=config.training.numerics == "portable"
    )
    searched = {
        name: (each.tuning, each.tuning_seeds or each.seeds or tuple(config.seeds)) for name, each in folders.items()
    }
    tunings = tuning_results.collect(config, searched, revision)
    return Comparison(config, rows, runs, selection_metric, verdict_metric, champion, differing_conditions, tunings)


def _find_target_step(trained: TrainRecord, accuracy: float) -> int | None:
    enough = accuracy - 1e-9  # a mean of equal numbers can be rounded up; one image more is at least 2e-5
    reached = (each.step for each in trained.all_validations if each.accuracy is not None and each.accuracy >= enough)
    return next(reached, None)


def _load_run(files: RunFiles, selection_metric: str, revision: Revision | None) -> Run:
    remedy = f"run `dvc repro`{format_place(files.folder)}"
    if revision is None:
        trained = TrainRecord.read(files.training)
        conditions = Environment.read_for_weights(files.environment, trained.weights_sha256)
        run = Run(files, trained, EvalRecord.read(files.test), conditions)
        if not run.is_consistent:
            raise RecordError(f"{files.test}: evaluates other weights than {files.training} has: {remedy}")
    else:
        run = load_run_at_revision(revision, files)
    if run.status == "completed" and getattr(run.trained, selection_metric) is None:
        name = selection_metric.replace("_", " ")
        raise RecordError(f"{files.training}: has no {name}: it is of other parameters: {remedy}")
    return run


def load_run_at_revision(revision: Revision, files: RunFiles) -> Run:
    """Read the record of one run at a revision.

    Raises:
        RevisionError: the record is incomplete, or evaluates other weights.
    """
    trained = TrainRecord.read_at_revision(revision, files.training)
    tested = EvalRecord.read_at_revision(revision, files.test)
    if trained is None or tested is None:
        raise RevisionError(f"{revision.name}: the record of {files.id} is incomplete: `dvc repro` was not committed")
    conditions = Environment.read_at_revision(revision, files.environment)
    if conditions and conditions.weights_sha256 != trained.weights_sha256:
        conditions = None
    run = Run(files, trained, tested, conditions)
    if not run.is_consistent:
        raise RevisionError(
            f"{revision.name}: {files.test} evaluates other weights than {files.training} has: "
            f"`dvc repro` was not committed"
        )
    return run


def _build_row(config: Config, name: str, runs: list[Run]) -> Row:
    completed = [run for run in runs if run.status == "completed"]
    trained, tested = [run.trained for run in completed], [run.tested for run in completed]

    def compute_mean(records: Sequence[TrainRecord | EvalRecord], key: str) -> MeanCI | None:
        values = [getattr(record, key) for record in records]
        if not values or None in values:
            return None
        return compute_mean_ci(values)

    return Row(
        name,
        tuple(run.status for run in runs),
        compute_mean(trained, "validation_accuracy"),
        compute_mean(trained, "validation_loss"),
        compute_mean(trained, "train_loss"),
        compute_mean(tested, "test_accuracy"),
        compute_mean(tested, "mirrored_test_accuracy") if config.data.mirror_test else None,
        compute_mean(tested, "test_loss"),
        compute_mean(tested, "expected_calibration_error"),
        _compute_gradients_per_step(trained),
    )


def _compute_gradients_per_step(trained: list[TrainRecord]) -> float | None:
    counts = [epoch.gradients for each in trained for epoch in each.history]
    known = [count for count in counts if count is not None]
    steps = sum(len(losses) for each in trained for losses in each.step_losses)
    return sum(known) / steps if known and len(known) == len(counts) else None
