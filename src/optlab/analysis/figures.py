"""Figures of a comparison and its tunings: curves over a training, seeds, learning rates, expected best of k trials.

`plot_*` return a matplotlib figure; `render_*` return SVG elements for report.html, or PNG bytes. Both are part of the
record: the same input gives the same bytes.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optlab.analysis.comparison import Comparison, Target
from optlab.analysis.mean_ci import MeanCI, compute_mean_ci
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.analysis.verdicts import format_metric_name
from optlab.records import TrainRecord
from optlab.system import files

CURVE_METRICS = ("train_loss", "validation_loss", "validation_accuracy")
_MAX_POINTS = 50  # of a curve of the training loss
_OTHERS_COLOUR = "#999999"
_MAX_COLUMNS = 5  # of panels
_PANEL_SIZE = (3.2, 2.6)  # inches
_LEGEND_HEIGHT = 0.4  # inches

_OMITTED_METADATA = ("Creator", "Date", "Format", "Type")
_GENERATED_IDS = re.compile(r' id="\w+_\d+"')  # repeated in several figures of a page, and nothing refers to them
_COMMENTS = re.compile(r"<!--.*?-->", re.DOTALL)
_SPACE_BETWEEN_TAGS = re.compile(r">\s+<")
_LINE_BREAKS = re.compile(r"\s*\n\s*")
_TEXTS = re.compile(r"(<text.*?</text>)", re.DOTALL)  # their numbers are labels
_LONG_NUMBERS = re.compile(r"\b\d+\.\d{3,}\b")  # of coordinates
_REDUNDANT_ATTRIBUTES = re.compile(r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"')  # within an HTML page

Curve = dict[int, MeanCI]  # completed steps → mean over the seeds
PlotFunction = Callable[[Axes], None]

# Decorator: figures are part of the record, so they must not depend on a user's matplotlib settings.
use_default_rc = matplotlib.rc_context(
    {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
)


def compute_curves(compared: Comparison) -> dict[str, dict[str, Curve]]:
    """Return metric → optimizer → curve; a curve may be empty.

    Training loss is smoothed: each point is the mean over the steps since the previous point, a fiftieth of the run. A
    curve ends where one of the optimizer's runs diverged. Without a validation split there is only the training loss.
    """
    return {
        metric: {optimizer: _average(list(seeds.values())) for optimizer, seeds in by_optimizer.items()}
        for metric, by_optimizer in extract_seed_curves(compared).items()
    }


def extract_seed_curves(compared: Comparison) -> dict[str, dict[str, dict[int, dict[int, float]]]]:
    """Return metric → optimizer → seed → completed steps → value, smoothed as in `compute_curves`."""
    config = compared.config
    block = math.ceil(config.steps_per_epoch * config.training.epochs / _MAX_POINTS)
    return {
        metric: {
            row.optimizer: {
                run.files.seed: _extract_points(run.trained, metric, block)
                for run in compared.runs
                if run.files.optimizer == row.optimizer
            }
            for row in compared.rows
        }
        for metric in (CURVE_METRICS if config.data.validation_size else CURVE_METRICS[:1])
    }


def _average(points: Sequence[dict[int, float]]) -> Curve:
    """Return the means at the steps that all seeds have."""
    return {
        step: compute_mean_ci([each[step] for each in points])
        for step in points[0]
        if all(step in each for each in points)
    }


def _extract_points(trained: TrainRecord, metric: str, block: int) -> dict[int, float]:
    """Return completed steps → value for one run."""
    if metric == "train_loss":
        return compute_block_means([loss for losses in trained.step_losses for loss in losses], block)
    values = {each.step: getattr(each, metric.removeprefix("validation_")) for each in trained.all_validations}
    return {step: value for step, value in values.items() if value is not None}


def compute_block_means(losses: list[float | None], block: int) -> dict[int, float]:
    """Return last step → mean loss of each block of steps, up to the first block with a loss that is not finite."""
    means: dict[int, float] = {}
    for start in range(0, len(losses), block):
        finite = [loss for loss in losses[start : start + block] if loss is not None]
        if len(finite) < len(losses[start : start + block]):
            break
        means[start + len(finite)] = math.fsum(finite) / len(finite)
    return means


@use_default_rc
def plot_curves(compared: Comparison, curves: dict[str, dict[str, Curve]]) -> Figure:
    """Plot losses and accuracy by epoch, a line per optimizer in its 95 % interval, and the seeds at the target.

    Args:
        curves: from `compute_curves`.
    """
    draws = [draw for _, draw in _iterate_curve_panels(compared, curves)]
    figure = draw_grid(draws, 2 if len(draws) == 4 else max(1, len(draws)), (4.6, 3.4))
    if draws:
        figure.axes[0].legend(frameon=False)
    return figure


@use_default_rc
def render_curve_panels(compared: Comparison, curves: dict[str, dict[str, Curve]]) -> list[tuple[str, str]]:
    """Return (title, SVG) for each panel of `plot_curves`, without a legend."""
    panels = _iterate_curve_panels(compared, curves)
    return [(title, render_svg(draw_grid([draw], 1, (4.6, 3.2)))) for title, draw in panels]


def _iterate_curve_panels(
    compared: Comparison, curves: dict[str, dict[str, Curve]]
) -> Iterator[tuple[str, PlotFunction]]:
    target = compared.target
    for metric, by_optimizer in curves.items():
        if any(by_optimizer.values()):
            line = target.accuracy if target and metric == "validation_accuracy" else None
            draw = functools.partial(
                _draw_curves, metric=metric, curves=by_optimizer, compared=compared, target_accuracy=line
            )
            yield format_metric_name(metric), draw
    if target and has_early_target(compared):
        yield _format_target_title(target), functools.partial(_draw_target_steps, target=target, compared=compared)


def draw_grid(draws: Sequence[PlotFunction], columns: int, size: tuple[float, float]) -> Figure:
    """Return a figure of panels in rows, from left to right.

    Args:
        size: width and height of a panel in inches.
    """
    rows = math.ceil(max(1, len(draws)) / columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, draw in zip(axes, draws, strict=False):
        draw(axis)
    for axis in axes[: len(draws)]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(draws) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure


def _draw_curves(
    axis: Axes, metric: str, curves: dict[str, Curve], compared: Comparison, target_accuracy: float | None
) -> None:
    marker, steps = None if metric == "train_loss" else "o", compared.config.steps_per_epoch
    for optimizer, curve in curves.items():
        epochs, colour = [step / steps for step in curve], compared.colours[optimizer]
        axis.plot(epochs, [each.mean for each in curve.values()], color=colour, label=optimizer,
                  linewidth=1.5, marker=marker, markersize=3)  # fmt: skip
        if any(each.n > 1 for each in curve.values()):
            ends: Any = ([each.low for each in curve.values()], [each.high for each in curve.values()])
            axis.fill_between(epochs, *ends, color=colour, alpha=0.2, linewidth=0)
    values = [each.mean for curve in curves.values() for each in curve.values()]
    if metric != "validation_accuracy" and min(values) > 0 and max(values) > 50 * min(values):
        axis.set_yscale("log")
    if metric == "validation_accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if target_accuracy is not None:
        axis.axhline(target_accuracy, color="#888", linestyle=":", linewidth=1)
    axis.set(title=format_metric_name(metric), xlabel="epoch", xlim=(0, None))


def has_early_target(compared: Comparison) -> bool:
    """Return whether a run reached the target before its last validation, so that its curve shows something."""
    steps = [step for each in compared.target.steps.values() for step in each] if compared.target else []
    return any(step is not None and step < compared.config.total_steps for step in steps)


def _format_target_title(target: Target) -> str:
    return f"seeds that reached {100 * target.accuracy:.2f} % validation accuracy"


def _draw_target_steps(axis: Axes, target: Target, compared: Comparison) -> None:
    """Draw the share of seeds that have reached the target by each step; earlier lines are wider, to stay visible."""
    for number, (optimizer, steps) in enumerate(target.steps.items()):
        reached = sorted(step for step in steps if step is not None)
        shares = [rank / len(steps) for rank in range(len(reached) + 1)]
        axis.step([0, *reached, compared.config.total_steps], [*shares, shares[-1]], where="post", label=optimizer,
                  color=compared.colours[optimizer], linewidth=4.5 - 3 * (number + 1) / len(target.steps))  # fmt: skip
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(title=_format_target_title(target), xlabel="steps", ylim=(-0.03, 1.03))


def plot_all_seeds(compared: Comparison) -> Figure:
    """Plot the verdict metric of each completed run by `plot_seeds`."""
    values = {row.optimizer: compared.get_values(row.optimizer) for row in compared.rows}
    means = {name: compute_mean_ci(values[name]) for name in values if values[name]}
    return plot_seeds(values, means, compared.verdict_metric, compared.colours)


@use_default_rc
def plot_seeds(
    values: dict[str, list[float]], means: dict[str, MeanCI], metric: str, colours: dict[str, str]
) -> Figure:
    """Plot each seed's value as a dot, and the mean with its 95 % interval beside them.

    Args:
        values: optimizer → one value per completed run; the first optimizer is on top.
        means: optimizer → mean, for optimizers with a value.
        metric: the metric's name in the record.
        colours: optimizer → colour.
    """
    figure = Figure(figsize=(6.8, 1.0 + 0.42 * len(values)))
    axis = figure.subplots()
    for position, (optimizer, seed_values) in enumerate(values.items()):
        style: Any = {"color": colours[optimizer]}
        axis.plot(seed_values, [position - 0.15] * len(seed_values), "o", alpha=0.6, markersize=5, linewidth=0, **style)
        mean = means.get(optimizer)
        if mean:
            error = None if mean.half_width is None else [mean.half_width]
            axis.errorbar([mean.mean], [position + 0.15], xerr=error, fmt="D", capsize=4, **style)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    if "accuracy" in metric:
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel=f"{format_metric_name(metric)}: each seed, and the mean in its 95 % interval")
    axis.grid(alpha=0.3, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


@use_default_rc
def plot_learning_rates(compared: Comparison) -> Figure:
    """Plot validation accuracy against learning rate, a panel per optimizer, a dot per trial.

    Dots of stopped trials are smaller; a cross at the bottom is a trial that diverged; rings mark the chosen trial and
    the default. Trials of the other optimizers are grey.
    """
    draws = [draw for _, draw in _iterate_learning_rate_panels(compared)]
    figure = draw_grid(draws, min(_MAX_COLUMNS, max(1, len(draws))), _PANEL_SIZE)
    style: Any = {"color": "black", "linewidth": 0}
    handles = [
        Line2D([], [], marker="o", fillstyle="none", markersize=11, label="chosen", **style),
        Line2D([], [], marker="s", fillstyle="none", markersize=10, label="default", **style),
        Line2D([], [], marker="x", markersize=6, label="diverged", **style),
    ]
    height = figure.get_figheight() + _LEGEND_HEIGHT
    figure.set_figheight(height)
    figure.tight_layout(rect=(0, 0, 1, 1 - _LEGEND_HEIGHT / height))
    figure.legend(
        handles=handles, frameon=False, ncols=3, columnspacing=1, handletextpad=0.4, loc="upper center",
        bbox_to_anchor=(0.5, 1.0),
    )  # fmt: skip
    return figure


@use_default_rc
def render_learning_rate_panels(compared: Comparison) -> list[tuple[str, str]]:
    """Return (optimizer, SVG) for each panel of `plot_learning_rates`, without the other optimizers' trials."""
    panels = _iterate_learning_rate_panels(compared, with_others=False)
    return [(name, render_svg(draw_grid([draw], 1, _PANEL_SIZE))) for name, draw in panels]


def _iterate_learning_rate_panels(compared: Comparison, with_others: bool = True) -> Iterator[tuple[str, PlotFunction]]:
    for name, tuning in compared.tunings.items():
        if tuning.learning_rate_key:
            tunings = compared.tunings if with_others else {name: tuning}
            colour = compared.colours[name]
            yield name, functools.partial(_draw_learning_rates, name=name, tunings=tunings, colour=colour)


def _draw_learning_rates(axis: Axes, name: str, tunings: dict[str, OptimizerTuning], colour: str) -> None:
    others: Any = {"color": _OTHERS_COLOUR, "alpha": 0.35, "linewidth": 0}
    for other, each in tunings.items():
        if other != name and each.learning_rate_key:
            _draw_trials(axis, each, each.learning_rate_key, others, 0.6)
    tuning, key = tunings[name], str(tunings[name].learning_rate_key)
    style: Any = {"color": colour, "linewidth": 0}
    _draw_trials(axis, tuning, key, style | {"alpha": 0.9}, 1.0)
    ring: Any = {"fillstyle": "none", "markeredgewidth": 1.5, "clip_on": False, **style}
    for number in tuning.choices:
        chosen, default = tuning.get_chosen_trial(number), tuning.get_default_trial(number)
        default_rate = tuning.get_default_value(number, key)
        for trial, marker, size in ((chosen, "o", 11), (default, "s", 10)):
            rate = trial.values.get(key) if trial and trial.index is not None else default_rate
            if trial and rate is not None:
                axis.plot([rate], [get_final_accuracy(trial) or 0.0], marker, markersize=size, **ring)
    if tuning.sensitivity:
        _draw_sensitivity(axis, tuning, colour)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(title=name, xlabel="learning rate", ylim=(0, None))


def _draw_trials(axis: Axes, tuning: OptimizerTuning, key: str, style: Any, scale: float) -> None:
    for status, marker, size in (("completed", "o", 6), ("stopped", "o", 4), ("diverged", "x", 6), ("failed", "x", 6)):
        trials = [each for each in tuning.sampled_trials if each.status == status]
        if trials:
            rates, accuracies = zip(*((t.values[key], get_final_accuracy(t) or 0.0) for t in trials), strict=True)
            axis.plot(rates, accuracies, marker, markersize=size * scale, clip_on=False, **style)


def _draw_sensitivity(axis: Axes, tuning: OptimizerTuning, colour: str) -> None:
    """Draw each search's grid over the learning rate: a line through the means, in a band from lowest to highest."""
    for by_rate in tuning.sensitivity_grids.values():
        axis.plot(list(by_rate), [math.fsum(each) / len(each) for each in by_rate.values()], color=colour, linewidth=1)
        ends: Any = ([min(each) for each in by_rate.values()], [max(each) for each in by_rate.values()])
        axis.fill_between(list(by_rate), *ends, color=colour, alpha=0.15, linewidth=0)


@use_default_rc
def render_svg(figure: Figure) -> str:
    """Return the figure as an SVG element of an HTML page: black becomes the page's text colour, white transparent."""
    matplotlib.rcParams.update({"svg.hashsalt": "optlab", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_OMITTED_METADATA))
    text = buffer.getvalue()
    head, mark, rest = text[text.index("<svg") :].partition(">")
    rest = _COMMENTS.sub("", rest)
    rest = _LINE_BREAKS.sub(" ", _SPACE_BETWEEN_TAGS.sub("><", rest))
    parts = _TEXTS.split(_GENERATED_IDS.sub("", rest))
    parts[::2] = [_LONG_NUMBERS.sub(lambda number: f"{float(number[0]):.2f}", each) for each in parts[::2]]
    rest = "".join(parts)
    return _REDUNDANT_ATTRIBUTES.sub("", head) + mark + rest.replace("#000000", "currentColor")


@use_default_rc
def render_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file."""
    files.write_atomic(path, render_png(figure))
