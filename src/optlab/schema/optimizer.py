"""Models of the entries of `optimizers:` in params.yaml: class, hyperparameters, groups, base, fallback, schedule."""

import fnmatch
import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from optlab.schema import search_space
from optlab.schema.search_space import CategoricalRange, HyperparameterValue, NumericRange, Range
from optlab.system.text import format_value, suggest_spelling

SCHEDULE_NAMES = ("constant", "cosine", "one_cycle", "step")
MAX_LR = 1e300
MAX_COMBINATIONS = 256  # of an entry's choices: the preflight tries each
MAX_RANGES = 16  # of an entry: the dimensions of its search space

Hyperparameter = Annotated[HyperparameterValue | Range, BeforeValidator(search_space.parse_range)]


class StrictModel(BaseModel):
    """Base of the models: frozen, no coercion, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ConstantSchedule(StrictModel):
    """Constant learning rate."""

    name: Literal["constant"]
    warmup_epochs: float = Field(0, ge=0)


class CosineSchedule(StrictModel):
    """Half a cosine from the configured learning rate to zero (Loshchilov and Hutter, 2017, no restarts)."""

    name: Literal["cosine"]
    warmup_epochs: float = Field(0, ge=0)


class OneCycleSchedule(StrictModel):
    """Rise to the configured learning rate and fall (Smith and Topin, 2018), as in torch's OneCycleLR.

    The rise is the warm-up: `warmup_epochs` is its length, 0 means 30 % of the run.
    """

    name: Literal["one_cycle"]
    warmup_epochs: float = Field(0, ge=0)


class StepSchedule(StrictModel):
    """Learning rate multiplied by `gamma` after every `step_epochs` epochs."""

    name: Literal["step"]
    warmup_epochs: float = Field(0, ge=0)
    step_epochs: int = Field(ge=1)
    gamma: float = Field(0.1, gt=0, le=1)


def _check_schedule_name(schedule: Any) -> Any:
    if isinstance(schedule, dict) and not isinstance(schedule.get("name", ""), str):
        # pydantic would print the whole value, and a few aliases can make that endless.
        raise ValueError(f"name must be one of {', '.join(SCHEDULE_NAMES)}")
    return schedule


Schedule = Annotated[
    Annotated[ConstantSchedule | CosineSchedule | OneCycleSchedule | StepSchedule, Field(discriminator="name")],
    BeforeValidator(_check_schedule_name),
]


def compute_warmup_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Compute the length of a schedule's warm-up, in steps: at least one, unless `warmup_epochs` is 0."""
    return max(1, round(schedule.warmup_epochs * steps_per_epoch)) if schedule.warmup_epochs else 0


def check_warmup(prefix: str, schedule: Schedule, epochs: int) -> None:
    """Raise ValueError if the warm-up is as long as the training; the message begins with `prefix`."""
    if schedule.warmup_epochs >= epochs:
        raise ValueError(
            f"{prefix}schedule.warmup_epochs is {schedule.warmup_epochs:g}, which must be less than epochs, {epochs}"
        )


class _HyperparameterModel(BaseModel):
    """Base of the models that have a class's hyperparameters as extra keys.

    Attributes:
        default: values of hyperparameters with a range, for the first trial; others have the class's default.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Hyperparameter] = Field(init=False)

    default: dict[str, HyperparameterValue] = Field(default_factory=dict)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Hyperparameters of the class, by name."""
        return dict(self.__pydantic_extra__)

    @property
    def local_ranges(self) -> dict[str, Range]:
        """Hyperparameters with a range, in the order of the file; without those of groups, base and fallback."""
        return {key: value for key, value in self.hyperparameters.items() if isinstance(value, Range)}

    @model_validator(mode="after")
    def _check_learning_rate(self) -> "_HyperparameterModel":
        lr = self.hyperparameters.get("lr", 0.0)
        if isinstance(lr, NumericRange) and lr.is_integer:
            raise ValueError("lr has a range of whole numbers: write its ends as decimals, such as 1.0")
        values = lr.choice if isinstance(lr, CategoricalRange) else [lr]
        for each in [lr.low, lr.high] if isinstance(lr, NumericRange) else values:
            if each is None:  # some classes then choose the rate themselves; the preflight refuses it for others
                continue
            if isinstance(each, bool) or not isinstance(each, int | float):
                suggestion = suggest_spelling(each, {float})
                remedy = f": write {suggestion}" if suggestion else ""
                raise ValueError(f"lr must be a number, not {format_value(each)}{remedy}")
            if not 0 <= each < MAX_LR:
                raise ValueError(f"lr must be a number from 0 up, and finite, not {format_value(each)}")
        return self

    @model_validator(mode="after")
    def _check_names_distinct(self) -> "_HyperparameterModel":
        """Check that a mapping among a choice's options sets only hyperparameters that nothing else sets."""
        ranges = self.local_ranges
        option_keys = {
            key: {name for option in each.choice if isinstance(option, dict) for name in option}
            for key, each in ranges.items()
            if isinstance(each, CategoricalRange)
        }
        in_options = set().union(*option_keys.values())
        for name in sorted(in_options):
            owners = [key for key, names in option_keys.items() if name in names]
            if len(owners) > 1:
                raise ValueError(f"{name} is in mappings of both {owners[0]} and {owners[1]}: leave one")
        taken = in_options & {*type(self).model_fields, "class", *self.hyperparameters}
        if taken:
            raise ValueError(
                f"{min(taken)} is in a mapping of a choice, and has a value or a meaning besides: leave one"
            )
        unknown = [name for name in self.default if name not in ranges and name not in in_options]
        if unknown:
            raise ValueError(f"default.{unknown[0]} has no range here, so it has no use: remove it")
        return self


class GroupSpec(_HyperparameterModel):
    """One parameter group: parameters selected by name or by dimensions, with hyperparameters.

    Attributes:
        match: pattern of the parameters' names, as in `fnmatch`.
        ndim: number of the parameters' dimensions.
    """

    match: str | None = Field(None, min_length=1)
    ndim: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check_selector(self) -> "GroupSpec":
        if (self.match is None) == (self.ndim is None):
            raise ValueError(
                'a group has either `match`, a pattern such as "*.bias", or `ndim`, a number of dimensions'
            )
        return self

    @property
    def selector(self) -> str:
        """Selection of its parameters, as in params.yaml."""
        return f"ndim {self.ndim}" if self.match is None else self.match

    def matches(self, name: str, ndim: int) -> bool:
        """Tell if a parameter of that name and number of dimensions belongs to the group."""
        return ndim == self.ndim if self.match is None else fnmatch.fnmatchcase(name, self.match)


class OptimizerSpec(_HyperparameterModel):
    """One entry of `optimizers:`.

    Attributes:
        class_: a name in torch.optim, or a dotted path.
        groups: parameter groups; a parameter belongs to the first that matches it.
        base: the optimizer that the class wraps, if it wraps one.
        fallback: takes the parameters that the class refuses, or that no group matches.
        schedule: replaces the schedule that all entries share.
        create_graph: make gradients differentiable, for second derivatives; None: if the class asks for it.
    """

    class_: str = Field(alias="class", min_length=1)
    groups: list[GroupSpec] = Field(default_factory=list)
    base: "OptimizerSpec | None" = None
    fallback: "OptimizerSpec | None" = None
    schedule: Schedule | None = None
    create_graph: bool | None = None

    @property
    def classes(self) -> list[str]:
        """Classes of the whole entry, as params.yaml names them."""
        parts = (self.base, self.fallback)
        return [self.class_, *(name for part in parts if part for name in part.classes)]

    @property
    def ranges(self) -> dict[str, Range]:
        """Ranges of the whole entry: `lr`, `groups.0.lr`, `base.lr`, `fallback.lr` and so on."""
        ranges = dict(self.local_ranges)
        for prefix, part in self._list_parts():
            inner = part.ranges if isinstance(part, OptimizerSpec) else part.local_ranges
            ranges |= {f"{prefix}.{key}": value for key, value in inner.items()}
        return ranges

    def _list_parts(self) -> "list[tuple[str, GroupSpec | OptimizerSpec]]":
        named: list[tuple[str, GroupSpec | OptimizerSpec]] = [
            (f"groups.{number}", each) for number, each in enumerate(self.groups)
        ]
        return named + [(name, part) for name, part in (("base", self.base), ("fallback", self.fallback)) if part]

    def replace_ranges(self, values: dict[str, Any]) -> "OptimizerSpec":
        """Return the entry with values in place of its ranges, named as in `ranges`; with its default without any."""
        return OptimizerSpec.model_validate(self._dump_with_values(values))

    def get_default(self, key: str) -> Any:
        """Return the entry's default for a range, named as in `ranges`; None for a group's, and if the class has it."""
        where, _, name = key.rpartition(".")
        part = {"": self, "base": self.base, "fallback": self.fallback}.get(where)
        return part.default.get(name) if part else None

    def _dump_with_values(self, values: dict[str, Any]) -> dict[str, Any]:
        dump = self.model_dump(by_alias=True, exclude={"default", "groups", "base", "fallback", *self.local_ranges})
        dump["groups"] = [
            each.model_dump(exclude={"default", *each.local_ranges})
            | _choose_values(each, _select_prefixed(values, f"groups.{number}."))
            for number, each in enumerate(self.groups)
        ]
        for name, part in (("base", self.base), ("fallback", self.fallback)):
            if part:
                dump[name] = part._dump_with_values(_select_prefixed(values, f"{name}."))
        return dump | _choose_values(self, values)

    def generate_extremes(self) -> "Iterator[OptimizerSpec]":
        """Yield the entry's default, and every combination of choices with all other ranges at either end.

        A class that refuses any value of a range refuses one of these.
        """
        yield self.replace_ranges({})
        choices = {key: each.choice for key, each in self.ranges.items() if isinstance(each, CategoricalRange)}
        intervals = {key: each for key, each in self.ranges.items() if isinstance(each, NumericRange)}
        for chosen in itertools.product(*choices.values()):
            for end in (0.0, 1.0) if intervals else (0.0,):
                yield self.replace_ranges(
                    dict(zip(choices, chosen, strict=True))
                    | {key: each.map_from_unit(end) for key, each in intervals.items()}
                )

    @model_validator(mode="after")
    def _check_range_values(self) -> "OptimizerSpec":
        """Check that every value that can be sampled gives a valid entry."""
        if len(self.ranges) > MAX_RANGES:
            raise ValueError(f"it has {len(self.ranges)} ranges, more than {MAX_RANGES}: give some of them a value")
        self._check_combinations()
        try:
            for _ in self.generate_extremes() if self.ranges else ():
                pass
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"with values of its ranges, {f'{where}: ' if where else ''}{message}") from None
        return self

    def _check_combinations(self) -> None:
        count = 1
        for each in self.ranges.values():
            count *= len(each.choice) if isinstance(each, CategoricalRange) else 1
        if count > MAX_COMBINATIONS:
            raise ValueError(
                f"its choices have {count:,} combinations, of which each is tried before anything trains: leave it "
                f"at {MAX_COMBINATIONS} at most"
            )

    @model_validator(mode="after")
    def _check_parts(self) -> "OptimizerSpec":
        for name, part in (("base", self.base), ("fallback", self.fallback)):
            unused_keys = ("fallback", "schedule", "create_graph", *(("groups", "base") if name == "base" else ()))
            for key in unused_keys:
                if part and getattr(part, key) not in (None, []):
                    raise ValueError(f"{name}.{key} would never be used: remove it")
        return self


def _select_prefixed(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _choose_values(part: _HyperparameterModel, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a part's ranges, or its default where there is none; mappings among them are merged."""
    result: dict[str, Any] = {}
    chosen = {key: values[key] for key in part.local_ranges if key in values} or part.default
    for key, value in chosen.items():
        result |= value if isinstance(value, dict) else {key: value}
    return result
