"""Figures of the tunings: what each learning rate came to, and the best to be expected of so many trials."""

import functools
import math
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optlab.results import tuned
from optlab.results.comparison import Comparison
from optlab.results.figures import Draw, grid, plain, svg
from optlab.results.tuned import Tuned, accuracy

_OTHERS = "#999999"
_COLUMNS = 5  # of panels, at most
_PANEL = (3.2, 2.6)  # inches


@plain
def rates(compared: Comparison) -> Figure:
    """Validation accuracy against learning rate, a panel for each optimizer, one dot for each trial.

    It is smaller where the trial was stopped, and a cross at the bottom where it diverged; what was chosen, and the
    default, have a ring. The other optimizers' trials are grey.
    """
    draws = [draw for _, draw in _panels(compared)]
    figure = grid(draws, min(_COLUMNS, max(1, len(draws))), _PANEL)
    figure.legend(handles=_marks(), frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


@plain
def rate_panels(compared: Comparison) -> list[tuple[str, str]]:
    """The same, each with the optimizer's name and by itself, as SVG."""
    return [(name, svg(grid([draw], 1, _PANEL))) for name, draw in _panels(compared)]


def _panels(compared: Comparison) -> Iterator[tuple[str, Draw]]:
    for name, own in compared.tunings.items():
        if own.rate:
            yield name, functools.partial(_rates, name=name, found=compared.tunings, colour=compared.colours[name])


def _rates(axis: Axes, name: str, found: dict[str, Tuned], colour: str) -> None:
    for other, each in found.items():
        if other != name and each.rate:
            _dots(axis, each, each.rate, {"color": _OTHERS, "alpha": 0.35, "linewidth": 0}, 0.6)
    own, key = found[name], str(found[name].rate)
    look: Any = {"color": colour, "linewidth": 0}
    _dots(axis, own, key, look | {"alpha": 0.9}, 1.0)
    ring: Any = {"fillstyle": "none", "markeredgewidth": 1.5, "clip_on": False, **look}
    for study in range(len(own.choice.studies)):
        chosen, default = own.chosen(study), own.default(study)
        if chosen and chosen.index is not None:
            axis.plot([chosen.values[key]], [accuracy(chosen) or 0.0], "o", markersize=11, **ring)
        rate = own.default_value(study, key) if default else None
        if default and rate is not None:
            axis.plot([rate], [accuracy(default) or 0.0], "s", markersize=10, **ring)
    if own.sensitivity:
        _sensitivity(axis, own, colour)
    axis.set_xscale("log")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(title=name, xlabel="learning rate", ylim=(0, None))


def _dots(axis: Axes, own: Tuned, key: str, look: Any, scale: float) -> None:
    places: dict[str, list[tuple[float, float]]] = {"completed": [], "stopped": [], "diverged": [], "failed": []}
    for each in own.drawn:
        places[each.status].append((each.values[key], accuracy(each) or 0.0))
    for status, marker, size in (("completed", "o", 6), ("stopped", "o", 4), ("diverged", "x", 6), ("failed", "x", 6)):
        if places[status]:
            axis.plot(*zip(*places[status], strict=True), marker, markersize=size * scale, clip_on=False, **look)


def _sensitivity(axis: Axes, own: Tuned, colour: str) -> None:
    """The grid over the learning rate alone: a line through the means, in the band between the lowest and highest."""
    by_rate = own.grid
    axis.plot(list(by_rate), [math.fsum(each) / len(each) for each in by_rate.values()], color=colour, linewidth=1)
    ends: Any = ([min(each) for each in by_rate.values()], [max(each) for each in by_rate.values()])
    axis.fill_between(list(by_rate), *ends, color=colour, alpha=0.15, linewidth=0)


def _marks() -> list[Line2D]:
    look: Any = {"color": "black", "linewidth": 0}
    return [
        Line2D([], [], marker="o", fillstyle="none", markersize=11, label="chosen", **look),
        Line2D([], [], marker="s", fillstyle="none", markersize=10, label="default", **look),
        Line2D([], [], marker="x", markersize=6, label="diverged", **look),
    ]


@plain
def best_after(found: dict[str, Tuned], colours: dict[str, str]) -> str:
    """The best validation accuracy to be expected of the first k trials, a line for each optimizer, as SVG.

    Args:
        found: those that were trained whole: `tuned.best_after` says what the figure is.
        colours: optimizer → its colour.
    """

    def draw(axis: Axes) -> None:
        for name, own in found.items():
            values = tuned.best_after([tuned.counted(each) for each in own.alike])
            axis.plot(range(1, len(values) + 1), values, color=colours[name], linewidth=1.5, marker="o", markersize=3)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="trials", ylabel="validation accuracy")

    return svg(grid([draw], 1, (6.0, 3.4)))
