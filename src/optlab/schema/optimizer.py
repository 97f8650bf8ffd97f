"""The entries of `optimizers:` in params.yaml: classes with their hyperparameters, groups and schedules."""

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
MAX_COMBINATIONS = 256  # of an entry's choices: each is tried before anything trains
MAX_RANGES = 16  # of an entry: so many coordinates a point has

Hyperparameter = Annotated[HyperparameterValue | Range, BeforeValidator(search_space.parse_range)]


class StrictModel(BaseModel):
    """Frozen, no coercion, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ConstantSchedule(StrictModel):
    """The learning rate stays as configured."""

    name: Literal["constant"]
    warmup_epochs: float = Field(0, ge=0)


class CosineSchedule(StrictModel):
    """Half a cosine from the configured learning rate to zero (Loshchilov and Hutter, 2017, no restarts)."""

    name: Literal["cosine"]
    warmup_epochs: float = Field(0, ge=0)


class OneCycleSchedule(StrictModel):
    """Up to the configured learning rate and down again (Smith and Topin, 2018), as in torch's OneCycleLR.

    The rise is the warm-up: `warmup_epochs` is its length, 0 means 30 % of the run.
    """

    name: Literal["one_cycle"]
    warmup_epochs: float = Field(0, ge=0)


class StepSchedule(StrictModel):
    """The learning rate is multiplied by `gamma` after every `step_epochs` epochs."""

    name: Literal["step"]
    warmup_epochs: float = Field(0, ge=0)
    step_epochs: int = Field(ge=1)
    gamma: float = Field(0.1, gt=0, le=1)


def _check_schedule_name(schedule: Any) -> Any:
    if isinstance(schedule, dict) and not isinstance(schedule.get("name", ""), str):
        # pydantic would write the whole of it into its message, and a few aliases can make it endless.
        raise ValueError(f"name must be one of {', '.join(SCHEDULE_NAMES)}")
    return schedule


Schedule = Annotated[
    Annotated[ConstantSchedule | CosineSchedule | OneCycleSchedule | StepSchedule, Field(discriminator="name")],
    BeforeValidator(_check_schedule_name),
]


def compute_warmup_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Return the length of a schedule's warm-up, in steps: at least one, unless `warmup_epochs` is 0."""
    return max(1, round(schedule.warmup_epochs * steps_per_epoch)) if schedule.warmup_epochs else 0


def check_warmup(prefix: str, schedule: Schedule, epochs: int) -> None:
    """Raises ValueError if the warm-up is as long as the training; the message begins with `prefix`."""
    if schedule.warmup_epochs >= epochs:
        raise ValueError(
            f"{prefix}schedule.warmup_epochs is {schedule.warmup_epochs:g}, which must be less than epochs, {epochs}"
        )


class _HyperparameterModel(BaseModel):
    """Keys of its own, and a class's hyperparameters by their own names.

    Attributes:
        default: values of those with a range that are trained first; what is left out has the class's default.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Hyperparameter] = Field(init=False)

    default: dict[str, HyperparameterValue] = Field(default_factory=dict)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the class."""
        return dict(self.__pydantic_extra__)

    @property
    def local_ranges(self) -> dict[str, Range]:
        """Those of its hyperparameters whose value is looked for, in the order of the file."""
        return {
            key: value
            for key, value in self.hyperparameters.items()
            if isinstance(value, NumericRange | CategoricalRange)
        }

    @model_validator(mode="after")
    def _check_learning_rate(self) -> "_HyperparameterModel":
        lr = self.hyperparameters.get("lr", 0.0)
        if isinstance(lr, NumericRange) and lr.is_integer:
            raise ValueError("lr has a range of whole numbers: write its ends as decimals, such as 1.0")
        within = (
            [lr.low, lr.high]
            if isinstance(lr, NumericRange)
            else lr.choice
            if isinstance(lr, CategoricalRange)
            else [lr]
        )
        for each in within:
            if each is None:  # some classes find it themselves then; others refuse it by their signature
                continue
            if isinstance(each, bool) or not isinstance(each, int | float):
                suggestion = suggest_spelling(each, {float})
                raise ValueError(
                    f"lr must be a number, not {format_value(each)}{f': write {suggestion}' if suggestion else ''}"
                )
            if not 0 <= each < MAX_LR:
                raise ValueError(f"lr must be a number from 0 up, and finite, not {format_value(each)}")
        return self

    @model_validator(mode="after")
    def _check_names_distinct(self) -> "_HyperparameterModel":
        """A mapping among a choice's options gives values to hyperparameters that nothing else does."""
        own = self.local_ranges
        option_keys = {
            key: {name for option in each.choice if isinstance(option, dict) for name in option}
            for key, each in own.items()
            if isinstance(each, CategoricalRange)
        }
        within = set().union(*option_keys.values())
        for name in sorted(within):
            owners = [key for key, names in option_keys.items() if name in names]
            if len(owners) > 1:
                raise ValueError(f"{name} is in mappings of both {owners[0]} and {owners[1]}: leave one")
        taken = within & {*type(self).model_fields, "class", *self.hyperparameters}
        if taken:
            raise ValueError(
                f"{min(taken)} is in a mapping of a choice, and has a value or a meaning besides: leave one"
            )
        unknown = [name for name in self.default if name not in own and name not in within]
        if unknown:
            raise ValueError(f"default.{unknown[0]} has no range here, so it has no use: remove it")
        return self


class GroupSpec(_HyperparameterModel):
    """Some of a model's parameters, with values of their own: those of that name, or of so many dimensions."""

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
        """What its parameters have in common, as params.yaml has it."""
        return f"ndim {self.ndim}" if self.match is None else self.match

    def matches(self, name: str, ndim: int) -> bool:
        """Whether a parameter of that name and so many dimensions is one of them."""
        return ndim == self.ndim if self.match is None else fnmatch.fnmatchcase(name, self.match)


class OptimizerSpec(_HyperparameterModel):
    """One entry of `optimizers:`.

    Attributes:
        class_: of torch.optim, or a dotted path.
        groups: parameters with hyperparameters of their own; the first that has a parameter counts.
        base: the optimizer that the class wraps, where it wraps one.
        fallback: takes the parameters that the class refuses; where there are groups, those that none of them has.
        schedule: instead of the one that all entries share.
        create_graph: whether gradients are computed so that they can be differentiated once more; None for what the
            class says that it needs.
    """

    class_: str = Field(alias="class", min_length=1)
    groups: list[GroupSpec] = Field(default_factory=list)
    base: "OptimizerSpec | None" = None
    fallback: "OptimizerSpec | None" = None
    schedule: Schedule | None = None
    create_graph: bool | None = None

    @property
    def classes(self) -> list[str]:
        """Those of the whole entry, as params.yaml names them."""
        parts = (self.base, self.fallback)
        return [self.class_, *(name for part in parts if part for name in part.classes)]

    @property
    def ranges(self) -> dict[str, Range]:
        """Those of the whole entry: `lr`, `groups.0.lr`, `base.lr`, `fallback.lr` and so on."""
        found = dict(self.local_ranges)
        for prefix, part in self._list_parts():
            own = part.ranges if isinstance(part, OptimizerSpec) else part.local_ranges
            found |= {f"{prefix}.{key}": value for key, value in own.items()}
        return found

    def _list_parts(self) -> "list[tuple[str, GroupSpec | OptimizerSpec]]":
        named: list[tuple[str, GroupSpec | OptimizerSpec]] = [
            (f"groups.{number}", each) for number, each in enumerate(self.groups)
        ]
        return named + [(name, part) for name, part in (("base", self.base), ("fallback", self.fallback)) if part]

    def replace_ranges(self, values: dict[str, Any]) -> "OptimizerSpec":
        """The entry with these values in place of its ranges, named as in `ranges`; without one, with its default."""
        return OptimizerSpec.model_validate(self._dump_with_values(values))

    def get_default(self, key: str) -> Any:
        """Return the entry's default for a range, named as in `ranges`; None for a group's, and if the class has it."""
        where, _, name = key.rpartition(".")
        part = {"": self, "base": self.base, "fallback": self.fallback}.get(where)
        return part.default.get(name) if part else None

    def _dump_with_values(self, values: dict[str, Any]) -> dict[str, Any]:
        found = self.model_dump(by_alias=True, exclude={"default", "groups", "base", "fallback", *self.local_ranges})
        found["groups"] = [
            each.model_dump(exclude={"default", *each.local_ranges})
            | _choose_values(each, _select_prefixed(values, f"groups.{number}."))
            for number, each in enumerate(self.groups)
        ]
        for name, part in (("base", self.base), ("fallback", self.fallback)):
            if part:
                found[name] = part._dump_with_values(_select_prefixed(values, f"{name}."))
        return found | _choose_values(self, values)

    def generate_extremes(self) -> "Iterator[OptimizerSpec]":
        """Its default, and every combination of its choices with all other ranges at one end, and at the other.

        What a class refuses, it refuses there.
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
        """Whatever is drawn, it makes an entry that could stand in params.yaml."""
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
    """Its own hyperparameters among the values; the default's where none is among them."""
    found: dict[str, Any] = {}
    chosen = {key: values[key] for key in part.local_ranges if key in values} or part.default
    for key, value in chosen.items():
        found |= value if isinstance(value, dict) else {key: value}
    return found
