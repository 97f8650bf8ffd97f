"""Learning-rate schedules as plain functions of the step: nothing to save, nothing to restore."""

import math

from optlab.config.entries import OneCycleSchedule, Schedule, StepSchedule, warmup_steps

_ONE_CYCLE_RISE = 0.3  # the defaults of torch.optim.lr_scheduler.OneCycleLR: pct_start,
_ONE_CYCLE_START = 1 / 25  # 1 / div_factor,
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4  # and 1 / (div_factor * final_div_factor)


def factor(schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the configured learning rate is multiplied by at a step, counted from 0 over the whole run."""
    total = steps_per_epoch * epochs
    warmup = warmup_steps(schedule, steps_per_epoch)
    if isinstance(schedule, OneCycleSchedule):
        top = (warmup or _ONE_CYCLE_RISE * total) - 1  # the step with the whole learning rate
        if step < top:
            return _cosine(_ONE_CYCLE_START, 1, step / top)
        return _cosine(1, _ONE_CYCLE_END, (step - top) / max(1, total - 1 - top))
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "cosine":
        return _cosine(1, 0, (step - warmup) / (total - warmup))
    if isinstance(schedule, StepSchedule):
        return schedule.gamma ** (step // (steps_per_epoch * schedule.step_epochs))
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start to end, as progress goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
