"""The comparison on paper: tables, curves, confusion matrices, and one HTML page that needs no network."""

import base64
import html
from pathlib import Path

from optlab.data.dataset import CLASSES
from optlab.record.contents import Champion
from optlab.record.runs import REPORTS
from optlab.results import figures
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
    files.write(reports / "report.html", _html(compared, reports / "curves.png").encode())


def text_table(compared: Comparison) -> str:
    """The table and the verdict for a terminal."""
    table = _cells(compared)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(["", *lines, "", *_remarks(compared), ""])


def _remarks(compared: Comparison) -> list[str]:
    notes = [verdict(compared)]
    if compared.config.data.train_split == "test":
        notes.append(TRAINED_ON_TEST)
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


def _html(compared: Comparison, curves: Path) -> str:
    header, *rows = _cells(compared)
    body = [
        "<h1>Optimizers on CIFAR-10</h1>",
        *(f"<p>{html.escape(remark)}</p>" for remark in _remarks(compared)),
        _html_table([header, *rows]),
        f'<img src="{_data_uri(curves.read_bytes())}" alt="loss and accuracy by epoch">',
        "<h2>Accuracy by class, test split</h2>",
        _html_table(_class_cells(compared)),
        "<h2>Confusion matrices, test split</h2>",
    ]
    for run in compared.runs:
        if run.tested.confusion:
            image = _data_uri(figures.png(figures.confusion(run.tested.confusion, run.files.id), dpi=80))
            body.append(f'<img src="{image}" alt="confusion matrix of {run.files.id}">')
    body.append(f"<p>{html.escape(_definitions(compared))}</p>")
    return _PAGE.format(body="\n".join(body))


def _class_cells(compared: Comparison) -> list[list[str]]:
    rows = [
        [run.files.id, *(f"{value:.1%}" for _, value in run.tested.class_accuracy)]
        for run in compared.runs
        if run.tested.class_accuracy
    ]
    return [["run", *CLASSES], *rows]


def _html_table(cells: list[list[str]]) -> str:
    def row(values: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    return "<table>" + "\n".join([row(cells[0], "th"), *(row(values, "td") for values in cells[1:])]) + "</table>"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Optimizers on CIFAR-10</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}
</style>
{body}
</html>
"""
