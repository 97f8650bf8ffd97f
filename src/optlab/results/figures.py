"""Figures: the curves of all optimizers in one, confusion matrices, one run's own curves."""

import io
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from optlab.data.dataset import CLASSES
from optlab.record.contents import Epoch
from optlab.results.colours import colour
from optlab.system import files

# A figure is part of the record: it must not depend on a user's own settings, or on a screen.
matplotlib.rcdefaults()
matplotlib.use("Agg")

Curves = list[tuple[str, list[Epoch]]]

_PANELS = (("train_loss", "training loss"), ("validation_loss", "validation loss"),
           ("validation_accuracy", "validation accuracy"))  # fmt: skip


def curves(runs: Curves) -> Figure:
    """Loss and accuracy by epoch; `runs` are (optimizer, history), one line each, one colour per optimizer."""
    panels = [
        (key, title)
        for key, title in _PANELS
        if any(getattr(epoch, key) is not None for _, history in runs for epoch in history)
    ]
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(4.2 * max(1, len(panels)), 3.4), squeeze=False)
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
            axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    return figure


def confusion(matrix: list[list[int]], title: str) -> Figure:
    """Counts of test images: rows are the actual classes, columns the predicted ones."""
    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    axis.imshow(matrix, cmap="Blues")
    largest = max(max(row) for row in matrix)
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            axis.text(column, row, str(count), ha="center", va="center", fontsize=7,
                      color="white" if count > largest / 2 else "black")  # fmt: skip
    axis.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(CLASSES)), CLASSES, fontsize=8)
    axis.set(title=title, xlabel="predicted", ylabel="actual")
    figure.tight_layout()
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG, the same bytes each time; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write it as a PNG."""
    files.write(path, png(figure))
    return path


def of_run(folder: Path, run: str, history: list[Epoch], matrix: list[list[int]]) -> list[Path]:
    """One run's curves and, where it has one, its confusion matrix, as PNG files in `folder`."""
    optimizer = run.rpartition("-")[0]
    paths = [save(curves([(optimizer, history)]), folder / "curves.png")]
    if matrix:
        paths.append(save(confusion(matrix, run), folder / "confusion_matrix.png"))
    return paths
