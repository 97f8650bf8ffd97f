"""Models of the ranges of hyperparameters in params.yaml, which a tuning searches."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from optlab.system.text import format_value

MAX_BOUND = 1e300  # ten times as much is still a finite float
EDGE_FRACTION = 0.1  # at each end of a logarithmic range: a best value there suggests a better one beyond
_RANGE_EXAMPLES = "{log: [0.001, 1]}, {linear: [0.0, 1.0]} or {choice: [0.0, 0.9]}"

HyperparameterValue = bool | int | float | str | None | list[int | float]


class NumericRange(BaseModel):
    """Numbers between two ends; integers if both ends are integers and the scale is linear.

    Attributes:
        scale: values are uniform on it.
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
        """True if its values are integers."""
        return self.scale == "linear" and isinstance(self.low, int) and isinstance(self.high, int)

    def map_from_unit(self, fraction: float) -> float | int:
        """Return the value at a fraction from 0 (low end) to 1, rounded to six digits, the same on any machine.

        Rounding never leaves the range.
        """
        if self.is_integer:
            return min(self.high, self.low + math.floor(fraction * (self.high - self.low + 1)))
        if self.scale == "log":
            exact = math.exp(_interpolate(math.log(self.low), math.log(self.high), fraction))
        else:
            exact = _interpolate(self.low, self.high, fraction)
        return min(max(float(f"{exact:.6g}"), float(self.low)), float(self.high))

    def map_to_unit(self, value: float) -> float:
        """Return the fraction of the scale at which a value lies: 0 at the low end, 1 at the high one."""
        low, high, position = self.low, self.high, float(value)
        if self.scale == "log":
            low, high, position = math.log(low), math.log(high), math.log(position)
        return (position - low) / (high - low)

    def find_edge(self, value: float) -> int:
        """Return -1 or 1 for a value in the lower or upper tenth of a logarithmic range; 0 otherwise."""
        if self.scale != "log":
            return 0
        fraction = self.map_to_unit(value)
        return -1 if fraction <= EDGE_FRACTION else 1 if fraction >= 1 - EDGE_FRACTION else 0

    def get_adjacent_decade(self, edge: int) -> "NumericRange":
        """Return the range of the next decade beyond the edge: 1 above, -1 below."""
        low, high = (self.high, self.high * 10) if edge > 0 else (self.low / 10, self.low)
        return NumericRange(scale="log", low=low, high=high)


class CategoricalRange(BaseModel):
    """List of values; a mapping among them sets several hyperparameters."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    choice: list[HyperparameterValue] | list[dict[str, HyperparameterValue]] = Field(min_length=2)

    def map_from_unit(self, fraction: float) -> Any:
        """Return the choice at a fraction from 0 to 1; each has an equal part."""
        return self.choice[min(len(self.choice) - 1, math.floor(fraction * len(self.choice)))]


Range = NumericRange | CategoricalRange


def parse_range(value: Any) -> Any:
    """Parse a mapping as a range; return anything else unchanged.

    Raises:
        ValueError: the mapping is no range.
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
