"""The comparison on paper: tables, curves, confusion matrices, and one HTML page that needs no network."""

import base64
import io
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optlab.config.parameters import CLASSES
from optlab.record.contents import Champion
from optlab.record.runs import REPORTS
from optlab.results import figures, origin, pages
from optlab.results.comparison import Comparison, Figure, Row, verdict
from optlab.system import files

_COLUMNS = (
    ("validation accuracy", "validation_accuracy", True),
    ("validation loss", "validation_loss", False),
    ("training loss", "train_loss", False),
    ("test accuracy", "test_accuracy", True),
    ("test loss", "test_loss", False),
    ("calibration error", "calibration_error", True),
)

_ANY_WIDTH = 1000  # columns; the table takes what it needs

TRAINED_ON_TEST = (
    "These runs were trained on the test split, in file order, without shuffling, and have no validation split: "
    "their test accuracy is an accuracy on training images, and says nothing about new ones."
)


def write(compared: Comparison, folder: Path) -> None:
    """Write everything under reports/; the same record gives the same bytes."""
    reports = folder / REPORTS
    files.write(reports / "comparison.md", _markdown(compared).encode())
    _write_table(compared, reports / "comparison.csv")
    _write_history(compared, reports / "history.csv")
    _write_confusion(compared, reports / "confusion.csv")
    champion = compared.champion
    Champion(
        champion=champion.files.id if champion else None,
        chosen_by=compared.chosen_by,
        validation_accuracy=champion.trained.validation_accuracy if champion else None,
        test_accuracy=champion.tested.test_accuracy if champion else None,
    ).write(reports / "champion.json")
    drawn = [(run.files.optimizer, run.trained.history) for run in compared.runs]
    figures.save(figures.curves(drawn), reports / "curves.png")
    files.write(reports / "report.html", _html(compared, reports / "curves.png"))


def text_table(compared: Comparison) -> str:
    """The table and the verdict for a terminal."""
    header, *rows = _cells(compared)
    table = Table(*header, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    lines = io.StringIO()
    Console(file=lines, width=_ANY_WIDTH, color_system=None).print(table)  # folded cells would be no table in a git tag
    drawn = [line.rstrip() for line in lines.getvalue().splitlines() if line.strip()]
    return "\n".join(["", *drawn, "", *_remarks(compared), ""])


def _remarks(compared: Comparison) -> list[str]:
    notes = [verdict(compared)]
    if compared.config.data.train_split == "test":
        notes.append(TRAINED_ON_TEST)
    if compared.mixture:
        notes.append(origin.sentence(compared.mixture))
    return notes


def _cells(compared: Comparison) -> list[list[str]]:
    """Header and rows; columns in which no optimizer has a figure are left out."""
    columns = [column for column in _COLUMNS if any(getattr(row, column[1]) for row in compared.rows)]
    header = ["optimizer", "n", "status", *(title for title, _, _ in columns)]
    return [header] + [
        [row.optimizer, str(len(row.statuses)), row.status]
        + [_format(getattr(row, key), percent) for _, key, percent in columns]
        for row in compared.rows
    ]


def _format(figure: Figure | None, percent: bool) -> str:
    if figure is None:
        return "–"
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    spread = f" ± {scale * figure.sd:.{digits}f}" if figure.sd is not None else ""
    return f"{scale * figure.mean:.{digits}f}{spread}{unit}"


def _markdown(compared: Comparison) -> str:
    header, *rows = _cells(compared)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n\n" + "\n\n".join([*_remarks(compared), _definitions(compared)]) + "\n"


def _definitions(compared: Comparison) -> str:
    settings = compared.config.training
    return (
        f"Model {compared.config.model}, {settings.epochs} epochs, batch {settings.batch_size}, {settings.precision}; "
        f"means over n seeds, ± the sample standard deviation where n > 1. Losses are mean cross entropies in nats. "
        f"Calibration error: expected calibration error over 15 bins of equal width."
    )


def _write_table(compared: Comparison, path: Path) -> None:
    keys = [key for _, key, _ in _COLUMNS]
    header = ["optimizer", "n", "status", *(f"{key}{part}" for key in keys for part in ("", "_sd"))]

    def values(row: Row) -> list[object]:
        found: list[Figure | None] = [getattr(row, key) for key in keys]
        pairs = [value for figure in found for value in ((figure.mean, figure.sd) if figure else (None, None))]
        return [row.optimizer, len(row.statuses), row.status, *pairs]

    files.write_csv(path, [header, *(values(row) for row in compared.rows)])


def _write_history(compared: Comparison, path: Path) -> None:
    header = [
        "optimizer",
        "seed",
        "epoch",
        "train_loss",
        "running_loss",
        "validation_loss",
        "validation_accuracy",
        "lr",
    ]
    rows = [
        [run.files.optimizer, run.files.seed, *(getattr(epoch, key) for key in header[2:])]
        for run in compared.runs
        for epoch in run.trained.history
    ]
    files.write_csv(path, [header, *rows])


def _write_confusion(compared: Comparison, path: Path) -> None:
    rows = [
        [run.files.id, CLASSES[actual], CLASSES[predicted], count]
        for run in compared.runs
        for actual, counts in enumerate(run.tested.confusion)
        for predicted, count in enumerate(counts)
    ]
    files.write_csv(path, [["run", "actual", "predicted", "images"], *rows])


def _html(compared: Comparison, curves: Path) -> bytes:
    return pages.render(
        "report",
        remarks=_remarks(compared),
        cells=_cells(compared),
        curves=_data_uri(curves.read_bytes()),
        class_cells=_class_cells(compared),
        matrices=[(run.files.id, run.tested.confusion) for run in compared.runs if run.tested.confusion],
        definitions=_definitions(compared),
    )


def _class_cells(compared: Comparison) -> list[list[str]]:
    rows = [
        [run.files.id, *(f"{value:.1%}" for _, value in run.tested.class_accuracy)]
        for run in compared.runs
        if run.tested.class_accuracy
    ]
    return [["run", *CLASSES], *rows]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
