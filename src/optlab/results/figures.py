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
    """Loss and accuracy by epoch; `runs` are (optimizer, history), one line each, one colour per optimizer."""
    panels = [
        (key, title)
        for key, title in _PANELS
        if any(getattr(epoch, key) is not None for _, history in runs for epoch in history)
    ]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.4))
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)
    for axis, (key, title) in zip(axes[0], panels, strict=False):
        seen: set[str] = set()
        for optimizer, history in runs:
            points = [(epoch.epoch, getattr(epoch, key)) for epoch in history if getattr(epoch, key) is not None]
            label = None if optimizer in seen else optimizer
            seen.add(optimizer)
            axis.plot(*zip(*points, strict=True) if points else ([], []), color=colour(optimizer), label=label,
                      marker="o", markersize=3, linewidth=1.5)  # fmt: skip
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


@_plain
def png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write it as a PNG."""
    files.write(path, png(figure))
