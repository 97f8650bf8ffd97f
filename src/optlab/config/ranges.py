"""Ranges of hyperparameters in params.yaml: where a tuning looks for the value."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from optlab.system.wording import shown

MAXIMUM = 1e300  # of an end: ten times as much is still a number
EDGE = 0.1  # of a range on the logarithmic scale, at each end: the best value there may lie beyond
_KINDS = "{log: [0.001, 1]}, {linear: [0.0, 1.0]} or {choice: [0.0, 0.9]}"

Scalar = bool | int | float | str | None | list[int | float]


class Interval(BaseModel):
    """All numbers between two; whole ones where both are whole and the scale is linear.

    Attributes:
        scale: of which equal parts are equally likely.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    scale: Literal["log", "linear"]
    low: int | float
    high: int | float

    @model_serializer
    def _written(self) -> dict[str, list[int | float]]:
        return {self.scale: [self.low, self.high]}

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.scale == "linear" and isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, place: float) -> float | int:
        """The value at a place between 0, the low end, and 1; six digits of it, so that any machine has the same.

        An end with more digits is not left by their rounding.
        """
        if self.is_whole:
            return min(self.high, self.low + math.floor(place * (self.high - self.low + 1)))
        if self.scale == "log":
            exact = math.exp(_between(math.log(self.low), math.log(self.high), place))
        else:
            exact = _between(self.low, self.high, place)
        return min(max(float(f"{exact:.6g}"), float(self.low)), float(self.high))

    def place_of(self, value: float) -> float:
        """Where a value lies on the scale: 0 at the low end, 1 at the high one."""
        low, high, own = self.low, self.high, float(value)
        if self.scale == "log":
            low, high, own = math.log(low), math.log(high), math.log(own)
        return (own - low) / (high - low)

    def edge(self, value: float) -> int:
        """-1 or 1 where a value lies in the outer tenth of a logarithmic range, below or above; 0 elsewhere."""
        if self.scale != "log":
            return 0
        place = self.place_of(value)
        return -1 if place <= EDGE else 1 if place >= 1 - EDGE else 0

    def decade_beyond(self, edge: int) -> "Interval":
        """The ten times larger, or smaller, values next to that edge."""
        low, high = (self.high, self.high * 10) if edge > 0 else (self.low / 10, self.low)
        return Interval(scale="log", low=low, high=high)


class Choice(BaseModel):
    """Some values; one that is a mapping gives several hyperparameters theirs."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    choice: list[Scalar] | list[dict[str, Scalar]] = Field(min_length=2)

    def at(self, place: float) -> Any:
        """The one at a place between 0 and 1, each for an equal part."""
        return self.choice[min(len(self.choice) - 1, math.floor(place * len(self.choice)))]


Range = Interval | Choice


def read(value: Any) -> Any:
    """A mapping that describes a range, as one; anything else as it is.

    Raises:
        ValueError: it is a mapping, and describes none.
    """
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and "choice" in value:
        try:
            return Choice(**value)
        except ValidationError:
            raise ValueError(
                f"choice must be a list of two or more values, or of mappings of hyperparameters to values, not "
                f"{shown(value['choice'])}"
            ) from None
    if len(value) != 1 or next(iter(value)) not in ("log", "linear"):
        raise ValueError(f"a mapping here is a range, such as {_KINDS}, not {shown(value)}")
    ((scale, ends),) = value.items()
    numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not numbers or not all(abs(end) <= MAXIMUM for end in ends) or ends[0] >= ends[1]:
        raise ValueError(f"{scale} must be two numbers, the smaller one first, not {shown(ends)}")
    if scale == "log" and ends[0] <= 0:
        raise ValueError(f"log must be of numbers above 0, not {shown(ends)}")
    return Interval(scale=scale, low=ends[0], high=ends[1])


def _between(low: float, high: float, place: float) -> float:
    return low + place * (high - low)
