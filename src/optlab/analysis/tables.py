"""The comparison as tables of texts, and the sentences below them; each table is a header and rows."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optlab.analysis import environment_diff
from optlab.analysis.comparison import Comparison, Row, Target
from optlab.analysis.paired_tests import PairedComparison, ProbabilityOfOutperforming
from optlab.analysis.verdicts import (
    MAX_PAIRS_IN_TEXT,
    format_difference,
    format_mean,
    format_metric_name,
    summarize_verdicts,
)
from optlab.records import REPORTS_FOLDER
from optlab.schema.parameters import format_count
from optlab.system.text import get_terminal_width, wrap_text

COLUMNS = (
    "validation_accuracy", "validation_loss", "train_loss", "test_accuracy", "test_loss", "calibration_error"
)  # fmt: skip
_TERMINAL_COLUMNS = (
    "validation_accuracy",
    "test_accuracy",
    "train_loss",
)  # for a terminal; the rest is in comparison.md
MINUS = "−"
EMPTY_CELL = "–"

TRAINED_ON_TEST = (
    "These runs were trained on the test split, in file order, without shuffling, and have no validation split: "
    "their test accuracy is an accuracy on training images, and says nothing about new ones."
)
_UNLIMITED_WIDTH = 1000  # columns; the table takes what it needs

Cells = list[list[str]]


def describe(compared: Comparison, folder: Path) -> str:
    """Return the verdict and the tables as they fit this terminal, and the path of the report of that pipeline."""
    return f"{render_text(compared, get_terminal_width())}\nReport: {folder / REPORTS_FOLDER / 'report.html'}"


def render_text(compared: Comparison, width: int | None = None) -> str:
    """The verdict and the tables for a terminal.

    Args:
        width: of the terminal, in characters: sentences are broken there, and what does not fit is left out, which the
            report has; default: as wide as it takes.
    """
    cells = build_optimizer_table(compared, _TERMINAL_COLUMNS)
    while width and len(cells[0]) > 4 and _measure_width(cells) > width:
        cells = [row[:-1] for row in cells]
    parts = [wrap_text(summarize_verdicts(compared), width), render_table(cells)]
    pair_matrix = build_pair_matrix(compared, mark="*")
    if 0 < len(compared.pairs) <= MAX_PAIRS_IN_TEXT and not (width and _measure_width(pair_matrix) > width):
        metric = format_metric_name(compared.verdict_metric)
        parts += [
            wrap_text(f"The row's {metric} less the column's, * where one is better:", width),
            render_table(pair_matrix),
        ]
    return "\n".join(["", "\n\n".join(parts), "", *(wrap_text(each, width) for each in list_remarks(compared))])


def _measure_width(cells: Cells) -> int:
    return max(map(len, render_table(cells).splitlines()))


def render_table(cells: Cells) -> str:
    """A table in characters."""
    header, *rows = cells
    table = Table(*header, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    lines = io.StringIO()
    Console(file=lines, width=_UNLIMITED_WIDTH, color_system=None).print(
        table
    )  # folded cells would be no table in a git tag
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines() if line.strip())


def build_optimizer_table(compared: Comparison, figures: Sequence[str] = COLUMNS) -> Cells:
    """One row for each; columns in which none has a figure are left out."""
    columns = [column for column in figures if any(getattr(row, column) for row in compared.rows)]
    table = [["optimizer", "n", "status", *map(format_metric_name, columns)]] + [
        [row.optimizer, _format_count(row), row.status]
        + [format_mean(figure, key) if (figure := getattr(row, key)) else EMPTY_CELL for key in columns]
        for row in compared.rows
    ]
    return [cells + more for cells, more in zip(table, _build_optional_columns(compared), strict=True)]


def _build_optional_columns(compared: Comparison) -> Cells:
    """Columns that not every comparison has: where one of the optimizers is another kind than the others."""
    rows = compared.rows
    columns = []
    if compared.target:
        columns.append(["steps to target", *(_format_target_steps(compared.target, row.optimizer) for row in rows)])
    if any(row.gradients_per_step not in (None, 1) for row in rows):
        shown = (EMPTY_CELL if row.gradients_per_step is None else f"{row.gradients_per_step:.3g}" for row in rows)
        columns.append(["gradients a step", *shown])
    if compared.tunings:
        columns.append(["tuned", *(_describe_tuning(compared, row.optimizer) for row in rows)])
    if any(compared.config.get_optimizer(row.optimizer).schedule for row in rows):
        columns.append(["schedule", *(compared.config.get_schedule(row.optimizer).name for row in rows)])
    return [list(cells) for cells in zip(*columns, strict=True)] or [[] for _ in range(len(rows) + 1)]


def _describe_tuning(compared: Comparison, optimizer: str) -> str:
    own = compared.tunings.get(optimizer)
    if own is None:
        return "not tuned"
    return (
        "not tuned: at the edge of its range"
        if own.ranges_at_edge
        else format_count(len(own.sampled_trials) // len(own.choice.studies), "trial")
    )


def _format_count(row: Row) -> str:
    """How many runs the figures are of."""
    n = len(row.statuses)
    return str(n) if row.all_completed else f"{row.statuses.count('completed')} of {n}"


def _format_target_steps(target: Target, optimizer: str) -> str:
    median, runs = target.compute_median_steps(optimizer), len(target.steps[optimizer])
    steps = EMPTY_CELL if median is None else f"{median:,}"
    return steps if runs == 1 else f"{steps} ({target.count_reached(optimizer)} of {runs})"


def build_pair_table(compared: Comparison) -> Cells:
    """One row for each pair; nothing where there is none."""
    found = compared.pairs
    large = any(pair.outperforming for pair in found.values())
    header = ["pair", f"difference in {format_metric_name(compared.verdict_metric)}", "p", "wins", "correlation"]
    header += ["probability of outperforming"] * large + ["verdict"]
    return [header] * bool(found) + [
        [
            f"{first} {MINUS} {second}",
            format_difference(pair, compared.verdict_metric),
            f"{pair.p:.2g}",
            f"{pair.wins:g} of {pair.n}",
        ]
        + [EMPTY_CELL if pair.correlation is None else f"{pair.correlation:.2f}".replace("-", MINUS)]
        + ([_format_probability(pair.outperforming, first, second)] if pair.outperforming else [])
        + [describe_verdict(pair, first, second)]
        for (first, second), pair in found.items()
    ]


def describe_verdict(pair: PairedComparison, first: str, second: str) -> str:
    """Its verdict, with the name of the one that is better, if one is."""
    return f"{first if pair.first_is_better else second} {pair.verdict}" if pair.is_significant else pair.verdict


def _format_probability(of_first: ProbabilityOfOutperforming, first: str, second: str) -> str:
    """That of the one which is ahead more often."""
    name, found = (first, of_first) if of_first.probability >= 0.5 else (second, of_first.swap())
    ends = f"{found.low:.2f} to {found.high:.2f}"
    return f"{name} {found.probability:.2f} ({ends})" + ", meaningful" * found.is_meaningful


def build_pair_matrix(compared: Comparison, mark: str = "") -> Cells:
    """The row's figure less the column's, with its interval, for all optimizers that pairs are of.

    Args:
        mark: what stands after a difference that is told.
    """
    names = list(dict.fromkeys(name for pair in compared.pairs for name in pair))
    challenger = compared.challenger
    rows, columns = ([challenger], [name for name in names if name != challenger]) if challenger else (names, names)

    def format_cell(row: str, column: str) -> str:
        if row == column:
            return ""
        pair = compared.pairs.get((row, column))
        oriented = pair or compared.pairs[column, row].swap()
        return format_difference(oriented, compared.verdict_metric) + (mark if oriented.is_significant else "")

    return [["", *columns], *([row, *(format_cell(row, column) for column in columns)] for row in rows)]


def label_cells(compared: Comparison) -> dict[str, dict[str, str]]:
    """Of each cell of the matrix, by row and column, the verdict in one or two words."""
    short = {"cannot be told apart": "not told apart", "equivalent": "equivalent"}
    found: dict[str, dict[str, str]] = {}
    for (first, second), pair in compared.pairs.items():
        for row, column, each in ((first, second, pair), (second, first, pair.swap())):
            label = "better" if each.first_is_better else "worse"
            found.setdefault(row, {})[column] = label if each.is_significant else short[each.verdict]
    return found


def list_remarks(compared: Comparison) -> list[str]:
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
    if compared.differing_conditions:
        notes.append(environment_diff.describe_differences(compared.differing_conditions))
    return [*notes, *compared.notes]


def format_title(compared: Comparison) -> str:
    """Of the report."""
    who = f"{compared.challenger} against" if compared.challenger else "Which optimizer?"
    count = len(compared.rows) - bool(compared.challenger)
    return f"{who} {format_count(count, 'optimizer')} on CIFAR-10"


def summarize_protocol(compared: Comparison) -> str:
    """What the figures are of, in a line."""
    config = compared.config
    settings, data = config.training, config.data
    counts = {"run": len(compared.runs), "optimizer": len(compared.rows), "seed": len(config.seeds)}
    parts = [", ".join(format_count(count, what) for what, count in counts.items()), f"network {config.model}"]
    parts.append(
        f"{format_count(settings.epochs, 'epoch')} of {data.train_size:,} images in batches of {settings.batch_size}"
    )
    own = {name: spec.schedule.name for name, spec in config.optimizers.items() if spec.schedule}
    others = "".join(f", for {name} {schedule}" for name, schedule in own.items())
    parts.append(f"schedule {settings.schedule.name}{others}")
    parts += ["random flips and crops"] * (data.augment == "flip_crop")
    return " · ".join(parts)


def explain_metrics(compared: Comparison) -> str:
    """What the figures are."""
    settings = compared.config.training
    return (
        f"Model {compared.config.model}, {settings.epochs} epochs, batch {settings.batch_size}, {settings.precision}; "
        f"means over n seeds, ± 95 % intervals where n > 1: of a mean by Student's t, of the differences by the paired "
        f"t test, corrected for the number of pairs, as p is. The curves' bands are such intervals of the mean. All of "
        f"it is about this test set, and not about others. Losses are mean cross entropies in nats. Calibration "
        f"error: expected calibration error over 15 bins of equal width."
    )


def render_markdown(compared: Comparison) -> str:
    """The verdict, both tables, and what is said below them."""
    tables = [
        render_markdown_table(cells) for cells in (build_optimizer_table(compared), build_pair_table(compared)) if cells
    ]
    return (
        "\n\n".join([summarize_verdicts(compared), *tables, *list_remarks(compared), explain_metrics(compared)]) + "\n"
    )


def render_markdown_table(cells: Cells) -> str:
    """A table in Markdown."""
    header, *rows = cells
    return "\n".join("| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows))
