"""report.html: one page in English and Chinese that needs no network, interactive where a browser runs scripts.

The template holds all tables and a picture for each figure; report.js replaces the pictures by figures of Observable
Plot.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from optlab.analysis import environment_diff, figures, page_data, presentation, tables, tuning_page
from optlab.analysis.comparison import Comparison, Target
from optlab.analysis.figures import Curve
from optlab.analysis.tables import EMPTY_CELL, Cells
from optlab.analysis.translation import BilingualText, build_bilingual, translate
from optlab.analysis.verdicts import format_metric_name, summarize_verdicts
from optlab.schema.parameters import CLASS_NAMES

BilingualCells = list[list[BilingualText]]

_VERDICTS_PAGE = Path("docs") / "verdicts.md"
_COST_COLUMNS = ("steps to target", "gradients a step")  # in a table of their own
_NOT_TUNED = "not tuned"  # how the warning in the column "tuned" begins
_OPTIONAL_COLUMNS = (
    "n",
    "status",
    "tuned",
    "schedule",
    "searches",
    "trials",
    "diverged",
)  # left out where all optimizers have the same
_SYMBOLS = {"better": "▲", "worse": "▼", "equivalent": "=", "undecided": "?"}


def render(compared: Comparison, curves: dict[str, dict[str, Curve]], folder: Path) -> bytes:
    """Return the page of a comparison; the same record gives the same bytes.

    Args:
        curves: from `figures.compute_curves`.
        folder: that the page lies in, relative to the repository root, which is the working directory.
    """
    return presentation.render_template(
        "report",
        data=_encode_json(page_data.build(compared, curves)),
        title=build_bilingual(lambda: tables.format_title(compared)),
        protocol_in_brief=build_bilingual(lambda: tables.summarize_protocol(compared)),
        verdict=build_bilingual(lambda: vars(summarize_verdicts(compared))),
        remarks=build_bilingual(lambda: _list_remarks(compared)),
        target=build_bilingual(lambda: [tables.describe_target(each) for each in [compared.target] if each]),
        notes=compared.notes,
        metric=build_bilingual(lambda: format_metric_name(compared.verdict_metric)),
        has_points="accuracy" in compared.verdict_metric,
        cells=_build_optimizer_table(compared),
        colours=compared.colours,
        ranking=figures.render_svg(figures.plot_all_seeds(compared)),
        panels=_render_curve_panels(compared, curves),
        has_gradients=all(row.gradients_per_step is not None for row in compared.rows),
        cost_cells=build_bilingual(lambda: _build_cost_table(compared)),
        matrix=_build_matrix(compared) if compared.pairs else [],
        pair_cells=build_bilingual(lambda: tables.build_pair_table(compared)),
        tuning_protocol=(
            build_bilingual(lambda: tuning_page.describe_tuning_protocol(compared)) if compared.tunings else ""
        ),
        chosen_cells=_build_chosen_table(compared) if compared.tunings else [],
        rates=figures.render_learning_rate_panels(compared),
        class_cells=build_bilingual(lambda: _build_class_table(compared)),
        matrices=compute_mean_confusions(compared),
        definitions=build_bilingual(lambda: tables.explain_metrics(compared)),
        parameter_cells=build_bilingual(lambda: environment_diff.build_parameter_table(compared.config)),
        condition_cells=build_bilingual(
            lambda: environment_diff.build_environment_table(run.conditions for run in compared.runs)
        ),
        verdicts_page=Path(os.path.relpath(_VERDICTS_PAGE, folder)).as_posix(),
    )


def _encode_json(data: Any) -> str:
    """Return JSON that no text can end early as a part of an HTML page; a text is {"en": …, "zh": …}."""
    text = json.dumps(data, default=vars, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _list_remarks(compared: Comparison) -> list[str]:
    """Return the remarks without those that the page has elsewhere."""
    elsewhere = {*compared.notes, *([tables.describe_target(compared.target)] if compared.target else [])}
    return [each.replace("`", "") for each in tables.list_remarks(compared) if each not in elsewhere]


def _build_optimizer_table(compared: Comparison) -> BilingualCells:
    """Return the table with the verdict metric first, without columns that say nothing or belong to the costs."""
    cells = build_bilingual(lambda: tables.build_optimizer_table(compared))
    return _select_columns(cells, format_metric_name(compared.verdict_metric), _COST_COLUMNS)


def _build_chosen_table(compared: Comparison) -> BilingualCells:
    """Return the table of chosen values with their accuracy first, without columns that say nothing."""
    return _select_columns(build_bilingual(lambda: tuning_page.build_chosen_table(compared)), "validation accuracy")


def _select_columns(cells: BilingualCells, deciding: str, left_out: Sequence[str] = ()) -> BilingualCells:
    """Return a table with the deciding column second, and without optional columns that say nothing."""
    columns = [list(column) for column in zip(*cells, strict=True)]
    kept = [
        column for column in columns
        if column[0].en not in left_out and not (column[0].en in _OPTIONAL_COLUMNS and _is_constant(column))
    ]  # fmt: skip
    order = sorted(kept, key=lambda column: (column[0].en != "optimizer", column[0].en != deciding))
    return [list(row) for row in zip(*order, strict=True)]


def _is_constant(column: list[BilingualText]) -> bool:
    """Return whether a column says nothing: all cells are the same, and none is a status to be known."""
    header, first = column[0].en, column[1].en
    is_warning = (header == "status" and first != "completed") or (header == "tuned" and first.startswith(_NOT_TUNED))
    return len(set(column[1:])) == 1 and not is_warning


def _build_cost_table(compared: Comparison) -> Cells:
    """Return what each optimizer's runs cost; an empty list where the record has no costs."""
    rows, target, steps = compared.rows, compared.target, compared.config.total_steps
    columns = [[translate("optimizer"), *(row.optimizer for row in rows)]]
    per_step = [row.gradients_per_step for row in rows]
    medians = [target.compute_median_steps(row.optimizer) if target else None for row in rows]
    if target:
        columns.append(
            [translate("seeds that reached the target"), *(_count_reached(target, row.optimizer) for row in rows)]
        )
        columns.append([translate("steps to target"), *map(_format_number, medians)])
    if any(each not in (None, 1) for each in per_step):
        if target:
            needed = (median and each and median * each for median, each in zip(medians, per_step, strict=True))
            columns.append([translate("gradients to target"), *map(_format_number, needed)])
        columns.append(
            [translate("gradients a step"), *(EMPTY_CELL if each is None else f"{each:.3g}" for each in per_step)]
        )
        columns.append([translate("gradients in all"), *(_format_number(each and each * steps) for each in per_step)])
    return [list(row) for row in zip(*columns, strict=True)] if len(columns) > 1 else []


def _count_reached(target: Target, optimizer: str) -> str:
    count, total = target.count_reached(optimizer), len(target.steps[optimizer])
    return translate("{count} of {total}", count=count, total=total)


def _format_number(value: float | None) -> str:
    return EMPTY_CELL if value is None else f"{value:,.0f}"


def _render_curve_panels(
    compared: Comparison, curves: dict[str, dict[str, Curve]]
) -> list[tuple[str, BilingualText, str]]:
    """Return (key in the page's data, title, SVG) for each panel."""
    panels = figures.render_curve_panels(compared, curves)
    metrics = [metric for metric, by_optimizer in curves.items() if any(by_optimizer.values())]
    titles: list[BilingualText] = build_bilingual(lambda: [format_metric_name(key) for key in metrics])
    keys = list(metrics)
    if compared.target and len(panels) > len(keys):
        accuracy = f"{100 * compared.target.accuracy:.2f}"
        template = "Seeds that reached {accuracy} % validation accuracy"
        titles.append(build_bilingual(lambda: translate(template, accuracy=accuracy)))
        keys.append("target")
    return [(key, title, svg) for key, title, (_, svg) in zip(keys, titles, panels, strict=True)]


def _build_matrix(compared: Comparison) -> list[list[dict[str, Any]]]:
    """Return the pair matrix: cells with a text, a verdict, and the number of the pair in the page's data."""
    labels, numbers = tables.label_cells(compared), {pair: number for number, pair in enumerate(compared.pairs)}
    header, *rows = tables.build_pair_matrix(compared)

    def build_cell(row: str, column: str, text: str) -> dict[str, Any]:
        label = labels.get(row, {}).get(column, "")
        look = next((each for each in _SYMBOLS if label.startswith(each)), "")
        number = numbers.get((row, column), numbers.get((column, row)))
        return {"text": text.split(" ")[0], "look": look, "symbol": _SYMBOLS.get(look, ""), "pair": number}

    return [
        [{"text": cell} for cell in header],
        *(
            [{"text": row[0]}, *(build_cell(row[0], *each) for each in zip(header[1:], row[1:], strict=True))]
            for row in rows
        ),
    ]


def _build_class_table(compared: Comparison) -> Cells:
    """Return mean accuracies by class over each optimizer's completed runs."""
    table = [[translate("optimizer"), *map(translate, CLASS_NAMES)]]
    for row in compared.rows:
        accuracies = [run.tested.class_accuracy for run in compared.get_completed_runs(row.optimizer)]
        if accuracies:
            means = (fmean(value for _, value in each) for each in zip(*accuracies, strict=True))
            table.append([row.optimizer, *(f"{100 * mean:.1f} %" for mean in means)])
    return table


def compute_mean_confusions(compared: Comparison) -> list[tuple[str, list[list[int]]]]:
    """Return (optimizer, rounded mean confusion matrix over its completed runs)."""
    confusions = []
    for row in compared.rows:
        matrices: Iterable[list[list[int]]] = [
            run.tested.confusion for run in compared.get_completed_runs(row.optimizer)
        ]
        if matrices:
            cells = (zip(*lines, strict=True) for lines in zip(*matrices, strict=True))
            confusions.append((row.optimizer, [[round(fmean(each)) for each in line] for line in cells]))
    return confusions
