"""Figures: the curves of all optimizers in one."""

import io
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optlab.record.contents import Epoch
from optlab.results import statistics
from optlab.results.colours import colour
from optlab.system import files

Curves = list[tuple[str, list[Epoch]]]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_PANELS = (("train_loss", "training loss"), ("validation_loss", "validation loss"),
           ("validation_accuracy", "validation accuracy"))  # fmt: skip


def _plain(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """With matplotlib's own settings: a figure is part of the record, and must not depend on a user's."""
    own: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}

    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with matplotlib.rc_context(own):
            return draw(*arguments, **named)

    return drawn


@_plain
def curves(runs: Curves) -> Figure:
    """Loss and accuracy by epoch; `runs` are (optimizer, history).

    One line per optimizer: the mean over its runs, where all of them have come so far, in its 95 % interval.
    """
    histories: dict[str, list[list[Epoch]]] = {}
    for optimizer, history in runs:
        histories.setdefault(optimizer, []).append(history)
    panels = [
        (key, title)
        for key, title in _PANELS
        if any(getattr(epoch, key) is not None for _, history in runs for epoch in history)
    ]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.4))
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)
    for axis, (key, title) in zip(axes[0], panels, strict=False):
        for optimizer, own in histories.items():
            means = _means(own, key)
            axis.plot(list(means), [each.mean for each in means.values()], color=colour(optimizer), label=optimizer,
                      marker="o", markersize=3, linewidth=1.5)  # fmt: skip
            if len(own) > 1:
                ends = ([each.low for each in means.values()], [each.high for each in means.values()])
                axis.fill_between(list(means), *ends, color=colour(optimizer), alpha=0.2, linewidth=0)
        values = [getattr(epoch, key) for _, history in runs for epoch in history if getattr(epoch, key) is not None]
        if key != "validation_accuracy" and min(values) > 0 and max(values) > 50 * min(values):
            axis.set_yscale("log")
        if key == "validation_accuracy":
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _means(histories: list[list[Epoch]], key: str) -> dict[int, statistics.Figure]:
    """Epoch → the figure over the histories, of the epochs for which all have one."""
    found: dict[int, list[float]] = {}
    for epoch in (epoch for history in histories for epoch in history):
        if getattr(epoch, key) is not None:
            found.setdefault(epoch.epoch, []).append(getattr(epoch, key))
    return {number: statistics.figure(values) for number, values in found.items() if len(values) == len(histories)}


@_plain
def png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write it as a PNG."""
    files.write(path, png(figure))
