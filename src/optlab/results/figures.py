"""Figures: the curves of all optimizers, and each seed beside its mean."""

import io
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optlab.results import statistics
from optlab.results.colours import colour
from optlab.results.comparison import Comparison, Target
from optlab.results.curves import Curve
from optlab.results.tuned import Tuned, accuracy, default_of
from optlab.results.verdict import words
from optlab.system import files

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _plain(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """With matplotlib's own settings: a figure is part of the record, and must not depend on a user's."""
    own: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}

    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with matplotlib.rc_context(own):
            return draw(*arguments, **named)

    return drawn


@_plain
def curves(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> Figure:
    """Losses and accuracy by epoch, one line per optimizer in its 95 % interval; and who has reached the target, when.

    Args:
        by_step: as `optlab.results.curves.curves` has them.
    """
    drawn = {name: own for name, own in by_step.items() if any(own.values())}
    panels = len(drawn) + (compared.target is not None)
    columns = 2 if panels == 4 else max(1, panels)
    figure = Figure(figsize=(4.6 * columns, 3.4 * math.ceil(max(1, panels) / columns)))
    axes = list(figure.subplots(math.ceil(max(1, panels) / columns), columns, squeeze=False).flat)
    steps = compared.config.steps_per_epoch
    for axis, (name, own) in zip(axes, drawn.items(), strict=False):
        _curves(axis, name, own, steps)
        if compared.target and name == "validation_accuracy":
            axis.axhline(compared.target.accuracy, color="#888", linestyle=":", linewidth=1)
    if compared.target:
        _reached(axes[panels - 1], compared.target, steps * compared.config.training.epochs)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if panels:
        axes[0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _curves(axis: Axes, name: str, own: dict[str, Curve], steps_per_epoch: int) -> None:
    marker = None if name == "train_loss" else "o"
    for optimizer, curve in own.items():
        epochs = [step / steps_per_epoch for step in curve]
        axis.plot(epochs, [each.mean for each in curve.values()], color=colour(optimizer), label=optimizer,
                  linewidth=1.5, marker=marker, markersize=3)  # fmt: skip
        if any(each.n > 1 for each in curve.values()):
            ends: Any = ([each.low for each in curve.values()], [each.high for each in curve.values()])
            axis.fill_between(epochs, *ends, color=colour(optimizer), alpha=0.2, linewidth=0)
    values = [each.mean for curve in own.values() for each in curve.values()]
    if name != "validation_accuracy" and min(values) > 0 and max(values) > 50 * min(values):
        axis.set_yscale("log")
    if name == "validation_accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(title=words(name), xlabel="epoch", xlim=(0, None))


def _reached(axis: Axes, target: Target, last: int) -> None:
    """The share of the seeds that have reached the target, by step; the first lines are the widest: they are below."""
    for number, (optimizer, steps) in enumerate(target.steps.items()):
        found = sorted(step for step in steps if step is not None)
        shares = [rank / len(steps) for rank in range(len(found) + 1)]
        axis.step([0, *found, last], [*shares, shares[-1]], where="post", color=colour(optimizer), label=optimizer,
                  linewidth=4.5 - 3 * (number + 1) / len(target.steps))  # fmt: skip
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(
        title=f"seeds that reached {100 * target.accuracy:.2f} % validation accuracy",
        xlabel="steps",
        ylim=(-0.03, 1.03),
    )


@_plain
def seeds(values: dict[str, list[float]], what: str) -> Figure:
    """Each seed's figure as a dot, and the mean in its 95 % interval beside them.

    Args:
        values: optimizer → one of each run that completed; the first is drawn on top.
        what: the figure's name in the record.
    """
    figure = Figure(figsize=(9.2, 1.2 + 0.55 * len(values)))
    axis = figure.subplots()
    for place, (optimizer, own) in enumerate(values.items()):
        axis.plot(own, [place - 0.15] * len(own), "o", color=colour(optimizer), alpha=0.6, markersize=5, linewidth=0)
        if own:
            mean = statistics.figure(own)
            half = None if mean.half is None else [mean.half]
            axis.errorbar([mean.mean], [place + 0.15], xerr=half, fmt="D", color=colour(optimizer), capsize=4)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    if "accuracy" in what:
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel=f"{words(what)}: each seed, and the mean in its 95 % interval")
    axis.grid(alpha=0.3, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


@_plain
def tunings(found: dict[str, Tuned]) -> Figure:
    """Validation accuracy against learning rate, one dot for each trial, smaller where it was stopped.

    Those that diverged are crosses at the bottom; what was chosen, and the default, have a ring.
    """
    figure = Figure(figsize=(9.2, 4.6))
    axis = figure.subplots()
    for name, own in found.items():
        if own.rate:
            _trials(axis, name, own, own.rate)
    axis.set_xscale("log")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel="learning rate", ylabel="validation accuracy", ylim=(0, None))
    chosen = Line2D([], [], marker="o", color="black", fillstyle="none", markersize=11, linewidth=0, label="chosen")
    default = Line2D([], [], marker="s", color="black", fillstyle="none", markersize=10, linewidth=0, label="default")
    diverged = Line2D([], [], marker="x", color="black", markersize=6, linewidth=0, label="diverged")
    axis.legend(handles=[*axis.get_legend_handles_labels()[0], chosen, default, diverged], frameon=False, ncols=2)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _trials(axis: Axes, name: str, own: Tuned, key: str) -> None:
    look: Any = {"color": colour(name), "linewidth": 0}
    places: dict[str, list[tuple[float, float]]] = {"completed": [], "stopped": [], "diverged": [], "failed": []}
    for each in own.drawn:
        places[each.status].append((each.values[key], accuracy(each) or 0.0))
    for status, marker, size in (("completed", "o", 7), ("stopped", "o", 4), ("diverged", "x", 6), ("failed", "x", 6)):
        if places[status]:
            axis.plot(*zip(*places[status], strict=True), marker, markersize=size, alpha=0.8, clip_on=False, **look)
    axis.plot([], [], "o", markersize=7, label=name, **look)
    ring: Any = {"fillstyle": "none", "markeredgewidth": 1.5, **look}
    for study in range(len(own.choice.studies)):
        chosen, default = own.chosen(study), own.default(study)
        if chosen and chosen.index is not None:
            axis.plot([chosen.values[key]], [accuracy(chosen) or 0.0], "o", markersize=12, **ring)
        rate = default_of(own.spec, key) if default else None
        if default and rate is not None:
            axis.plot([rate], [accuracy(default) or 0.0], "s", markersize=11, **ring)
    if own.sensitivity:
        _grid(axis, name, own)


def _grid(axis: Axes, name: str, own: Tuned) -> None:
    """The grid over the learning rate alone: a line through the means, in the band between the lowest and highest."""
    by_rate = own.grid
    axis.plot(
        list(by_rate), [math.fsum(each) / len(each) for each in by_rate.values()], color=colour(name), linewidth=1
    )
    ends: Any = ([min(each) for each in by_rate.values()], [max(each) for each in by_rate.values()])
    axis.fill_between(list(by_rate), *ends, color=colour(name), alpha=0.15, linewidth=0)


@_plain
def png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write it as a PNG."""
    files.write(path, png(figure))
