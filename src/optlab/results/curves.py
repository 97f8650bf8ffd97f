"""The curves of the optimizers: means over their seeds, by the steps of a training."""

import math

from optlab.config.parameters import Config
from optlab.record.contents import Trained
from optlab.results import statistics
from optlab.results.comparison import Comparison, by_study
from optlab.results.statistics import Figure

FIGURES = ("train_loss", "validation_loss", "validation_accuracy")
_POINTS = 50  # of the training loss, at most

Curve = dict[int, Figure]  # steps that were done → the figure over the seeds


def curves(compared: Comparison) -> dict[str, dict[str, Curve]]:
    """Of each figure that the runs are to have, each optimizer's curve, which can be without a point.

    The training loss is smoothed: each point is the mean over the steps since the point before, a fiftieth of the
    run. A curve ends where one of the optimizer's runs has diverged.
    """
    config = compared.config
    block = math.ceil(config.steps_per_epoch * config.training.epochs / _POINTS)
    found: dict[str, dict[str, Curve]] = {}
    for name in FIGURES if config.data.validation_size else FIGURES[:1]:
        found[name] = {
            row.optimizer: _mean(
                [_points(run.trained, name, block) for run in compared.runs if run.files.optimizer == row.optimizer],
                config,
            )
            for row in compared.rows
        }
    return found


def _points(trained: Trained, name: str, block: int) -> dict[int, float]:
    """One run's: steps that were done → its value."""
    if name == "train_loss":
        return smoothed([loss for losses in trained.step_losses for loss in losses], block)
    values = {each.step: getattr(each, name.removeprefix("validation_")) for each in trained.looks}
    return {step: value for step, value in values.items() if value is not None}


def smoothed(losses: list[float | None], block: int) -> dict[int, float]:
    """The end of each block of steps → the mean loss in it, up to the first that has a loss that is not finite."""
    found: dict[int, float] = {}
    for start in range(0, len(losses), block):
        own = [loss for loss in losses[start : start + block] if loss is not None]
        if len(own) < len(losses[start : start + block]):
            break
        found[start + len(own)] = math.fsum(own) / len(own)
    return found


def _mean(runs: list[dict[int, float]], config: Config) -> Curve:
    """Over the runs, or the studies that they belong to, at the steps at which all of them have a value."""
    return {
        step: statistics.figure(by_study(config, [run[step] for run in runs]))
        for step in runs[0]
        if all(step in run for run in runs)
    }  # fmt: skip
