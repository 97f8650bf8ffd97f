"""Models of params.yaml, strict and frozen: structure and types, checked before torch is imported.

The preflight checks what only torch can: that each class exists and takes its hyperparameters.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from optlab.schema.optimizer import (
    ConstantSchedule,
    OptimizerSpec,
    Schedule,
    StrictModel,
    check_warmup,
    compute_warmup_steps,
)
from optlab.system.errors import ConfigError
from optlab.system.text import suggest_similar

PARAMS_FILE = Path("params.yaml")
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of CIFAR-10
NUM_CLASSES = len(CLASS_NAMES)
SPLIT_SIZES = {"cifar10": {"train": 50_000, "test": 10_000}, "cifar10_sample": {"train": 500, "test": 100}}
SEED_LIMIT_OF_RUNS = 2**31  # of tuned optimizers; larger seeds are those of trials
NAME_PATTERN = r"^[a-z][a-z0-9_]{0,99}$"  # part of file names, which have 255 bytes at most


class DataConfig(StrictModel):
    """Images to train on. Sizes count images, evenly over the classes.

    With `resplit`, each seed draws other validation images, the same for every optimizer; otherwise all runs have the
    same. With `augment: flip_crop`, each image is flipped at random and cropped at random from itself with a border of
    four black pixels, again in each epoch. With `alternating_flip_crop`, it is mirrored in every second epoch, and
    moved by at most two pixels, with its border reflected. With `mirror_test`, the evaluation also predicts from each
    test image together with its mirror image; dumps leave out False, so that digests and reports stay as they were.
    """

    dataset: Literal["cifar10", "cifar10_sample"] = "cifar10"
    train_split: Literal["train", "test"] = "train"
    shuffle: bool = True
    train_size: int = Field(ge=NUM_CLASSES)
    validation_size: int = Field(ge=0)
    resplit: bool = False
    augment: Literal["none", "flip_crop", "alternating_flip_crop"] = "none"
    mirror_test: bool = Field(default=False, exclude_if=lambda on: not on)

    @field_validator("train_size", "validation_size")
    @classmethod
    def _check_class_multiple(cls, size: int) -> int:
        if size % NUM_CLASSES:
            raise ValueError(f"must be a multiple of {NUM_CLASSES}, the number of classes, not {size}")
        return size

    @model_validator(mode="after")
    def _check_splits(self) -> "DataConfig":
        if self.train_split == "test" and self.validation_size:
            raise ValueError("validation_size must be 0 when train_split is 'test': it would be part of the test")
        if self.train_split == "train" and not self.validation_size:
            raise ValueError("validation_size must be at least 10: the best run is chosen on the validation split")
        if self.resplit and not self.validation_size:
            raise ValueError("resplit must be false where validation_size is 0: there is no split to draw again")
        size = SPLIT_SIZES[self.dataset][self.train_split]
        if self.train_size + self.validation_size > size:
            raise ValueError(
                f"train_size + validation_size is {self.train_size + self.validation_size}, but the "
                f"{self.train_split} split of {self.dataset} has {size} images"
            )
        return self


class TrainingConfig(StrictModel):
    """Settings of a training that all optimizers share.

    The `validations_per_epoch` are at equal distances, the last at the epoch's end. `label_smoothing` is the share of a
    label that is spread evenly over all classes, in the minimised loss and in no other.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(ge=1, le=1024)
    numerics: Literal["fast", "portable"] = "fast"
    validations_per_epoch: int = Field(1, ge=1, le=1000)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    schedule: Schedule = ConstantSchedule(name="constant", warmup_epochs=0)

    @model_validator(mode="after")
    def _check_warmup(self) -> "TrainingConfig":
        check_warmup("", self.schedule, self.epochs)
        return self

    @model_validator(mode="after")
    def _check_precision(self) -> "TrainingConfig":
        if self.numerics == "portable" and self.precision != "fp32":
            raise ValueError("precision must be fp32 with `numerics: portable`: no CPU held to AVX2 multiplies bf16")
        return self


class VerdictConfig(StrictModel):
    """Settings of the verdicts; they decide no training.

    Attributes:
        margin: largest difference in accuracy that counts as equivalent.
        target: a validation accuracy; None for the mean final one of the second best optimizer.
        looks: planned numbers of seeds at which there is a verdict.
    """

    margin: float = Field(default=0.005, gt=0, lt=1)
    target: float | None = Field(default=None, gt=0, le=1)
    looks: list[Annotated[int, Field(ge=2, le=10_000)]] = Field(default=[3, 5, 8, 12, 20, 30], min_length=1)

    @field_validator("looks")
    @classmethod
    def _check_looks_increase(cls, looks: list[int]) -> list[int]:
        if looks != sorted(set(looks)):
            raise ValueError(f"must increase, such as {sorted(set(looks))}: each is a number of seeds")
        return looks


class SensitivityConfig(StrictModel):
    """Grid over the learning rate alone, around the chosen one.

    Attributes:
        points: number of learning rates.
        decades: width of the grid.
        seeds: number of seeds to train each point with.
    """

    points: int = Field(ge=2, le=1000)
    decades: float = Field(gt=0, le=20)
    seeds: int = Field(ge=1, le=1000)


class TuningConfig(StrictModel):
    """Settings of the search in the ranges; unused without a range.

    Attributes:
        trials: number of sampled points, besides the default.
        halving: successive halving: of each rung, one trial in `halving` is trained `halving` times as long; 1 trains
            all to the end.
        seed: of the sampled points.
        per_seed: whether each seed of `seeds` has a search of its own, with whose choice its run is trained. The
            scatter of the runs then includes that of the searches. With false, one search chooses for all seeds.
        sensitivity: grid to train after a choice; None for none.
    """

    trials: int = Field(default=16, ge=1, le=2**16)
    halving: int = Field(default=4, ge=1, le=64)
    seed: int = Field(default=0, ge=0, lt=2**32)
    per_seed: bool = True
    sensitivity: SensitivityConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, values: Any) -> Any:
        """Read `studies: 1` of earlier versions as `per_seed: false`."""
        if not isinstance(values, dict) or "studies" not in values:
            return values
        if values["studies"] != 1:
            raise ValueError("studies was removed: delete it; `per_seed: true` runs one search for each seed")
        return {"per_seed": False} | {key: value for key, value in values.items() if key != "studies"}


class Config(StrictModel):
    """Content of params.yaml."""

    model: str = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)
    data: DataConfig
    training: TrainingConfig
    optimizers: dict[Annotated[str, Field(pattern=NAME_PATTERN)], OptimizerSpec] = Field(min_length=1)
    verdict: VerdictConfig = VerdictConfig()
    tuning: TuningConfig = TuningConfig()

    @field_validator("seeds")
    @classmethod
    def _check_seeds_distinct(cls, seeds: list[int]) -> list[int]:
        duplicates = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if duplicates:
            raise ValueError(f"seed {duplicates[0]} is listed twice: each seed must be there once")
        return seeds

    @model_validator(mode="after")
    def _check_batch_size(self) -> "Config":
        if self.training.batch_size > self.data.train_size:
            raise ValueError(
                f"training.batch_size is {self.training.batch_size}, more than data.train_size, "
                f"{self.data.train_size}: make it smaller"
            )
        return self

    @model_validator(mode="after")
    def _check_warmups(self) -> "Config":
        for name, spec in self.optimizers.items():
            where = f"optimizers.{name}." if spec.schedule else "training."
            schedule = self.get_schedule(name)
            check_warmup(where, schedule, self.training.epochs)
            if schedule.name != "constant" and compute_warmup_steps(schedule, self.steps_per_epoch) >= self.total_steps:
                raise ValueError(
                    f"{where}schedule.warmup_epochs is {schedule.warmup_epochs:g}: the warm-up takes all "
                    f"{self.total_steps} steps of the training, and the schedule {schedule.name} none: make it smaller"
                )
        return self

    @model_validator(mode="after")
    def _check_target(self) -> "Config":
        if self.verdict.target is not None and not self.data.validation_size:
            raise ValueError("verdict.target is a validation accuracy, but data.validation_size is 0: remove it")
        return self

    @model_validator(mode="after")
    def _check_validations(self) -> "Config":
        if self.training.validations_per_epoch > 1 and not self.data.validation_size:
            raise ValueError("training.validations_per_epoch has no use where data.validation_size is 0: remove it")
        return self

    @model_validator(mode="after")
    def _check_tunable(self) -> "Config":
        name = next((name for name, spec in self.optimizers.items() if spec.ranges), None)
        if name and not self.data.validation_size:
            raise ValueError(
                f"optimizers.{name} has a range, but data.validation_size is 0: its value is chosen on that split"
            )
        if name and max(self.seeds) >= SEED_LIMIT_OF_RUNS:
            raise ValueError(
                f"seeds: {max(self.seeds)} is too large: seeds from {SEED_LIMIT_OF_RUNS} upwards are those of trials, "
                f"which optimizers.{name} has"
            )
        return self

    def get_search_number(self, seed: int) -> int:
        """Return the number of the search that chooses for the run with that seed: the seed, or 0 for all seeds."""
        return seed if self.tuning.per_seed else 0

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of a training."""
        return self.training.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps of an epoch; the last may see fewer images."""
        return math.ceil(self.data.train_size / self.training.batch_size)

    def get_optimizer(self, name: str) -> OptimizerSpec:
        """Return the entry of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.optimizers:
            raise ConfigError(f"{PARAMS_FILE}: there is no optimizer {name!r}{suggest_similar(name, self.optimizers)}")
        return self.optimizers[name]

    def get_schedule(self, name: str) -> Schedule:
        """Return the entry's schedule, or the common one."""
        return self.get_optimizer(name).schedule or self.training.schedule

    def list_class_paths(self, name: str | None = None) -> list[str]:
        """List the model and the classes of one optimizer, or of all, as params.yaml names them."""
        names = self.optimizers if name is None else [name]
        return [self.model, *(each for own in names for each in self.get_optimizer(own).classes)]

    def list_runs(self) -> list[tuple[str, int]]:
        """List (optimizer, seed) of every run, in the order of params.yaml."""
        return [(name, seed) for name in self.optimizers for seed in self.seeds]


def format_count(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 run` or `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_run_id(optimizer: str, seed: int) -> str:
    """Return the id of a run, such as `adam-0`."""
    return f"{optimizer}-{seed}"
