"""Figures of the tunings: what each learning rate came to, and the best to be expected of so many trials."""

import functools
import math
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optlab.analysis import tuning_results
from optlab.analysis.comparison import Comparison
from optlab.analysis.figures import PlotFunction, draw_grid, render_svg, use_default_rc
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy

_OTHERS_COLOUR = "#999999"
_MAX_COLUMNS = 5  # of panels, at most
_PANEL_SIZE = (3.2, 2.6)  # inches


@use_default_rc
def plot_learning_rates(compared: Comparison) -> Figure:
    """Validation accuracy against learning rate, a panel for each optimizer, one dot for each trial.

    It is smaller where the trial was stopped, and a cross at the bottom where it diverged; what was chosen, and the
    default, have a ring. The other optimizers' trials are grey.
    """
    draws = [draw for _, draw in _iterate_panels(compared)]
    figure = draw_grid(draws, min(_MAX_COLUMNS, max(1, len(draws))), _PANEL_SIZE)
    figure.legend(
        handles=_create_legend_handles(), frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0)
    )
    return figure


@use_default_rc
def render_learning_rate_panels(compared: Comparison) -> list[tuple[str, str]]:
    """The same, each with the optimizer's name and by itself, as SVG."""
    return [(name, render_svg(draw_grid([draw], 1, _PANEL_SIZE))) for name, draw in _iterate_panels(compared)]


def _iterate_panels(compared: Comparison) -> Iterator[tuple[str, PlotFunction]]:
    for name, own in compared.tunings.items():
        if own.learning_rate_key:
            yield (
                name,
                functools.partial(
                    _draw_learning_rates, name=name, found=compared.tunings, colour=compared.colours[name]
                ),
            )


def _draw_learning_rates(axis: Axes, name: str, found: dict[str, OptimizerTuning], colour: str) -> None:
    for other, each in found.items():
        if other != name and each.learning_rate_key:
            _draw_trials(
                axis, each, each.learning_rate_key, {"color": _OTHERS_COLOUR, "alpha": 0.35, "linewidth": 0}, 0.6
            )
    own, key = found[name], str(found[name].learning_rate_key)
    style: Any = {"color": colour, "linewidth": 0}
    _draw_trials(axis, own, key, style | {"alpha": 0.9}, 1.0)
    ring: Any = {"fillstyle": "none", "markeredgewidth": 1.5, "clip_on": False, **style}
    for study in range(len(own.choice.studies)):
        chosen, default = own.get_chosen_trial(study), own.get_default_trial(study)
        if chosen and chosen.index is not None:
            axis.plot([chosen.values[key]], [get_final_accuracy(chosen) or 0.0], "o", markersize=11, **ring)
        rate = own.get_default_value(study, key) if default else None
        if default and rate is not None:
            axis.plot([rate], [get_final_accuracy(default) or 0.0], "s", markersize=10, **ring)
    if own.sensitivity:
        _draw_sensitivity(axis, own, colour)
    axis.set_xscale("log")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(title=name, xlabel="learning rate", ylim=(0, None))


def _draw_trials(axis: Axes, own: OptimizerTuning, key: str, style: Any, scale: float) -> None:
    points_by_status: dict[str, list[tuple[float, float]]] = {
        "completed": [],
        "stopped": [],
        "diverged": [],
        "failed": [],
    }
    for each in own.sampled_trials:
        points_by_status[each.status].append((each.values[key], get_final_accuracy(each) or 0.0))
    for status, marker, size in (("completed", "o", 6), ("stopped", "o", 4), ("diverged", "x", 6), ("failed", "x", 6)):
        if points_by_status[status]:
            axis.plot(
                *zip(*points_by_status[status], strict=True), marker, markersize=size * scale, clip_on=False, **style
            )


def _draw_sensitivity(axis: Axes, own: OptimizerTuning, colour: str) -> None:
    """The grid over the learning rate alone: a line through the means, in the band between the lowest and highest."""
    by_rate = own.sensitivity_grid
    axis.plot(list(by_rate), [math.fsum(each) / len(each) for each in by_rate.values()], color=colour, linewidth=1)
    ends: Any = ([min(each) for each in by_rate.values()], [max(each) for each in by_rate.values()])
    axis.fill_between(list(by_rate), *ends, color=colour, alpha=0.15, linewidth=0)


def _create_legend_handles() -> list[Line2D]:
    style: Any = {"color": "black", "linewidth": 0}
    return [
        Line2D([], [], marker="o", fillstyle="none", markersize=11, label="chosen", **style),
        Line2D([], [], marker="s", fillstyle="none", markersize=10, label="default", **style),
        Line2D([], [], marker="x", markersize=6, label="diverged", **style),
    ]


@use_default_rc
def render_expected_best(found: dict[str, OptimizerTuning], colours: dict[str, str]) -> str:
    """The best validation accuracy to be expected of the first k trials, a line for each optimizer, as SVG.

    Args:
        found: those that were trained whole: `tuning_results.compute_expected_best` says what the figure is.
        colours: optimizer → its colour.
    """

    def draw(axis: Axes) -> None:
        for name, own in found.items():
            values = tuning_results.compute_expected_best(
                [tuning_results.get_accuracy_or_chance(each) for each in own.in_range_trials]
            )
            axis.plot(range(1, len(values) + 1), values, color=colours[name], linewidth=1.5, marker="o", markersize=3)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="trials", ylabel="validation accuracy")

    return render_svg(draw_grid([draw], 1, (6.0, 3.4)))
