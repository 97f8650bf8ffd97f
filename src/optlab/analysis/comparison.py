"""All runs of params.yaml side by side: figures per optimizer, and the differences between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from optlab.analysis import environment_diff, paired_tests, tuning_results
from optlab.analysis.colours import assign_colours
from optlab.analysis.paired_tests import MeanCI
from optlab.analysis.tuning_results import OptimizerTuning
from optlab.records import Environment, EvalRecord, RunFiles, Status, TrainRecord
from optlab.schema.parameters import SPLIT_SIZES, Config
from optlab.system.errors import RecordError, RevisionError
from optlab.system.git import Revision


@dataclass(frozen=True)
class Run:
    """One run's record as it was written; its conditions are None where none are recorded for these weights."""

    files: RunFiles
    trained: TrainRecord
    tested: EvalRecord
    conditions: Environment | None = None

    @property
    def status(self) -> Status:
        """`diverged` if the training or the evaluation did."""
        return "diverged" if "diverged" in (self.trained.status, self.tested.status) else "completed"

    @property
    def is_consistent(self) -> bool:
        """Whether the evaluation is of the trained weights, as far as is recorded."""
        return self.tested.weights_sha256 in (None, self.trained.weights_sha256)


@dataclass(frozen=True)
class Row:
    """One optimizer over all its seeds. Figures are of the runs that completed; None where they have none.

    Attributes:
        gradients_per_step: how many were computed for each step, on average; None in records of older versions.
    """

    optimizer: str
    statuses: tuple[str, ...]
    validation_accuracy: MeanCI | None
    validation_loss: MeanCI | None
    train_loss: MeanCI | None
    test_accuracy: MeanCI | None
    test_loss: MeanCI | None
    calibration_error: MeanCI | None
    gradients_per_step: float | None

    @property
    def all_completed(self) -> bool:
        """Whether all its runs completed: the survivors of a divergence are a chosen sample."""
        return "diverged" not in self.statuses

    @property
    def status(self) -> str:
        """`get_completed_runs`, or how many of the runs diverged."""
        bad = self.statuses.count("diverged")
        return (
            "completed"
            if not bad
            else "diverged"
            if bad == len(self.statuses)
            else f"{bad} of {len(self.statuses)} diverged"
        )


@dataclass(frozen=True)
class Target:
    """A validation accuracy, and after how many steps each run was first seen to have it.

    Attributes:
        accuracy: a fraction.
        is_given: whether params.yaml has it.
        steps: optimizer → one of each of its seeds; None where it was never seen.
    """

    accuracy: float
    is_given: bool
    steps: dict[str, tuple[int | None, ...]]

    def count_reached(self, optimizer: str) -> int:
        """How many of its runs have."""
        return sum(step is not None for step in self.steps[optimizer])

    def compute_median_steps(self, optimizer: str) -> int | None:
        """After how many steps at least half of its runs had; None if that never was.

        The median of Kaplan and Meier's estimate (1958), for runs that were all watched for the same time.
        """
        own = self.steps[optimizer]
        found = sorted(step for step in own if step is not None)
        half = math.ceil(len(own) / 2)
        return found[half - 1] if len(found) >= half else None


@dataclass(frozen=True)
class Comparison:
    """One row for each optimizer, all runs in the order of params.yaml, and the best run.

    Attributes:
        rows: from the best mean to the worst, those with a diverged run last; with one seed in the order of
            params.yaml, for there it is no order.
        selection_metric: the figure that orders them and chooses the champion: validation accuracy, or training loss
            without a validation split.
        verdict_metric: the figure that the verdict is about: test accuracy, or training loss where the runs were
            trained on the test split.
        champion: the completed run with the best such figure; None if every run diverged.
        differing_conditions: what the runs were not all made under, as `environment_diff.find_differing_conditions`
            has it.
        tunings: by optimizer, of those with a range.
        challenger: the one that all others are compared with, where they are not compared with each other.
        notes: what has to be known besides, in sentences.
    """

    config: Config
    rows: list[Row]
    runs: list[Run]
    selection_metric: str
    verdict_metric: str
    champion: Run | None
    differing_conditions: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    tunings: dict[str, OptimizerTuning] = field(default_factory=dict)
    challenger: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many independent figures each optimizer has: one a seed, or one a study where there are several."""
        return self.config.n_replicates

    @property
    def replicate_name(self) -> str:
        """What these are called, when there are several."""
        studies, seeds = self.config.tuning.studies, len(self.config.seeds)
        return "seeds" if self.n == seeds else f"studies of {seeds // studies} seeds each"

    @cached_property
    def colours(self) -> dict[str, str]:
        """Optimizer → its colour. A challenger changes none of the study's."""
        return assign_colours(sorted(self.config.optimizers, key=lambda name: name == self.challenger))

    @cached_property
    def pairs(self) -> dict[tuple[str, str], paired_tests.PairedComparison]:
        """The differences in the figure of the verdict, between optimizers all of whose runs completed.

        Where there is a challenger, those between it and each of the others. Empty with one seed.
        """
        completed = [row.optimizer for row in self.rows if row.all_completed] if self.n > 1 else []
        names = list(combinations(completed, 2))
        if self.challenger:
            names = [
                (self.challenger, name)
                for name in completed
                if name != self.challenger and self.challenger in completed
            ]
        higher_is_better = self.verdict_metric == "test_accuracy"
        margin = self.config.verdict.margin if higher_is_better else None
        return {
            (first, second): paired_tests.compare_pair(
                self.get_replicate_values(first),
                self.get_replicate_values(second),
                len(names),
                margin,
                higher_is_better,
                self.resolution,
            )
            for first, second in names
        }

    @property
    def resolution(self) -> float:
        """The smallest step between two runs' figures of the verdict: one test image; 0 of a loss."""
        return 1 / SPLIT_SIZES[self.config.data.dataset]["test"] if self.verdict_metric == "test_accuracy" else 0.0

    @cached_property
    def target(self) -> Target | None:
        """Who has reached which validation accuracy, and when; None where there is none to be reached.

        The accuracy is that of params.yaml, or the mean that the second best optimizer ends with.
        """
        given = self.config.verdict.target
        ends = sorted((row.validation_accuracy.mean for row in self.rows if row.validation_accuracy), reverse=True)
        if given is None and len(ends) < 2:
            return None
        accuracy = ends[1] if given is None else given
        return Target(
            accuracy, given is not None, {row.optimizer: self._find_target_steps(row, accuracy) for row in self.rows}
        )

    def _find_target_steps(self, row: Row, accuracy: float) -> tuple[int | None, ...]:
        enough = accuracy - 1e-9  # a mean of equal numbers can be rounded up; one image more is at least 2e-5
        own = [run.trained.all_validations for run in self.runs if run.files.optimizer == row.optimizer]
        return tuple(
            next((each.step for each in looks if each.accuracy is not None and each.accuracy >= enough), None)
            for looks in own
        )

    def get_replicate_values(self, optimizer: str) -> list[float]:
        """The figure of the verdict, of each of its runs that completed, in the order of the seeds.

        Where there are several studies, one of each, if all runs completed: the mean over its seeds.
        """
        return compute_study_means(self.config, self.get_seed_values(optimizer))

    def get_seed_values(self, optimizer: str) -> list[float]:
        """The same of every seed, also where there are several studies."""
        return [self.get_value(run) for run in self.get_completed_runs(optimizer)]

    def get_completed_runs(self, optimizer: str) -> list[Run]:
        """Its runs that completed, in the order of their seeds."""
        return [run for run in self.runs if run.files.optimizer == optimizer and run.status == "completed"]

    def get_value(self, run: Run) -> float:
        """The figure of the verdict, of a run that completed."""
        return float(
            getattr(run.tested if self.verdict_metric == "test_accuracy" else run.trained, self.verdict_metric)
        )


class RecordFolders(NamedTuple):
    """The folders of the pipelines that have an optimizer's runs, and its tuning."""

    runs: Path
    tuning: Path


def collect(config: Config, folder: Path, revision: Revision | None = None,
            folder_overrides: Mapping[str, RecordFolders] | None = None) -> Comparison:  # fmt: skip
    """Read the record of every run that params.yaml names.

    Args:
        folder: of the pipeline.
        revision: whose record it is; default: the files that are there.
        folder_overrides: where the record of some optimizers is, if not there.

    Raises:
        RecordError: a file of the record is missing, damaged, of a run under other parameters, or an evaluation of
            other weights.
        RevisionError: the revision's record is incomplete, or such an evaluation is in it.
    """
    validated = config.data.validation_size > 0
    selection_metric = "validation_accuracy" if validated else "train_loss"
    folders = dict.fromkeys(config.optimizers, RecordFolders(folder, folder)) | dict(folder_overrides or {})
    runs = [
        _load_run(RunFiles(folders[name].runs, name, seed), selection_metric, revision)
        for name, seed in config.list_runs()
    ]
    rows = [
        _build_row(config, name, [run for run in runs if run.files.optimizer == name]) for name in config.optimizers
    ]
    sign = -1 if validated else 1

    def get_sort_key(figure: MeanCI | None) -> tuple[bool, float]:
        return (figure is None, sign * figure.mean if figure else 0.0)

    if config.n_replicates > 1:
        rows.sort(key=lambda row: (not row.all_completed, *get_sort_key(getattr(row, selection_metric))))
    verdict_metric = "test_accuracy" if config.data.train_split == "train" else "train_loss"
    completed = [run for run in runs if run.status == "completed"]
    champion = min(completed, key=lambda run: sign * getattr(run.trained, selection_metric), default=None)
    environments = {run.files.id: run.conditions for run in runs}
    differing_conditions = environment_diff.find_differing_conditions(
        environments, portable=config.training.numerics == "portable"
    )
    tunings = tuning_results.collect(config, {name: each.tuning for name, each in folders.items()}, revision)
    return Comparison(config, rows, runs, selection_metric, verdict_metric, champion, differing_conditions, tunings)


def compute_study_means(config: Config, values: list[float]) -> list[float]:
    """Values of the seeds as means of the studies that they belong to, in the studies' order.

    They are as they are where there is one study, or where one of them is missing.
    """
    if config.n_replicates != config.tuning.studies or len(values) < len(config.seeds):
        return values
    values_by_study: dict[int, list[float]] = {}
    for seed, value in zip(config.seeds, values, strict=True):
        values_by_study.setdefault(config.get_study(seed), []).append(value)
    return [math.fsum(own) / len(own) for _, own in sorted(values_by_study.items())]


def _load_run(files: RunFiles, selection_metric: str, revision: Revision | None) -> Run:
    if revision is None:
        trained = TrainRecord.read(files.training)
        conditions = Environment.read_for_weights(files.environment, trained.weights_sha256)
        run = Run(files, trained, EvalRecord.read(files.test), conditions)
        if not run.is_consistent:
            raise RecordError(f"{files.test}: evaluates other weights than {files.training} has: run `dvc repro`")
    else:
        run = load_run_at_revision(revision, files)
    if run.status == "completed" and getattr(run.trained, selection_metric) is None:
        what = selection_metric.replace("_", " ")
        raise RecordError(f"{files.training}: has no {what}: it is of other parameters: run `dvc repro`")
    return run


def load_run_at_revision(revision: Revision, files: RunFiles) -> Run:
    """One run as a revision has it.

    Raises:
        RevisionError: its record is incomplete.
    """
    trained, tested = (
        TrainRecord.read_at_revision(revision, files.training),
        EvalRecord.read_at_revision(revision, files.test),
    )
    if trained is None or tested is None:
        raise RevisionError(f"{revision.name}: the record of {files.id} is incomplete: `dvc repro` was not committed")
    conditions = Environment.read_at_revision(revision, files.environment)
    known = conditions is not None and conditions.weights_sha256 == trained.weights_sha256
    run = Run(files, trained, tested, conditions if known else None)
    if not run.is_consistent:
        raise RevisionError(
            f"{revision.name}: {files.test} evaluates other weights than {files.training} has: "
            f"`dvc repro` was not committed"
        )
    return run


def _build_row(config: Config, name: str, runs: list[Run]) -> Row:
    def compute_metric(part: str, key: str) -> MeanCI | None:
        values = [getattr(getattr(run, part), key) for run in runs if run.status == "completed"]
        return (
            None if not values or None in values else paired_tests.compute_mean_ci(compute_study_means(config, values))
        )

    return Row(
        name,
        tuple(run.status for run in runs),
        compute_metric("trained", "validation_accuracy"),
        compute_metric("trained", "validation_loss"),
        compute_metric("trained", "train_loss"),
        compute_metric("tested", "test_accuracy"),
        compute_metric("tested", "test_loss"),
        compute_metric("tested", "expected_calibration_error"),
        _compute_gradients_per_step([run.trained for run in runs if run.status == "completed"]),
    )


def _compute_gradients_per_step(trained: list[TrainRecord]) -> float | None:
    counts = [epoch.gradients for each in trained for epoch in each.history]
    known = [count for count in counts if count is not None]
    steps = sum(len(losses) for each in trained for losses in each.step_losses)
    return sum(known) / steps if known and len(known) == len(counts) else None
