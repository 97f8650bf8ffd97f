"""The comparison as tables of texts, and the sentences below them; each table is a header and rows."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optlab.record.runs import REPORTS
from optlab.results import origin
from optlab.results.comparison import Comparison, Row, Target
from optlab.results.statistics import Outperforming, Pair
from optlab.results.verdict import MOST_PAIRS, gap, value, verdict, words
from optlab.system.wording import counted, fold, terminal_width

COLUMNS = (
    "validation_accuracy", "validation_loss", "train_loss", "test_accuracy", "test_loss", "calibration_error"
)  # fmt: skip
_FIRST = ("validation_accuracy", "test_accuracy", "train_loss")  # for a terminal; the rest is in comparison.md
MINUS = "−"
NOTHING = "–"

TRAINED_ON_TEST = (
    "These runs were trained on the test split, in file order, without shuffling, and have no validation split: "
    "their test accuracy is an accuracy on training images, and says nothing about new ones."
)
_ANY_WIDTH = 1000  # columns; the table takes what it needs

Cells = list[list[str]]


def describe(compared: Comparison, folder: Path) -> str:
    """Return the verdict and the tables as they fit this terminal, and the path of the report of that pipeline."""
    return f"{text(compared, terminal_width())}\nReport: {folder / REPORTS / 'report.html'}"


def text(compared: Comparison, width: int | None = None) -> str:
    """The verdict and the tables for a terminal.

    Args:
        width: of the terminal, in characters: sentences are broken there, and what does not fit is left out, which the
            report has; default: as wide as it takes.
    """
    cells = optimizers(compared, _FIRST)
    while width and len(cells[0]) > 4 and _width(cells) > width:
        cells = [row[:-1] for row in cells]
    parts = [fold(verdict(compared), width), drawn(cells)]
    pairs_of = matrix(compared, mark="*")
    if 0 < len(compared.pairs) <= MOST_PAIRS and not (width and _width(pairs_of) > width):
        by = words(compared.judged_by)
        parts += [fold(f"The row's {by} less the column's, * where one is better:", width), drawn(pairs_of)]
    return "\n".join(["", "\n\n".join(parts), "", *(fold(each, width) for each in remarks(compared))])


def _width(cells: Cells) -> int:
    return max(map(len, drawn(cells).splitlines()))


def drawn(cells: Cells) -> str:
    """A table in characters."""
    header, *rows = cells
    table = Table(*header, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    lines = io.StringIO()
    Console(file=lines, width=_ANY_WIDTH, color_system=None).print(table)  # folded cells would be no table in a git tag
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines() if line.strip())


def optimizers(compared: Comparison, figures: Sequence[str] = COLUMNS) -> Cells:
    """One row for each; columns in which none has a figure are left out."""
    columns = [column for column in figures if any(getattr(row, column) for row in compared.rows)]
    table = [["optimizer", "n", "status", *map(words, columns)]] + [
        [row.optimizer, _count(row), row.status]
        + [value(figure, key) if (figure := getattr(row, key)) else NOTHING for key in columns]
        for row in compared.rows
    ]
    return [cells + more for cells, more in zip(table, _more(compared), strict=True)]


def _more(compared: Comparison) -> Cells:
    """Columns that not every comparison has: where one of the optimizers is another kind than the others."""
    rows = compared.rows
    columns = []
    if compared.target:
        columns.append(["steps to target", *(_steps(compared.target, row.optimizer) for row in rows)])
    if any(row.gradients not in (None, 1) for row in rows):
        shown = (NOTHING if row.gradients is None else f"{row.gradients:.3g}" for row in rows)
        columns.append(["gradients a step", *shown])
    if compared.tunings:
        columns.append(["tuned", *(_tuned(compared, row.optimizer) for row in rows)])
    if any(compared.config.optimizer(row.optimizer).schedule for row in rows):
        columns.append(["schedule", *(compared.config.schedule(row.optimizer).name for row in rows)])
    return [list(cells) for cells in zip(*columns, strict=True)] or [[] for _ in range(len(rows) + 1)]


def _tuned(compared: Comparison, optimizer: str) -> str:
    own = compared.tunings.get(optimizer)
    if own is None:
        return "not tuned"
    return (
        "not tuned: at the edge of its range"
        if own.at_edge
        else counted(len(own.drawn) // len(own.choice.studies), "trial")
    )


def _count(row: Row) -> str:
    """How many runs the figures are of."""
    n = len(row.statuses)
    return str(n) if row.is_whole else f"{row.statuses.count('completed')} of {n}"


def _steps(target: Target, optimizer: str) -> str:
    median, runs = target.median(optimizer), len(target.steps[optimizer])
    steps = NOTHING if median is None else f"{median:,}"
    return steps if runs == 1 else f"{steps} ({target.reached(optimizer)} of {runs})"


def pairs(compared: Comparison) -> Cells:
    """One row for each pair; nothing where there is none."""
    found = compared.pairs
    large = any(pair.outperforming for pair in found.values())
    header = ["pair", f"difference in {words(compared.judged_by)}", "p", "wins", "correlation"]
    header += ["probability of outperforming"] * large + ["verdict"]
    return [header] * bool(found) + [
        [f"{first} {MINUS} {second}", gap(pair, compared.judged_by), f"{pair.p:.2g}", f"{pair.wins:g} of {pair.n}"]
        + [NOTHING if pair.correlation is None else f"{pair.correlation:.2f}".replace("-", MINUS)]
        + ([_probability(pair.outperforming, first, second)] if pair.outperforming else [])
        + [said(pair, first, second)]
        for (first, second), pair in found.items()
    ]


def said(pair: Pair, first: str, second: str) -> str:
    """Its verdict, with the name of the one that is better, if one is."""
    return f"{first if pair.favours_first else second} {pair.verdict}" if pair.is_told else pair.verdict


def _probability(of_first: Outperforming, first: str, second: str) -> str:
    """That of the one which is ahead more often."""
    name, found = (first, of_first) if of_first.probability >= 0.5 else (second, of_first.turned())
    ends = f"{found.low:.2f} to {found.high:.2f}"
    return f"{name} {found.probability:.2f} ({ends})" + ", meaningful" * found.is_meaningful


def matrix(compared: Comparison, mark: str = "") -> Cells:
    """The row's figure less the column's, with its interval, for all optimizers that pairs are of.

    Args:
        mark: what stands after a difference that is told.
    """
    names = list(dict.fromkeys(name for pair in compared.pairs for name in pair))
    alone = compared.challenger
    rows, columns = ([alone], [name for name in names if name != alone]) if alone else (names, names)

    def cell(row: str, column: str) -> str:
        if row == column:
            return ""
        pair = compared.pairs.get((row, column))
        turned = pair or compared.pairs[column, row].turned()
        return gap(turned, compared.judged_by) + (mark if turned.is_told else "")

    return [["", *columns], *([row, *(cell(row, column) for column in columns)] for row in rows)]


def looks(compared: Comparison) -> dict[str, dict[str, str]]:
    """Of each cell of the matrix, by row and column, the verdict in one or two words."""
    short = {"cannot be told apart": "not told apart", "equivalent": "equivalent"}
    found: dict[str, dict[str, str]] = {}
    for (first, second), pair in compared.pairs.items():
        for row, column, each in ((first, second, pair), (second, first, pair.turned())):
            told = "better" if each.favours_first else "worse"
            found.setdefault(row, {})[column] = told if each.is_told else short[each.verdict]
    return found


def remarks(compared: Comparison) -> list[str]:
    """What has to be known about the figures of this comparison."""
    notes = []
    if compared.config.data.train_split == "test":
        notes.append(TRAINED_ON_TEST)
    if compared.target:
        why = (
            "as params.yaml has it" if compared.target.is_given else "the mean that the second best optimizer ends with"
        )
        notes.append(
            f"Steps to target: those after which at least half of the runs had a validation accuracy of "
            f"{100 * compared.target.accuracy:.2f} %, {why}."
        )
    if compared.mixture:
        notes.append(origin.sentence(compared.mixture))
    return [*notes, *compared.notes]


def title(compared: Comparison) -> str:
    """Of the report."""
    who = f"{compared.challenger} against" if compared.challenger else "Which optimizer?"
    count = len(compared.rows) - bool(compared.challenger)
    return f"{who} {counted(count, 'optimizer')} on CIFAR-10"


def in_brief(compared: Comparison) -> str:
    """What the figures are of, in a line."""
    config = compared.config
    settings, data = config.training, config.data
    counts = {"run": len(compared.runs), "optimizer": len(compared.rows), "seed": len(config.seeds)}
    parts = [", ".join(counted(count, what) for what, count in counts.items()), f"network {config.model}"]
    parts.append(
        f"{counted(settings.epochs, 'epoch')} of {data.train_size:,} images in batches of {settings.batch_size}"
    )
    own = {name: spec.schedule.name for name, spec in config.optimizers.items() if spec.schedule}
    others = "".join(f", for {name} {schedule}" for name, schedule in own.items())
    parts.append(f"schedule {settings.schedule.name}{others}")
    parts += ["random flips and crops"] * (data.augment == "flip_crop")
    return " · ".join(parts)


def definitions(compared: Comparison) -> str:
    """What the figures are."""
    settings = compared.config.training
    return (
        f"Model {compared.config.model}, {settings.epochs} epochs, batch {settings.batch_size}, {settings.precision}; "
        f"means over n seeds, ± 95 % intervals where n > 1: of a mean by Student's t, of the differences by the paired "
        f"t test, corrected for the number of pairs, as p is. The curves' bands are such intervals of the mean. All of "
        f"it is about this test set, and not about others. Losses are mean cross entropies in nats. Calibration "
        f"error: expected calibration error over 15 bins of equal width."
    )


def markdown(compared: Comparison) -> str:
    """The verdict, both tables, and what is said below them."""
    tables = [markdown_table(cells) for cells in (optimizers(compared), pairs(compared)) if cells]
    return "\n\n".join([verdict(compared), *tables, *remarks(compared), definitions(compared)]) + "\n"


def markdown_table(cells: Cells) -> str:
    """A table in Markdown."""
    header, *rows = cells
    return "\n".join("| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows))
