"""Ranges of hyperparameters in params.yaml: where a tuning looks for the value."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from optlab.system.text import format_value

MAX_BOUND = 1e300  # of an end: ten times as much is still a number
EDGE_FRACTION = 0.1  # of a range on the logarithmic scale, at each end: the best value there may lie beyond
_RANGE_EXAMPLES = "{log: [0.001, 1]}, {linear: [0.0, 1.0]} or {choice: [0.0, 0.9]}"

HyperparameterValue = bool | int | float | str | None | list[int | float]


class NumericRange(BaseModel):
    """All numbers between two; whole ones where both are whole and the scale is linear.

    Attributes:
        scale: of which equal parts are equally likely.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    scale: Literal["log", "linear"]
    low: int | float
    high: int | float

    @model_serializer
    def _serialize_range(self) -> dict[str, list[int | float]]:
        return {self.scale: [self.low, self.high]}

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers."""
        return self.scale == "linear" and isinstance(self.low, int) and isinstance(self.high, int)

    def map_from_unit(self, fraction: float) -> float | int:
        """The value at a place between 0, the low end, and 1; six digits of it, so that any machine has the same.

        An end with more digits is not left by their rounding.
        """
        if self.is_integer:
            return min(self.high, self.low + math.floor(fraction * (self.high - self.low + 1)))
        if self.scale == "log":
            exact = math.exp(_interpolate(math.log(self.low), math.log(self.high), fraction))
        else:
            exact = _interpolate(self.low, self.high, fraction)
        return min(max(float(f"{exact:.6g}"), float(self.low)), float(self.high))

    def map_to_unit(self, value: float) -> float:
        """Where a value lies on the scale: 0 at the low end, 1 at the high one."""
        low, high, position = self.low, self.high, float(value)
        if self.scale == "log":
            low, high, position = math.log(low), math.log(high), math.log(position)
        return (position - low) / (high - low)

    def find_edge(self, value: float) -> int:
        """-1 or 1 where a value lies in the outer tenth of a logarithmic range, below or above; 0 elsewhere."""
        if self.scale != "log":
            return 0
        fraction = self.map_to_unit(value)
        return -1 if fraction <= EDGE_FRACTION else 1 if fraction >= 1 - EDGE_FRACTION else 0

    def get_adjacent_decade(self, edge: int) -> "NumericRange":
        """The ten times larger, or smaller, values next to that edge."""
        low, high = (self.high, self.high * 10) if edge > 0 else (self.low / 10, self.low)
        return NumericRange(scale="log", low=low, high=high)


class CategoricalRange(BaseModel):
    """Some values; one that is a mapping gives several hyperparameters theirs."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    choice: list[HyperparameterValue] | list[dict[str, HyperparameterValue]] = Field(min_length=2)

    def map_from_unit(self, fraction: float) -> Any:
        """The one at a place between 0 and 1, each for an equal part."""
        return self.choice[min(len(self.choice) - 1, math.floor(fraction * len(self.choice)))]


Range = NumericRange | CategoricalRange


def parse_range(value: Any) -> Any:
    """A mapping that describes a range, as one; anything else as it is.

    Raises:
        ValueError: it is a mapping, and describes none.
    """
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and "choice" in value:
        try:
            return CategoricalRange(**value)
        except ValidationError:
            raise ValueError(
                f"choice must be a list of two or more values, or of mappings of hyperparameters to values, not "
                f"{format_value(value['choice'])}"
            ) from None
    if len(value) != 1 or next(iter(value)) not in ("log", "linear"):
        raise ValueError(f"a mapping here is a range, such as {_RANGE_EXAMPLES}, not {format_value(value)}")
    ((scale, ends),) = value.items()
    are_numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not are_numbers or not all(abs(end) <= MAX_BOUND for end in ends) or ends[0] >= ends[1]:
        raise ValueError(f"{scale} must be two numbers, the smaller one first, not {format_value(ends)}")
    if scale == "log" and ends[0] <= 0:
        raise ValueError(f"log must be of numbers above 0, not {format_value(ends)}")
    return NumericRange(scale=scale, low=ends[0], high=ends[1])


def _interpolate(low: float, high: float, fraction: float) -> float:
    return low + fraction * (high - low)
