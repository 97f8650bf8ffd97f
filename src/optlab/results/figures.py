"""Figures: the curves of all optimizers, and each seed beside its mean; as PNG, and as SVG for a page."""

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

from optlab.results import statistics
from optlab.results.comparison import Comparison, Target
from optlab.results.curves import Curve
from optlab.results.verdict import words
from optlab.system import files

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Draw = Callable[[Axes], None]

_METADATA = ("Creator", "Date", "Format", "Type")  # none of them is of use to a page
_NUMBERED = re.compile(r' id="\w+_\d+"')  # the same in several figures of a page, and nothing points to them
_OWN = re.compile(
    r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"'
)  # attributes that an element of a page need not have


def plain(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """With matplotlib's own settings: a figure is part of the record, and must not depend on a user's."""
    own: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}

    @functools.wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with matplotlib.rc_context(own):
            return draw(*arguments, **named)

    return drawn


@plain
def curves(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> Figure:
    """Losses and accuracy by epoch, one line per optimizer in its 95 % interval; and who has reached the target, when.

    Args:
        by_step: as `optlab.results.curves.curves` has them.
    """
    drawn = list(_panels(compared, by_step))
    figure = grid([draw for _, draw in drawn], 2 if len(drawn) == 4 else max(1, len(drawn)), (4.6, 3.4))
    if drawn:
        figure.axes[0].legend(frameon=False)
    return figure


@plain
def panels(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> list[tuple[str, str]]:
    """The same, each with its title and by itself, as SVG without a legend."""
    return [(title, svg(grid([draw], 1, (4.6, 3.2)))) for title, draw in _panels(compared, by_step)]


def _panels(compared: Comparison, by_step: dict[str, dict[str, Curve]]) -> Iterator[tuple[str, Draw]]:
    target = compared.target
    for name, own in by_step.items():
        if any(own.values()):
            line = target.accuracy if target and name == "validation_accuracy" else None
            yield words(name), functools.partial(_curves, name=name, own=own, compared=compared, line=line)
    if target:
        yield _reaching(target), functools.partial(_reached, target=target, compared=compared)


def grid(draws: Sequence[Draw], columns: int, size: tuple[float, float]) -> Figure:
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


def _curves(axis: Axes, name: str, own: dict[str, Curve], compared: Comparison, line: float | None) -> None:
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
    axis.set(title=words(name), xlabel="epoch", xlim=(0, None))


def _reaching(target: Target) -> str:
    return f"seeds that reached {100 * target.accuracy:.2f} % validation accuracy"


def _reached(axis: Axes, target: Target, compared: Comparison) -> None:
    """The share of the seeds that have reached the target, by step; the first lines are the widest: they are below."""
    for number, (optimizer, steps) in enumerate(target.steps.items()):
        found = sorted(step for step in steps if step is not None)
        shares = [rank / len(steps) for rank in range(len(found) + 1)]
        axis.step([0, *found, compared.config.steps], [*shares, shares[-1]], where="post", label=optimizer,
                  color=compared.colours[optimizer], linewidth=4.5 - 3 * (number + 1) / len(target.steps))  # fmt: skip
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(title=_reaching(target), xlabel="steps", ylim=(-0.03, 1.03))


@plain
def seeds(
    values: dict[str, list[float]], means: dict[str, statistics.Figure], what: str, colours: dict[str, str]
) -> Figure:
    """Each seed's figure as a dot, and the mean in its 95 % interval beside them.

    Args:
        values: optimizer → one of each run that completed; the first is drawn on top.
        means: of those that have a value.
        what: the figure's name in the record.
        colours: optimizer → its colour.
    """
    figure = Figure(figsize=(6.8, 1.0 + 0.42 * len(values)))
    axis = figure.subplots()
    for place, (optimizer, own) in enumerate(values.items()):
        colour = colours[optimizer]
        axis.plot(own, [place - 0.15] * len(own), "o", color=colour, alpha=0.6, markersize=5, linewidth=0)
        mean = means.get(optimizer)
        if mean:
            half = None if mean.half is None else [mean.half]
            axis.errorbar([mean.mean], [place + 0.15], xerr=half, fmt="D", color=colour, capsize=4)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    if "accuracy" in what:
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel=f"{words(what)}: each seed, and the mean in its 95 % interval")
    axis.grid(alpha=0.3, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


@plain
def svg(figure: Figure) -> str:
    """The figure as an element of a page, the same text each time: black takes the page's colour, white is left out."""
    matplotlib.rcParams.update({"svg.hashsalt": "optlab", "svg.fonttype": "none"})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = buffer.getvalue()
    head, mark, rest = text[text.index("<svg") :].partition(">")
    return _OWN.sub("", head) + mark + _NUMBERED.sub("", rest).replace("#000000", "currentColor")


@plain
def png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write it as a PNG."""
    files.write(path, png(figure))
