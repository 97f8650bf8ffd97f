"""The curves of the optimizers: means over their seeds, by the steps of a training.

Figures: the curves of all optimizers, and each seed beside its mean; as PNG, and as SVG for a page.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optlab.analysis import paired_tests
from optlab.analysis.comparison import Comparison, Target, compute_study_means
from optlab.analysis.paired_tests import MeanCI
from optlab.analysis.verdicts import format_metric_name
from optlab.records import TrainRecord
from optlab.schema.parameters import Config
from optlab.system import files

CURVE_METRICS = ("train_loss", "validation_loss", "validation_accuracy")
_MAX_POINTS = 50  # of the training loss, at most

Curve = dict[int, MeanCI]  # steps that were done → the figure over the seeds


def compute_curves(compared: Comparison) -> dict[str, dict[str, Curve]]:
    """Of each figure that the runs are to have, each optimizer's curve, which can be without a point.

    The training loss is smoothed: each point is the mean over the steps since the point before, a fiftieth of the
    run. A curve ends where one of the optimizer's runs has diverged.
    """
    config = compared.config
    block = math.ceil(config.steps_per_epoch * config.training.epochs / _MAX_POINTS)
    found: dict[str, dict[str, Curve]] = {}
    for name in CURVE_METRICS if config.data.validation_size else CURVE_METRICS[:1]:
        found[name] = {
            row.optimizer: _combine_runs(
                [
                    _extract_points(run.trained, name, block)
                    for run in compared.runs
                    if run.files.optimizer == row.optimizer
                ],
                config,
            )
            for row in compared.rows
        }
    return found


def _extract_points(trained: TrainRecord, name: str, block: int) -> dict[int, float]:
    """One run's: steps that were done → its value."""
    if name == "train_loss":
        return compute_block_means([loss for losses in trained.step_losses for loss in losses], block)
    values = {each.step: getattr(each, name.removeprefix("validation_")) for each in trained.all_validations}
    return {step: value for step, value in values.items() if value is not None}


def compute_block_means(losses: list[float | None], block: int) -> dict[int, float]:
    """The end of each block of steps → the mean loss in it, up to the first that has a loss that is not finite."""
    found: dict[int, float] = {}
    for start in range(0, len(losses), block):
        own = [loss for loss in losses[start : start + block] if loss is not None]
        if len(own) < len(losses[start : start + block]):
            break
        found[start + len(own)] = math.fsum(own) / len(own)
    return found


def _combine_runs(runs: list[dict[int, float]], config: Config) -> Curve:
    """Over the runs, or the studies that they belong to, at the steps at which all of them have a value."""
    return {
        step: paired_tests.compute_mean_ci(compute_study_means(config, [run[step] for run in runs]))
        for step in runs[0]
        if all(step in run for run in runs)
    }  # fmt: skip


Arguments = ParamSpec("Arguments")
ReturnType = TypeVar("ReturnType")
PlotFunction = Callable[[Axes], None]

_OMITTED_METADATA = ("Creator", "Date", "Format", "Type")  # none of them is of use to a page
_GENERATED_IDS = re.compile(r' id="\w+_\d+"')  # the same in several figures of a page, and nothing points to them
_REDUNDANT_ATTRIBUTES = re.compile(
    r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"'
)  # attributes that an element of a page need not have


def use_default_rc(draw: Callable[Arguments, ReturnType]) -> Callable[Arguments, ReturnType]:
    """With matplotlib's own settings: a figure is part of the record, and must not depend on a user's."""
    default_rc: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}

    @functools.wraps(draw)
    def draw_with_default_rc(*arguments: Arguments.args, **named: Arguments.kwargs) -> ReturnType:
        with matplotlib.rc_context(default_rc):
            return draw(*arguments, **named)

    return draw_with_default_rc


@use_default_rc
def plot_curves(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> Figure:
    """Losses and accuracy by epoch, one line per optimizer in its 95 % interval; and who has reached the target, when.

    Args:
        by_step: as `optlab.analysis.figures.compute_curves` has them.
    """
    drawn = list(_iterate_panels(compared, by_step))
    figure = draw_grid([draw for _, draw in drawn], 2 if len(drawn) == 4 else max(1, len(drawn)), (4.6, 3.4))
    if drawn:
        figure.axes[0].legend(frameon=False)
    return figure


@use_default_rc
def render_curve_panels(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> list[tuple[str, str]]:
    """The same, each with its title and by itself, as SVG without a legend."""
    return [(title, render_svg(draw_grid([draw], 1, (4.6, 3.2)))) for title, draw in _iterate_panels(compared, by_step)]


def _iterate_panels(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> Iterator[tuple[str, PlotFunction]]:
    target = compared.target
    for name, own in by_step.items():
        if any(own.values()):
            line = target.accuracy if target and name == "validation_accuracy" else None
            yield (
                format_metric_name(name),
                functools.partial(_draw_curves, name=name, own=own, compared=compared, line=line),
            )
    if target:
        yield _format_target_title(target), functools.partial(_draw_target_steps, target=target, compared=compared)


def draw_grid(draws: Sequence[PlotFunction], columns: int, size: tuple[float, float]) -> Figure:
    """A figure of several panels, from left to right.

    Args:
        size: of one, in inches.
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


def _draw_curves(axis: Axes, name: str, own: dict[str, Curve], compared: Comparison, line: float | None) -> None:
    """Of one figure, by epochs; a dotted line where there is a target."""
    marker, steps = None if name == "train_loss" else "o", compared.config.steps_per_epoch
    for optimizer, curve in own.items():
        epochs, colour = [step / steps for step in curve], compared.colours[optimizer]
        axis.plot(epochs, [each.mean for each in curve.values()], color=colour, label=optimizer,
                  linewidth=1.5, marker=marker, markersize=3)  # fmt: skip
        if any(each.n > 1 for each in curve.values()):
            ends: Any = ([each.low for each in curve.values()], [each.high for each in curve.values()])
            axis.fill_between(epochs, *ends, color=colour, alpha=0.2, linewidth=0)
    values = [each.mean for curve in own.values() for each in curve.values()]
    if name != "validation_accuracy" and min(values) > 0 and max(values) > 50 * min(values):
        axis.set_yscale("log")
    if name == "validation_accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if line is not None:
        axis.axhline(line, color="#888", linestyle=":", linewidth=1)
    axis.set(title=format_metric_name(name), xlabel="epoch", xlim=(0, None))


def _format_target_title(target: Target) -> str:
    return f"seeds that reached {100 * target.accuracy:.2f} % validation accuracy"


def _draw_target_steps(axis: Axes, target: Target, compared: Comparison) -> None:
    """The share of the seeds that have reached the target, by step; the first lines are the widest: they are below."""
    for number, (optimizer, steps) in enumerate(target.steps.items()):
        found = sorted(step for step in steps if step is not None)
        shares = [rank / len(steps) for rank in range(len(found) + 1)]
        axis.step([0, *found, compared.config.total_steps], [*shares, shares[-1]], where="post", label=optimizer,
                  color=compared.colours[optimizer], linewidth=4.5 - 3 * (number + 1) / len(target.steps))  # fmt: skip
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(title=_format_target_title(target), xlabel="steps", ylim=(-0.03, 1.03))


@use_default_rc
def plot_seeds(
    values: dict[str, list[float]], means: dict[str, paired_tests.MeanCI], metric: str, colours: dict[str, str]
) -> Figure:
    """Each seed's figure as a dot, and the mean in its 95 % interval beside them.

    Args:
        values: optimizer → one of each run that completed; the first is drawn on top.
        means: of those that have a value.
        metric: the figure's name in the record.
        colours: optimizer → its colour.
    """
    figure = Figure(figsize=(6.8, 1.0 + 0.42 * len(values)))
    axis = figure.subplots()
    for position, (optimizer, own) in enumerate(values.items()):
        colour = colours[optimizer]
        axis.plot(own, [position - 0.15] * len(own), "o", color=colour, alpha=0.6, markersize=5, linewidth=0)
        mean = means.get(optimizer)
        if mean:
            error = None if mean.half_width is None else [mean.half_width]
            axis.errorbar([mean.mean], [position + 0.15], xerr=error, fmt="D", color=colour, capsize=4)
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
def render_svg(figure: Figure) -> str:
    """The figure as an element of a page, the same text each time: black takes the page's colour, white is left out."""
    matplotlib.rcParams.update({"svg.hashsalt": "optlab", "svg.fonttype": "none"})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_OMITTED_METADATA))
    text = buffer.getvalue()
    head, mark, rest = text[text.index("<svg") :].partition(">")
    return _REDUNDANT_ATTRIBUTES.sub("", head) + mark + _GENERATED_IDS.sub("", rest).replace("#000000", "currentColor")


@use_default_rc
def render_png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write it as a PNG."""
    files.write_atomic(path, render_png(figure))
