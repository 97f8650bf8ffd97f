"""Tables of a comparison as cells of text, their terminal and Markdown forms, and the remarks below them.

The first row of `Cells` is the header. All texts are in the language of `translation.use_language`.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optlab.analysis import environment_diff, scatter
from optlab.analysis.comparison import Comparison, Target
from optlab.analysis.mean_ci import ALPHA
from optlab.analysis.outperforming import ProbabilityOfOutperforming
from optlab.analysis.sequential import PairComparison
from optlab.analysis.translation import join_phrases, join_sentences, translate, translate_count
from optlab.analysis.verdicts import (
    MAX_PAIRS_IN_TEXT,
    describe_champion,
    format_difference,
    format_mean,
    format_metric_name,
    format_status,
    get_pair,
    summarize_verdicts,
)
from optlab.records import REPORTS_FOLDER
from optlab.schema.parameters import SPLIT_SIZES
from optlab.system.text import get_terminal_width, wrap_text

COLUMNS = (
    "validation_accuracy", "validation_loss", "train_loss", "test_accuracy", "test_loss", "calibration_error"
)  # fmt: skip
_MIRRORED_COLUMN = "mirrored_test_accuracy"  # after the test accuracy, with `data.mirror_test`
_TERMINAL_COLUMNS = ("validation_accuracy", "test_accuracy", "train_loss")  # comparison.md has all
MINUS = "−"
EMPTY_CELL = "–"

_TRAINED_ON_TEST = (
    "These runs were trained on the test split, in file order, without shuffling, and have no validation split: "
    "their test accuracy is an accuracy on training images, and says nothing about new ones."
)
_DEFINITIONS = (
    "Model {model}, {epochs} epochs, batch {batch}, {precision}; means over n seeds, ± 95 % intervals of each mean by "
    "Student's t where n > 1. Differences: Welch's t test, or the paired t test if its interval is narrower even at "
    "the lower 95 % bound of the two optimizers' correlation over the seeds. p is corrected for looks (Bonferroni) and "
    "pairs (Holm), the intervals for both (Bonferroni). Where Holm's correction finds a difference although "
    "Bonferroni's interval contains 0, the interval is cut at 0. Equivalence: two one-sided tests for each pair, "
    "corrected for the looks. If looks are changed, seeds exchanged or optimizers added after a look, a new comparison "
    "begins, with 5 % of its own. The bands of the "
    "curves are pointwise 95 % intervals. The results hold for this test set. Losses are mean cross entropies in nats. "
    "Calibration error: expected calibration error over 15 bins of equal width."
)
_MIRRORED_DEFINITION = (
    "Mirrored test accuracy: of the mean of the logits of each test image and of its mirror image (left to right); no "
    "verdict uses it."
)
_AUGMENTATIONS: dict[str, list[str]] = {
    "none": [],
    "flip_crop": ["random flips and crops"],
    "alternating_flip_crop": ["alternating flips and random shifts"],
}
_UNLIMITED_WIDTH = 1000  # characters; a table takes what it needs

Cells = list[list[str]]


def describe(compared: Comparison, folder: Path) -> str:
    """Return verdict and tables for the terminal's width, and the path of the report of the pipeline in `folder`."""
    return f"{render_text(compared, get_terminal_width())}\nReport: {folder / REPORTS_FOLDER / 'report.html'}"


def render_text(compared: Comparison, width: int | None = None) -> str:
    """Return verdict and tables as plain text.

    Args:
        width: of the terminal, in characters: sentences are wrapped, and columns and tables that do not fit are left
            out, as is the remark on the scatter over the seeds; default: no limit.
    """
    cells = build_optimizer_table(compared, _TERMINAL_COLUMNS)
    while width and len(cells[0]) > 4 and _measure_width(cells) > width:
        cells = [row[:-1] for row in cells]
    verdict = "\n".join(wrap_text(line, width) for line in summarize_verdicts(compared).lines)
    parts = [verdict, render_table(cells)]
    pair_matrix = build_pair_matrix(compared, mark="*")
    if 0 < len(compared.pairs) <= MAX_PAIRS_IN_TEXT and not (width and _measure_width(pair_matrix) > width):
        metric = format_metric_name(compared.verdict_metric)
        parts.append(
            wrap_text(f"Row minus column in {metric}, with the interval; * where one of the two is better:", width)
        )
        parts.append(render_table(pair_matrix))
    remarks = list_remarks(compared, with_scatter=width is None)
    return "\n".join(["", "\n\n".join(parts), "", *(wrap_text(each, width) for each in remarks)])


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
    summary = summarize_verdicts(compared)
    points = "\n".join(f"- {point}" for point in summary.points)
    verdict = [part for part in (f"**{summary.headline}**", points, summary.basis) if part]
    parts = [*verdict, *tables, *list_remarks(compared), explain_metrics(compared)]
    return "\n\n".join(parts) + "\n"


def render_markdown_table(cells: Cells) -> str:
    header, *rows = cells
    return "\n".join("| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows))


def list_columns(compared: Comparison) -> list[str]:
    """Return the metrics of an optimizer's row, in the order of the columns."""
    split = COLUMNS.index("test_accuracy") + 1
    return [*COLUMNS[:split], *[_MIRRORED_COLUMN] * compared.config.data.mirror_test, *COLUMNS[split:]]


def build_optimizer_table(compared: Comparison, metrics: Sequence[str] | None = None) -> Cells:
    """Return a row per optimizer, without the columns in which no optimizer has a value.

    Args:
        metrics: the columns; default: all.
    """
    columns = [
        metric for metric in metrics or list_columns(compared) if any(getattr(row, metric) for row in compared.rows)
    ]
    table = [[translate("optimizer"), "n", translate("status"), *map(format_metric_name, columns)]]
    for row in compared.rows:
        n = len(row.statuses)
        count = str(n) if row.all_completed else _format_share(row.statuses.count("completed"), n)
        means = (getattr(row, metric) for metric in columns)
        texts = (format_mean(mean, key) if mean else EMPTY_CELL for mean, key in zip(means, columns, strict=True))
        table.append([row.optimizer, count, format_status(row), *texts])
    return [cells + more for cells, more in zip(table, _build_optional_columns(compared), strict=True)]


def _build_optional_columns(compared: Comparison) -> Cells:
    """Return the columns, as rows, that only some comparisons have."""
    rows, config = compared.rows, compared.config
    columns = []
    if compared.target:
        columns.append(
            [translate("steps to target"), *(_format_target_steps(compared.target, row.optimizer) for row in rows)]
        )
    if any(row.gradients_per_step not in (None, 1) for row in rows):
        counts = (EMPTY_CELL if row.gradients_per_step is None else f"{row.gradients_per_step:.3g}" for row in rows)
        columns.append([translate("gradients a step"), *counts])
    if compared.tunings:
        columns.append([translate("tuned"), *(_describe_tuning(compared, row.optimizer) for row in rows)])
    if any(config.get_optimizer(row.optimizer).schedule for row in rows):
        columns.append([translate("schedule"), *(config.get_schedule(row.optimizer).name for row in rows)])
    return [list(cells) for cells in zip(*columns, strict=True)] or [[] for _ in range(len(rows) + 1)]


def _describe_tuning(compared: Comparison, optimizer: str) -> str:
    tuning = compared.tunings.get(optimizer)
    if tuning is None:
        return translate("not tuned")
    if tuning.ranges_at_edge:
        return translate("not tuned: at the edge of its range")
    return translate_count(tuning.trials_per_search, "trial")


def _format_target_steps(target: Target, optimizer: str) -> str:
    median, runs = target.compute_median_steps(optimizer), len(target.steps[optimizer])
    steps = EMPTY_CELL if median is None else f"{median:,}"
    reached = _format_share(target.count_reached(optimizer), runs)
    return steps if runs == 1 else translate("{value} ({share})", value=steps, share=reached)


def _format_share(count: float, total: int) -> str:
    return translate("{count} of {total}", count=f"{count:g}", total=total)


def build_pair_table(compared: Comparison) -> Cells:
    """Return a row per pair of optimizers; an empty list without pairs."""
    if not compared.pairs:
        return []
    has_probability = any(pair.outperforming for pair in compared.pairs.values())
    difference = translate("difference in {metric}", metric=format_metric_name(compared.verdict_metric))
    header = [translate("pair"), difference, "p", translate("wins"), translate("correlation")]
    table = [[*header, *[translate("probability of outperforming")] * has_probability, translate("verdict")]]
    for (first, second), pair in compared.pairs.items():
        cells = [
            f"{first} {MINUS} {second}",
            format_difference(pair, compared.verdict_metric),
            format_p(pair.p),
            format_wins(pair),
            format_correlation(pair),
        ]
        if has_probability:
            known = pair.outperforming
            cells.append(format_probability(known, first, second) if known else EMPTY_CELL)
        table.append([*cells, describe_verdict(pair, first, second)])
    return table


def format_p(p: float) -> str:
    """Return a p value with two digits, or as many as show on which side of 0.05 it lies."""
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if (float(text) <= ALPHA) == (p <= ALPHA))


def format_wins(pair: PairComparison) -> str:
    """Return the number of seeds with which the first optimizer is better, such as `5 of 8`."""
    return EMPTY_CELL if pair.wins is None else _format_share(pair.wins, pair.n)


def format_correlation(pair: PairComparison) -> str:
    """Return the correlation over the seeds."""
    return EMPTY_CELL if pair.correlation is None else f"{pair.correlation:z.2f}".replace("-", MINUS)


def describe_verdict(pair: PairComparison, first: str, second: str) -> str:
    """Return the pair's verdict, with the name of the better one, if there is one."""
    if not pair.is_better:
        return translate(pair.verdict)
    return translate(f"{{name}} {pair.verdict}", name=first if pair.first_is_better else second)


def format_probability(of_first: ProbabilityOfOutperforming, first: str, second: str) -> str:
    """Return the probability of the optimizer that wins more often."""
    name, best = (first, of_first) if of_first.probability >= 0.5 else (second, of_first.swap())
    template = "{name} {value} ({low} to {high})" + ", meaningful" * best.is_meaningful
    value, low, high = (f"{each:.2f}" for each in (best.probability, best.low, best.high))
    return translate(template, name=name, value=value, low=low, high=high)


def build_pair_matrix(compared: Comparison, mark: str = "") -> Cells:
    """Return the row's value less the column's, with its interval, for all optimizers that have pairs.

    Args:
        mark: appended to the differences of pairs in which one is better.
    """
    names = list(dict.fromkeys(name for pair in compared.pairs for name in pair))
    challenger = compared.challenger
    rows, columns = ([challenger], [name for name in names if name != challenger]) if challenger else (names, names)

    def format_cell(row: str, column: str) -> str:
        if row == column:
            return ""
        pair = get_pair(compared, row, column)
        return format_difference(pair, compared.verdict_metric, with_unit=False) + mark * pair.is_better

    return [["", *columns], *([row, *(format_cell(row, column) for column in columns)] for row in rows)]


def label_cells(compared: Comparison) -> dict[str, dict[str, str]]:
    """Return row → column → verdict in one to three words, for the cells of the pair matrix."""
    labels: dict[str, dict[str, str]] = {}
    for (first, second), pair in compared.pairs.items():
        for row, column, each in ((first, second, pair), (second, first, pair.swap())):
            label = "better" if each.first_is_better else "worse"
            labels.setdefault(row, {})[column] = label if each.is_better else each.verdict
    return labels


def list_remarks(compared: Comparison, with_scatter: bool = True) -> list[str]:
    """Return what readers must know about this comparison's values; its own notes are in English only.

    Args:
        with_scatter: whether to include the remark on the scatter over the seeds.
    """
    remarks, target = [], compared.target
    if compared.config.data.train_split == "test":
        remarks.append(translate(_TRAINED_ON_TEST))
    if target:
        remarks.append(describe_target(target))
    if with_scatter and compared.verdict_metric == "test_accuracy":
        records = {row.optimizer: compared.get_completed_runs(row.optimizer) for row in compared.rows}
        scattered = scatter.describe({name: [run.tested for run in runs] for name, runs in records.items()})
        remarks += [scattered] * bool(scattered)
    if compared.differing_conditions:
        remarks.append(environment_diff.describe_differences(compared.differing_conditions))
    if compared.champion and not compared.challenger and len({run.files.folder for run in compared.runs}) == 1:
        remarks.append(describe_champion(compared))  # a ranking or a challenge has runs of other pipelines
    return [*remarks, *compared.notes]


def describe_target(target: Target) -> str:
    """Return what the steps to target are, and where the target comes from."""
    origin = "as params.yaml has it" if target.is_given else "the second highest mean at the end of training"
    template = (
        "Steps to target: the first step at which at least half of the runs have reached a validation accuracy of "
        "{accuracy} %, {origin}."
    )
    return translate(template, accuracy=f"{100 * target.accuracy:.2f}", origin=translate(origin))


def format_title(compared: Comparison) -> str:
    """Return the report's title."""
    optimizers = translate_count(len(compared.rows) - bool(compared.challenger), "optimizer")
    if compared.challenger:
        return translate("{name} against {optimizers} on CIFAR-10", name=compared.challenger, optimizers=optimizers)
    if compared.config.data.dataset == "cifar10_sample":
        images = sum(SPLIT_SIZES["cifar10_sample"].values())
        template = "Which optimizer? {optimizers} on {images} images of CIFAR-10"
        return translate(template, optimizers=optimizers, images=images)
    return translate("Which optimizer? {optimizers} on CIFAR-10", optimizers=optimizers)


def summarize_protocol(compared: Comparison) -> str:
    """Return one line with the runs, the network, and how they were trained."""
    config = compared.config
    settings, data = config.training, config.data
    counts = {"run": len(compared.runs), "optimizer": len(compared.rows), "seed": len(config.seeds)}
    exceptions = "".join(
        translate(", for {name} {schedule}", name=name, schedule=spec.schedule.name)
        for name, spec in config.optimizers.items()
        if spec.schedule
    )
    parts = [
        join_phrases(translate_count(count, noun) for noun, count in counts.items()),
        translate("network {name}", name=config.model),
        translate(
            "{epochs} of {images} images in batches of {batch}",
            epochs=translate_count(settings.epochs, "epoch"),
            images=f"{data.train_size:,}",
            batch=settings.batch_size,
        ),
        translate("schedule {name}", name=settings.schedule.name) + exceptions,
        *map(translate, _AUGMENTATIONS[data.augment]),
    ]
    return " · ".join(parts)


def explain_metrics(compared: Comparison) -> str:
    """Return the definitions of the values and intervals."""
    settings = compared.config.training
    definitions = translate(
        _DEFINITIONS,
        model=compared.config.model,
        epochs=settings.epochs,
        batch=settings.batch_size,
        precision=settings.precision,
    )
    if not compared.config.data.mirror_test:
        return definitions
    return join_sentences([definitions, translate(_MIRRORED_DEFINITION)])
