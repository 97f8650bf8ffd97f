"""The figures of a training as points of MLflow's metrics: their names, and how many digits of them are shown.

MLflow shows every digit of a float, so that a table of losses cannot be read: metrics have four digits. The files of
the record have all of them.
"""

import math
from typing import Any

Point = tuple[str, float, int, int]  # name, value, time in ms since 1970, step

_OF_TRAINING = ("gradients", "images_per_second", "lr")  # in a section of their own, after the losses and accuracies


def rounded(value: float) -> float:
    """The value with four decimals; one below 0.1 with four significant digits."""
    if not math.isfinite(value) or value == 0:
        return value
    return round(value, 3 - min(-1, math.floor(math.log10(abs(value)))))


def epoch_points(epoch: dict[str, Any], when: int, params: dict[str, Any]) -> list[Point]:
    """An epoch's figures; what is None, or a learning rate that does not change, is left out.

    Args:
        params: the run's parameters in MLflow.
    """
    shown = {key: value for key, value in epoch.items() if key != "epoch" and value is not None}
    if "lr" in shown and _is_constant(shown["lr"], params):
        del shown["lr"]
    return [
        (f"{'training' if key in _OF_TRAINING else 'epoch'}/{key}", rounded(value), when, epoch["epoch"])
        for key, value in shown.items()
    ]


def validation_points(validation: dict[str, Any], when: int) -> list[Point]:
    """A validation's figures, at the step that they were seen after."""
    shown = {key: validation[key] for key in ("loss", "accuracy") if validation[key] is not None}
    return [(f"step/validation_{key}", rounded(value), when, validation["step"]) for key, value in shown.items()]


def _is_constant(lr: float, params: dict[str, Any]) -> bool:
    """Whether no schedule changes it, and the optimizer has not, either."""
    planned = params.get("schedule.name") == "constant" and not float(params.get("schedule.warmup_epochs", 0))
    return planned and str(params.get("optimizer.lr")) == str(lr)
