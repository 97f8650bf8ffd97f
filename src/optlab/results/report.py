"""The comparison on paper: tables, curves, confusion matrices, and one HTML page that needs no network."""

import base64
import io
from itertools import chain
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optlab.config.parameters import CLASSES
from optlab.record.contents import Champion
from optlab.record.runs import REPORTS
from optlab.results import figures, origin, pages
from optlab.results.comparison import Comparison, Row
from optlab.results.statistics import Figure
from optlab.results.verdict import gap, value, verdict, words
from optlab.system import files

_COLUMNS = (
    "validation_accuracy", "validation_loss", "train_loss", "test_accuracy", "test_loss", "calibration_error"
)  # fmt: skip

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
    _write_pairs(compared, reports / "pairs.csv")
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
    """The verdict and the table for a terminal."""
    header, *rows = _cells(compared)
    table = Table(*header, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    lines = io.StringIO()
    Console(file=lines, width=_ANY_WIDTH, color_system=None).print(table)  # folded cells would be no table in a git tag
    drawn = [line.rstrip() for line in lines.getvalue().splitlines() if line.strip()]
    return "\n".join(["", verdict(compared), "", *drawn, "", *_remarks(compared)])


def _remarks(compared: Comparison) -> list[str]:
    notes = []
    if compared.config.data.train_split == "test":
        notes.append(TRAINED_ON_TEST)
    if compared.mixture:
        notes.append(origin.sentence(compared.mixture))
    return notes


def _cells(compared: Comparison) -> list[list[str]]:
    """Header and rows; columns in which no optimizer has a figure are left out."""
    columns = [column for column in _COLUMNS if any(getattr(row, column) for row in compared.rows)]
    header = ["optimizer", "n", "status", *map(words, columns)]
    return [header] + [
        [row.optimizer, _count(row), row.status]
        + [value(figure, key) if (figure := getattr(row, key)) else "–" for key in columns]
        for row in compared.rows
    ]


def _count(row: Row) -> str:
    """How many runs the figures are of."""
    n = len(row.statuses)
    return str(n) if row.is_whole else f"{row.statuses.count('completed')} of {n}"


def _pair_cells(compared: Comparison) -> list[list[str]]:
    """Header and a row for each pair; nothing where no pair has a verdict."""
    pairs = compared.pairs
    header = ["pair", f"difference in {words(compared.judged_by)}", "p", "wins", "correlation", "verdict"]
    return [header] * bool(pairs) + [
        [
            f"{first} − {second}", gap(pair, compared.judged_by), f"{pair.p:.2g}",
            f"{pair.wins:g} of {pair.n}", "–" if pair.correlation is None else f"{pair.correlation:.2f}",
            f"{first if pair.favours_first else second} {pair.verdict}" if pair.is_told else pair.verdict,
        ]
        for (first, second), pair in pairs.items()
    ]  # fmt: skip


def _markdown(compared: Comparison) -> str:
    tables = [_markdown_table(cells) for cells in (_cells(compared), _pair_cells(compared)) if cells]
    return "\n\n".join([verdict(compared), *tables, *_remarks(compared), _definitions(compared)]) + "\n"


def _markdown_table(cells: list[list[str]]) -> str:
    header, *rows = cells
    return "\n".join("| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows))


def _definitions(compared: Comparison) -> str:
    settings = compared.config.training
    return (
        f"Model {compared.config.model}, {settings.epochs} epochs, batch {settings.batch_size}, {settings.precision}; "
        f"means over n seeds, ± 95 % intervals where n > 1: of a mean by Student's t, of the differences by the paired "
        f"t test, corrected for the number of pairs, as p is. The curves' bands are such intervals of the mean. All of "
        f"it is about this test set, and not about others. Losses are mean cross entropies in nats. Calibration "
        f"error: expected calibration error over 15 bins of equal width."
    )


def _write_table(compared: Comparison, path: Path) -> None:
    header = [
        "optimizer",
        "n",
        "status",
        *(f"{key}{part}" for key in _COLUMNS for part in ("", "_sd", "_low", "_high")),
    ]

    def values(row: Row) -> list[object]:
        found: list[Figure | None] = [getattr(row, key) for key in _COLUMNS]
        parts = [(each.mean, each.sd, each.low, each.high) if each else (None,) * 4 for each in found]
        return [row.optimizer, row.statuses.count("completed"), row.status, *chain.from_iterable(parts)]

    files.write_csv(path, [header, *(values(row) for row in compared.rows)])


def _write_pairs(compared: Comparison, path: Path) -> None:
    header = ["first", "second", "n", "difference", "low", "high", "p", "wins", "correlation", "verdict", "needed"]
    rows = [[*names, *(getattr(pair, key) for key in header[2:])] for names, pair in compared.pairs.items()]
    files.write_csv(path, [header, *rows])


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
        verdict=verdict(compared),
        remarks=_remarks(compared),
        cells=_cells(compared),
        pair_cells=_pair_cells(compared),
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
