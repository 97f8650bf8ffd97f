"""params.yaml as strict, frozen models: shape and types, checked before torch is imported.

What only torch can tell (does the class exist, does it take this hyperparameter) is checked in
`optlab.optimizers.check` and `optlab.models.build`, which every stage calls before it works.
"""

import difflib
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from optlab.errors import ConfigError, one_line

PARAMS = Path("params.yaml")
CLASS_COUNT = 10
SPLIT_SIZES = {"cifar10": {"train": 50_000, "test": 10_000}, "cifar10_sample": {"train": 500, "test": 100}}
SCHEDULES = ("constant", "cosine", "one_cycle", "step")
MAXIMUM_LR = 1e300
NAME_PATTERN = r"^[a-z][a-z0-9_]*$"

Hyperparameter = bool | int | float | str | None | list[int | float]


class Strict(BaseModel):
    """Frozen, no coercion, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Data(Strict):
    """Which images are trained on. Sizes count images; both are split evenly over the classes."""

    dataset: Literal["cifar10", "cifar10_sample"] = "cifar10"
    train_split: Literal["train", "test"] = "train"
    shuffle: bool = True
    train_size: int = Field(ge=CLASS_COUNT)
    validation_size: int = Field(ge=0)

    @field_validator("train_size", "validation_size")
    @classmethod
    def _even(cls, size: int) -> int:
        if size % CLASS_COUNT:
            raise ValueError(f"must be a multiple of {CLASS_COUNT}, the number of classes, not {size}")
        return size

    @model_validator(mode="after")
    def _validation(self) -> "Data":
        if self.train_split == "test" and self.validation_size:
            raise ValueError("validation_size must be 0 when train_split is 'test': it would be part of the test")
        if self.train_split == "train" and not self.validation_size:
            raise ValueError("validation_size must be at least 10: the best run is chosen on the validation split")
        size = SPLIT_SIZES[self.dataset][self.train_split]
        if self.train_size + self.validation_size > size:
            raise ValueError(
                f"train_size + validation_size is {self.train_size + self.validation_size}, but the "
                f"{self.train_split} split of {self.dataset} has {size} images"
            )
        return self


class ConstantSchedule(Strict):
    """The learning rate stays as configured."""

    name: Literal["constant"]
    warmup_epochs: float = Field(0, ge=0)


class CosineSchedule(Strict):
    """Half a cosine from the configured learning rate to zero (Loshchilov and Hutter, 2017, no restarts)."""

    name: Literal["cosine"]
    warmup_epochs: float = Field(0, ge=0)


class OneCycleSchedule(Strict):
    """Up to the configured learning rate and down again (Smith and Topin, 2018), as in torch's OneCycleLR.

    The rise is the warm-up: `warmup_epochs` is its length, 0 means 30 % of the run.
    """

    name: Literal["one_cycle"]
    warmup_epochs: float = Field(0, ge=0)


class StepSchedule(Strict):
    """The learning rate is multiplied by `gamma` after every `step_epochs` epochs."""

    name: Literal["step"]
    warmup_epochs: float = Field(0, ge=0)
    step_epochs: int = Field(ge=1)
    gamma: float = Field(0.1, gt=0, le=1)


Schedule = Annotated[ConstantSchedule | CosineSchedule | OneCycleSchedule | StepSchedule, Field(discriminator="name")]


class Training(Strict):
    """Everything but the optimizer that decides a training."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(ge=1, le=1024)
    numerics: Literal["fast", "portable"] = "fast"
    schedule: Schedule = ConstantSchedule(name="constant", warmup_epochs=0)

    @field_validator("schedule", mode="before")
    @classmethod
    def _named(cls, schedule: Any) -> Any:
        if isinstance(schedule, dict) and not isinstance(schedule.get("name", ""), str):
            # pydantic would write the whole of it into its message, and a few aliases can make it endless.
            raise ValueError(f"name must be one of {', '.join(SCHEDULES)}")
        return schedule

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Training":
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs:g}, which must be less than epochs, "
                f"{self.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _portable(self) -> "Training":
        if self.numerics == "portable" and self.precision != "fp32":
            raise ValueError("precision must be fp32 with `numerics: portable`: no CPU held to AVX2 multiplies bf16")
        return self


class OptimizerSpec(BaseModel):
    """One entry of `optimizers:`: a class, and its hyperparameters by their own names."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Hyperparameter] = Field(init=False)

    class_: str = Field(alias="class", min_length=1)
    fallback: "OptimizerSpec | None" = None

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        """What is passed to the class, by keyword."""
        return dict(self.__pydantic_extra__)

    @model_validator(mode="after")
    def _one_fallback(self) -> "OptimizerSpec":
        if self.fallback and self.fallback.fallback:
            raise ValueError("fallback.fallback would never be used: remove it")
        return self

    @model_validator(mode="after")
    def _learning_rate(self) -> "OptimizerSpec":
        lr = self.hyperparameters.get("lr", 0.0)
        if isinstance(lr, bool) or not isinstance(lr, int | float):
            raise ValueError(f"lr must be a number, not {_shown(lr)}")
        if not 0 <= lr < MAXIMUM_LR:
            raise ValueError(f"lr must be a number from 0 up, and finite, not {_shown(lr)}")
        return self


class Config(Strict):
    """The whole of params.yaml."""

    model: str = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)
    data: Data
    training: Training
    optimizers: dict[Annotated[str, Field(pattern=NAME_PATTERN)], OptimizerSpec] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seed {twice[0]} is listed twice: each seed must be there once")
        return seeds

    @model_validator(mode="after")
    def _batch_fits(self) -> "Config":
        if self.training.batch_size > self.data.train_size:
            raise ValueError(
                f"training.batch_size is {self.training.batch_size}, more than data.train_size, "
                f"{self.data.train_size}: make it smaller"
            )
        return self

    def optimizer(self, name: str) -> OptimizerSpec:
        """The entry of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.optimizers:
            raise ConfigError(f"{PARAMS}: there is no optimizer {name!r}{did_you_mean(name, self.optimizers)}")
        return self.optimizers[name]

    def runs(self) -> list[tuple[str, int]]:
        """(optimizer, seed) of every run, in the order of params.yaml."""
        return [(name, seed) for name in self.optimizers for seed in self.seeds]


def run_id(optimizer: str, seed: int) -> str:
    """The id of a run, such as `adam-0`."""
    return f"{optimizer}-{seed}"


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """`: did you mean X?` for the nearest known word, regardless of case, or nothing."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f": did you mean {by_lower[near[0]]}?" if near else ""


def load(path: Path = PARAMS) -> Config:
    """Read and check params.yaml, by the rules of YAML 1.2, as DVC reads it.

    Raises:
        ConfigError: one line with the file, the line, the key and the remedy.
    """
    return parse(_read(path), path)


def parse(text: str, path: Path) -> Config:
    """Check the text of a params.yaml; errors as in `load`, which call it by `path`."""
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = (error.problem or str(error)).splitlines()[0]
        hint = ": indent with spaces, not with a tab" if "\\t" in problem else ""
        raise ConfigError(f"{where}: not valid YAML: {problem}{hint}") from None
    except Exception as error:  # a value that does not fit its tag, as in `!!int ""`, raises whatever Python raises
        raise ConfigError(f"{path}: not valid YAML: {type(error).__name__}: {one_line(error)}") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty: restore it with `git checkout {path}`")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(path, text, values, error)) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file here: run from the folder that holds it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _describe(path: Path, text: str, values: Any, error: ValidationError) -> str:
    """The first error as `params.yaml:LINE: key: what is wrong`, with a count of the others."""
    # A misspelt key is both unknown and missing: the first says more.
    errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    first = errors[0]
    location = _own_location(first["loc"], values)
    key, problem = ".".join(str(part) for part in location), _problem(first, location)
    # A check over several keys says first which one it is about; that one may have a line of its own.
    line = _line(text, [*location, *problem.split()[0].split(".")])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and first["type"] != "bool_type" else ""
    return f"{path}{f':{line}' if line else ''}: {key + ': ' if key else ''}{problem}{more}"


def _problem(error: Any, location: Sequence[Any]) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(location[-1]), _fields(error['loc'][:-1]))}"
    if kind == "missing":
        return "missing: add this key"
    if kind == "string_pattern_mismatch" or error["loc"][-1:] == ("[key]",):
        return "a name here is a lower-case letter, then lower-case letters, digits or underscores: rename it"
    if location == ["optimizers"] and value is None:
        return "empty: give it at least one optimizer, such as `adam: {class: Adam, lr: 0.001}`"
    if location[:1] == ["optimizers"] and len(location) == 2 and value is None:
        return "has no body: give it one, such as {class: Adam, lr: 0.001}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"must be a mapping of keys to values, not {_shown(value)}"
    if kind == "too_short":
        return "empty: give it at least one entry"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"name must be one of {', '.join(SCHEDULES)}"
    if kind == "bool_type" and len(location) > 2:
        return f"must be a number, true, false, text or a list of numbers, not {_shown(value)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return message if kind == "value_error" else f"{message}, not {_shown(value)}"


def _shown(value: Any) -> str:
    """The value as Python writes it, shortened: aliases in lists in lists can stand for billions of values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def _own_location(location: Sequence[Any], values: Any) -> list[Any]:
    """The keys of the file in pydantic's location, which also names members of unions and checks of keys."""
    own: list[Any] = []
    for part in location:
        inside = isinstance(values, dict) and part in values
        if not inside and (part in SCHEDULES or part == "[key]" or (own and not isinstance(values, dict | list))):
            continue
        own.append(part)
        within = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        values = values[part] if within else None
    depth = 4 if own[2:3] == ["fallback"] else 3  # below it are the members of a hyperparameter's union
    return own[:depth] if own[:1] == ["optimizers"] else own


def _fields(location: Sequence[Any]) -> list[str]:
    """The keys that are known at a place of params.yaml."""
    schedules: tuple[type[BaseModel], ...] = (ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule)
    models: dict[tuple[Any, ...], type[BaseModel]] = {(): Config, ("data",): Data, ("training",): Training}
    models |= {("training", "schedule", name): each for name, each in zip(SCHEDULES, schedules, strict=True)}
    return list(models[tuple(location)].model_fields)


def _line(text: str, location: Sequence[Any]) -> int | None:
    """The line, from 1, of the deepest part of `location` that the file has."""
    node: Node | None = YAML(typ="safe", pure=True).compose(text)
    line = None
    for part in location:
        if isinstance(node, MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
