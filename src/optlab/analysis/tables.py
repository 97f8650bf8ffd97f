"""Tables of a comparison as cells of text, their terminal and Markdown forms, and the remarks below them.

The first row of `Cells` is the header.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optlab.analysis import environment_diff
from optlab.analysis.comparison import Comparison, Target
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
_TERMINAL_COLUMNS = ("validation_accuracy", "test_accuracy", "train_loss")  # comparison.md has all
MINUS = "−"
EMPTY_CELL = "–"

TRAINED_ON_TEST = (
    "These runs were trained on the test split, in file order, without shuffling, and have no validation split: "
    "their test accuracy is an accuracy on training images, and says nothing about new ones."
)
_UNLIMITED_WIDTH = 1000  # characters; a table takes what it needs

Cells = list[list[str]]


def describe(compared: Comparison, folder: Path) -> str:
    """Return verdict and tables for the terminal's width, and the path of the report of the pipeline in `folder`."""
    return f"{render_text(compared, get_terminal_width())}\nReport: {folder / REPORTS_FOLDER / 'report.html'}"


def render_text(compared: Comparison, width: int | None = None) -> str:
    """Return verdict and tables as plain text.

    Args:
        width: of the terminal, in characters: sentences are wrapped, and columns and tables that do not fit are left
            out; default: no limit.
    """
    cells = build_optimizer_table(compared, _TERMINAL_COLUMNS)
    while width and len(cells[0]) > 4 and _measure_width(cells) > width:
        cells = [row[:-1] for row in cells]
    parts = [wrap_text(summarize_verdicts(compared), width), render_table(cells)]
    pair_matrix = build_pair_matrix(compared, mark="*")
    if 0 < len(compared.pairs) <= MAX_PAIRS_IN_TEXT and not (width and _measure_width(pair_matrix) > width):
        metric = format_metric_name(compared.verdict_metric)
        parts.append(wrap_text(f"The row's {metric} less the column's, * where one is better:", width))
        parts.append(render_table(pair_matrix))
    return "\n".join(["", "\n\n".join(parts), "", *(wrap_text(each, width) for each in list_remarks(compared))])


def _measure_width(cells: Cells) -> int:
    return max(map(len, render_table(cells).splitlines()))


def render_table(cells: Cells) -> str:
    """Return a table in characters, never folded: a git tag's message holds it as well."""
    header, *rows = cells
    table = Table(*header, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    output = io.StringIO()
    Console(file=output, width=_UNLIMITED_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines() if line.strip())


def render_markdown(compared: Comparison) -> str:
    """Return comparison.md: the verdict, both tables, the remarks and the metrics' definitions."""
    tables = [
        render_markdown_table(cells) for cells in (build_optimizer_table(compared), build_pair_table(compared)) if cells
    ]
    parts = [summarize_verdicts(compared), *tables, *list_remarks(compared), explain_metrics(compared)]
    return "\n\n".join(parts) + "\n"


def render_markdown_table(cells: Cells) -> str:
    header, *rows = cells
    return "\n".join("| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows))


def build_optimizer_table(compared: Comparison, metrics: Sequence[str] = COLUMNS) -> Cells:
    """Return a row per optimizer, without the columns in which no optimizer has a value."""
    columns = [metric for metric in metrics if any(getattr(row, metric) for row in compared.rows)]
    table = [["optimizer", "n", "status", *map(format_metric_name, columns)]]
    for row in compared.rows:
        n = len(row.statuses)
        count = str(n) if row.all_completed else f"{row.statuses.count('completed')} of {n}"
        means = (getattr(row, metric) for metric in columns)
        texts = (format_mean(mean, key) if mean else EMPTY_CELL for mean, key in zip(means, columns, strict=True))
        table.append([row.optimizer, count, row.status, *texts])
    return [cells + more for cells, more in zip(table, _build_optional_columns(compared), strict=True)]


def _build_optional_columns(compared: Comparison) -> Cells:
    """Return the columns, as rows, that only some comparisons have."""
    rows, config = compared.rows, compared.config
    columns = []
    if compared.target:
        columns.append(["steps to target", *(_format_target_steps(compared.target, row.optimizer) for row in rows)])
    if any(row.gradients_per_step not in (None, 1) for row in rows):
        counts = (EMPTY_CELL if row.gradients_per_step is None else f"{row.gradients_per_step:.3g}" for row in rows)
        columns.append(["gradients a step", *counts])
    if compared.tunings:
        columns.append(["tuned", *(_describe_tuning(compared, row.optimizer) for row in rows)])
    if any(config.get_optimizer(row.optimizer).schedule for row in rows):
        columns.append(["schedule", *(config.get_schedule(row.optimizer).name for row in rows)])
    return [list(cells) for cells in zip(*columns, strict=True)] or [[] for _ in range(len(rows) + 1)]


def _describe_tuning(compared: Comparison, optimizer: str) -> str:
    tuning = compared.tunings.get(optimizer)
    if tuning is None:
        return "not tuned"
    if tuning.ranges_at_edge:
        return "not tuned: at the edge of its range"
    return format_count(len(tuning.sampled_trials) // len(tuning.choice.studies), "trial")


def _format_target_steps(target: Target, optimizer: str) -> str:
    median, runs = target.compute_median_steps(optimizer), len(target.steps[optimizer])
    steps = EMPTY_CELL if median is None else f"{median:,}"
    return steps if runs == 1 else f"{steps} ({target.count_reached(optimizer)} of {runs})"


def build_pair_table(compared: Comparison) -> Cells:
    """Return a row per pair of optimizers; an empty list without pairs."""
    if not compared.pairs:
        return []
    has_probability = any(pair.outperforming for pair in compared.pairs.values())
    header = ["pair", f"difference in {format_metric_name(compared.verdict_metric)}", "p", "wins", "correlation"]
    table = [[*header, *["probability of outperforming"] * has_probability, "verdict"]]
    for (first, second), pair in compared.pairs.items():
        cells = [
            f"{first} {MINUS} {second}",
            format_difference(pair, compared.verdict_metric),
            f"{pair.p:.2g}",
            f"{pair.wins:g} of {pair.n}",
            EMPTY_CELL if pair.correlation is None else f"{pair.correlation:.2f}".replace("-", MINUS),
        ]
        if pair.outperforming:
            cells.append(_format_probability(pair.outperforming, first, second))
        table.append([*cells, describe_verdict(pair, first, second)])
    return table


def describe_verdict(pair: PairedComparison, first: str, second: str) -> str:
    """Return the pair's verdict, with the name of the better one, if there is one."""
    return f"{first if pair.first_is_better else second} {pair.verdict}" if pair.is_significant else pair.verdict


def _format_probability(of_first: ProbabilityOfOutperforming, first: str, second: str) -> str:
    """Return the probability of the optimizer that wins more often."""
    name, best = (first, of_first) if of_first.probability >= 0.5 else (second, of_first.swap())
    interval = f"{best.low:.2f} to {best.high:.2f}"
    return f"{name} {best.probability:.2f} ({interval})" + ", meaningful" * best.is_meaningful


def build_pair_matrix(compared: Comparison, mark: str = "") -> Cells:
    """Return the row's value less the column's, with its interval, for all optimizers that have pairs.

    Args:
        mark: appended to significant differences.
    """
    names = list(dict.fromkeys(name for pair in compared.pairs for name in pair))
    challenger = compared.challenger
    rows, columns = ([challenger], [name for name in names if name != challenger]) if challenger else (names, names)

    def format_cell(row: str, column: str) -> str:
        if row == column:
            return ""
        pair = compared.pairs.get((row, column)) or compared.pairs[column, row].swap()
        return format_difference(pair, compared.verdict_metric) + (mark if pair.is_significant else "")

    return [["", *columns], *([row, *(format_cell(row, column) for column in columns)] for row in rows)]


def label_cells(compared: Comparison) -> dict[str, dict[str, str]]:
    """Return row → column → verdict in one to three words, for the cells of the pair matrix."""
    short = {"cannot be told apart": "not told apart", "equivalent": "equivalent"}
    labels: dict[str, dict[str, str]] = {}
    for (first, second), pair in compared.pairs.items():
        for row, column, each in ((first, second, pair), (second, first, pair.swap())):
            label = "better" if each.first_is_better else "worse"
            labels.setdefault(row, {})[column] = label if each.is_significant else short[each.verdict]
    return labels


def list_remarks(compared: Comparison) -> list[str]:
    """Return what readers must know about this comparison's values."""
    remarks, target = [], compared.target
    if compared.config.data.train_split == "test":
        remarks.append(TRAINED_ON_TEST)
    if target:
        origin = "as params.yaml has it" if target.is_given else "the mean that the second best optimizer ends with"
        remarks.append(
            f"Steps to target: those after which at least half of the runs had a validation accuracy of "
            f"{100 * target.accuracy:.2f} %, {origin}."
        )
    if compared.differing_conditions:
        remarks.append(environment_diff.describe_differences(compared.differing_conditions))
    return [*remarks, *compared.notes]


def format_title(compared: Comparison) -> str:
    """Return the report's title."""
    question = f"{compared.challenger} against" if compared.challenger else "Which optimizer?"
    count = len(compared.rows) - bool(compared.challenger)
    return f"{question} {format_count(count, 'optimizer')} on CIFAR-10"


def summarize_protocol(compared: Comparison) -> str:
    """Return one line with the runs, the network, and how they were trained."""
    config = compared.config
    settings, data = config.training, config.data
    counts = {"run": len(compared.runs), "optimizer": len(compared.rows), "seed": len(config.seeds)}
    own = {name: spec.schedule.name for name, spec in config.optimizers.items() if spec.schedule}
    others = "".join(f", for {name} {schedule}" for name, schedule in own.items())
    parts = [
        ", ".join(format_count(count, noun) for noun, count in counts.items()),
        f"network {config.model}",
        f"{format_count(settings.epochs, 'epoch')} of {data.train_size:,} images in batches of {settings.batch_size}",
        f"schedule {settings.schedule.name}{others}",
        *["random flips and crops"] * (data.augment == "flip_crop"),
    ]
    return " · ".join(parts)


def explain_metrics(compared: Comparison) -> str:
    """Return the definitions of the values and intervals."""
    settings = compared.config.training
    return (
        f"Model {compared.config.model}, {settings.epochs} epochs, batch {settings.batch_size}, {settings.precision}; "
        f"means over n seeds, ± 95 % intervals where n > 1: of a mean by Student's t, of the differences by the paired "
        f"t test, corrected for the number of pairs, as p is. The curves' bands are such intervals of the mean. All of "
        f"it is about this test set, and not about others. Losses are mean cross entropies in nats. Calibration "
        f"error: expected calibration error over 15 bins of equal width."
    )
