"""The learning rates of an optimizer's groups under a schedule, where a class may set them itself as well."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Place = tuple[int, int]  # of a group: the number of its optimizer, and its own


@dataclass
class Rates:
    """The learning rates of groups under a schedule, by the groups' places.

    Attributes:
        configured: what a factor of 1 stands for.
        factor: the schedule's last one.
        given: what the schedule has set last; a group that has another rate now has set it itself.
    """

    configured: dict[Place, Any]
    factor: float = 1.0
    given: dict[Place, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.configured = {place: copy(rate) for place, rate in self.configured.items()}
        self.given = {place: copy(rate) for place, rate in (self.given or self.configured).items()}

    def scaled(self, place: Place, rate: Any, factor: float) -> Any:
        """The rate of a group that has had this one."""
        if self.given.get(place) != rate and self.factor:
            self.configured[place] = rate / self.factor
        self.given[place] = self.configured.get(place, rate) * factor
        return copy(self.given[place])


def copy(rate: Any) -> Any:
    """A tensor is one that a step can change where it is."""
    return rate.clone() if isinstance(rate, Tensor) else rate
