"""Learning-rate schedules as functions of the step, and the learning rates of groups that follow one."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from optlab.schema.optimizer import OneCycleSchedule, Schedule, StepSchedule, compute_warmup_steps

GroupIndex = tuple[int, int]  # number of the optimizer, number of the group


@dataclass
class LearningRates:
    """Learning rates of groups under a schedule.

    Attributes:
        base_lrs: learning rates for a factor of 1.
        factor: last factor of the schedule.
        last_lrs: learning rates that the schedule has set last; if a group has another one, its class has set it.
    """

    base_lrs: dict[GroupIndex, Any]
    factor: float = 1.0
    last_lrs: dict[GroupIndex, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base_lrs = {place: copy_lr(rate) for place, rate in self.base_lrs.items()}
        self.last_lrs = {place: copy_lr(rate) for place, rate in (self.last_lrs or self.base_lrs).items()}

    def scale(self, index: GroupIndex, lr: Any, factor: float) -> Any:
        """Return the new learning rate of a group.

        Args:
            lr: the present one.
        """
        if self.last_lrs.get(index) != lr and self.factor:
            self.base_lrs[index] = lr / self.factor
        self.last_lrs[index] = self.base_lrs.get(index, lr) * factor
        return copy_lr(self.last_lrs[index])


def copy_lr(lr: Any) -> Any:
    """Copy a learning rate: a step can change a tensor in place."""
    return lr.clone() if isinstance(lr, Tensor) else lr


_ONE_CYCLE_PCT_START = 0.3  # the defaults of torch.optim.lr_scheduler.OneCycleLR: pct_start,
_ONE_CYCLE_START_FACTOR = 1 / 25  # 1 / div_factor,
_ONE_CYCLE_END_FACTOR = _ONE_CYCLE_START_FACTOR / 1e4  # and 1 / (div_factor * final_div_factor)


def compute_lr_factor(schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the factor of the configured learning rate at a step, counted from 0 over the whole run."""
    total = steps_per_epoch * epochs
    warmup = compute_warmup_steps(schedule, steps_per_epoch)
    if isinstance(schedule, OneCycleSchedule):
        top = (warmup or _ONE_CYCLE_PCT_START * total) - 1  # the step with the whole learning rate
        if step < top:
            return _compute_cosine(_ONE_CYCLE_START_FACTOR, 1, step / top)
        return _compute_cosine(1, _ONE_CYCLE_END_FACTOR, (step - top) / max(1, total - 1 - top))
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "cosine":
        return _compute_cosine(1, 0, (step - warmup) / (total - warmup))
    if isinstance(schedule, StepSchedule):
        return schedule.gamma ** (step // (steps_per_epoch * schedule.step_epochs))
    return 1.0


def _compute_cosine(start: float, end: float, progress: float) -> float:
    """Return a value of half a cosine from start to end, for progress from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
