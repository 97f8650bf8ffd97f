"""The comparison on paper: tables, curves, confusion matrices, and one HTML page that needs no network."""

from itertools import chain
from pathlib import Path
from statistics import fmean

from matplotlib import figure as drawing

from optlab.analysis import environment_diff, figures, html, paired_tests, tables, tuning_figures, tuning_report
from optlab.analysis.comparison import Comparison, Row
from optlab.analysis.paired_tests import MeanCI
from optlab.analysis.verdicts import format_metric_name, summarize_verdicts
from optlab.records import REPORTS_FOLDER, Champion, Record, write_csv
from optlab.schema.parameters import CLASS_NAMES
from optlab.system import files


class MeanCIRecord(Record):
    """A mean over the runs that completed, with the ends of its 95 % interval; these are None for one run."""

    mean: float
    low: float | None
    high: float | None


class SummaryRecord(Record):
    """summary/{optimizer}.json: what `dvc metrics` shows of an optimizer; what no run has is None, and not shown."""

    completed: int
    diverged: int
    test_accuracy: MeanCIRecord | None
    validation_accuracy: MeanCIRecord | None
    train_loss: MeanCIRecord | None


def write(compared: Comparison, folder: Path) -> None:
    """Write everything under reports/; the same record gives the same bytes."""
    reports = folder / REPORTS_FOLDER
    files.write_atomic(reports / "comparison.md", tables.render_markdown(compared).encode())
    _write_table(compared, reports / "comparison.csv")
    _write_pairs(compared, reports / "pairs.csv")
    _write_history(compared, reports / "history.csv")
    _write_confusion(compared, reports / "confusion.csv")
    champion = None if compared.challenger else compared.champion  # it may be in the study's folder
    Champion(
        champion=champion.files.id if champion else None,
        chosen_by=compared.selection_metric,
        validation_accuracy=champion.trained.validation_accuracy if champion else None,
        test_accuracy=champion.tested.test_accuracy if champion else None,
    ).write(reports / "champion.json")
    for left in (reports / "summary").glob("*.json"):
        left.unlink()  # of an optimizer that is no more
    for row in compared.rows:
        _summarize_row(row).write(reports / "summary" / f"{row.optimizer}.json")
    by_step = figures.compute_curves(compared)
    _write_curves(compared, by_step, reports / "curves")
    figures.save(figures.plot_curves(compared, by_step), reports / "curves.png")
    figures.save(_plot_seeds(compared), reports / "seeds.png")
    tuning_report.write(compared, folder)
    files.write_atomic(reports / "report.html", _render_html(compared, by_step))


def _summarize_row(row: Row) -> SummaryRecord:
    def convert_mean(figure: MeanCI | None) -> MeanCIRecord | None:
        return MeanCIRecord(mean=figure.mean, low=figure.low, high=figure.high) if figure else None

    return SummaryRecord(
        completed=row.statuses.count("completed"),
        diverged=row.statuses.count("diverged"),
        test_accuracy=convert_mean(row.test_accuracy),
        validation_accuracy=convert_mean(row.validation_accuracy),
        train_loss=convert_mean(row.train_loss),
    )


def _write_table(compared: Comparison, path: Path) -> None:
    target = compared.target
    header = ["optimizer", "n", "status"]
    header += [f"{key}{part}" for key in tables.COLUMNS for part in ("", "_sd", "_low", "_high")]
    header += ["target", "reached", "steps_to_target", "gradients_a_step"]

    def build_csv_row(row: Row) -> list[object]:
        found: list[MeanCI | None] = [getattr(row, key) for key in tables.COLUMNS]
        parts = [(each.mean, each.sd, each.low, each.high) if each else (None,) * 4 for each in found]
        name, last = row.optimizer, [None, None, None]
        if target:
            last = [target.accuracy, target.count_reached(name), target.compute_median_steps(name)]  # type: ignore[list-item]
        return [
            name,
            row.statuses.count("completed"),
            row.status,
            *chain.from_iterable(parts),
            *last,
            row.gradients_per_step,
        ]

    write_csv(path, [header, *(build_csv_row(row) for row in compared.rows)])


def _write_pairs(compared: Comparison, path: Path) -> None:
    header = ["first", "second", "n", "difference", "low", "high", "p", "wins", "correlation", "verdict", "needed"]
    more = ["probability", "low", "high"]
    rows = [
        [*names, *(getattr(pair, key) for key in header[2:]), *(getattr(pair.outperforming, key, None) for key in more)]
        for names, pair in compared.pairs.items()
    ]
    write_csv(path, [[*header, *(f"outperforming_{key}" for key in more)], *rows])


def _write_history(compared: Comparison, path: Path) -> None:
    figures = ["epoch", "train_loss", "running_loss", "validation_loss", "validation_accuracy", "lr"]
    rows = [
        [run.files.optimizer, run.files.seed, *(getattr(epoch, key) for key in figures)]
        for run in compared.runs
        for epoch in run.trained.history
    ]
    write_csv(path, [["optimizer", "seed", *figures], *rows])


def _write_curves(compared: Comparison, by_step: dict[str, dict[str, figures.Curve]], folder: Path) -> None:
    """Of each figure a file, with a line for each optimizer and step."""
    for left in folder.glob("*.csv"):
        left.unlink()
    for name, own in by_step.items():
        rows = [
            [optimizer, step, step / compared.config.steps_per_epoch, each.mean, each.low, each.high]
            for optimizer, curve in own.items()
            for step, each in curve.items()
        ]
        write_csv(folder / f"{name}.csv", [["optimizer", "step", "epoch", "mean", "low", "high"], *rows])


def _write_confusion(compared: Comparison, path: Path) -> None:
    rows = [
        [run.files.id, CLASS_NAMES[actual], CLASS_NAMES[predicted], count]
        for run in compared.runs
        for actual, counts in enumerate(run.tested.confusion)
        for predicted, count in enumerate(counts)
    ]
    write_csv(path, [["run", "actual", "predicted", "images"], *rows])


def _render_html(compared: Comparison, by_step: dict[str, dict[str, figures.Curve]]) -> bytes:
    tunings, whole = compared.tunings, tuning_report.find_fully_trained(compared)
    return html.render_template(
        "report",
        title=tables.format_title(compared),
        protocol_in_brief=tables.summarize_protocol(compared),
        verdict=summarize_verdicts(compared),
        remarks=tables.list_remarks(compared),
        cells=tables.build_optimizer_table(compared),
        judged_by=format_metric_name(compared.verdict_metric),
        colours=[(row.optimizer, compared.colours[row.optimizer]) for row in compared.rows],
        seeds=figures.render_svg(_plot_seeds(compared)),
        panels=figures.render_curve_panels(compared, by_step),
        matrix_cells=tables.build_pair_matrix(compared) if compared.pairs else [],
        pair_cells=tables.build_pair_table(compared),
        looks=tables.label_cells(compared),
        protocol=tuning_report.describe_protocol(compared.config),
        chosen_cells=tuning_report.build_chosen_table(compared) if tunings else [],
        rates=tuning_figures.render_learning_rate_panels(compared),
        best_after=tuning_figures.render_expected_best(whole, compared.colours) if whole else "",
        class_cells=_build_class_table(compared),
        matrices=_compute_mean_confusions(compared),
        definitions=tables.explain_metrics(compared),
        parameter_cells=environment_diff.build_parameter_table(compared.config),
        condition_cells=environment_diff.build_environment_table(run.conditions for run in compared.runs),
    )


def _plot_seeds(compared: Comparison) -> drawing.Figure:
    values = {row.optimizer: compared.get_seed_values(row.optimizer) for row in compared.rows}
    means = {
        name: paired_tests.compute_mean_ci(compared.get_replicate_values(name)) for name, own in values.items() if own
    }
    return figures.plot_seeds(values, means, compared.verdict_metric, compared.colours)


def _build_class_table(compared: Comparison) -> list[list[str]]:
    """Of each optimizer, over its runs that completed."""
    rows = []
    for row in compared.rows:
        own = [run.tested.class_accuracy for run in compared.get_completed_runs(row.optimizer)]
        if own:
            means = (fmean(value for _, value in each) for each in zip(*own, strict=True))
            rows.append([row.optimizer, *(f"{mean:.1%}" for mean in means)])
    return [["optimizer", *CLASS_NAMES], *rows]


def _compute_mean_confusions(compared: Comparison) -> list[tuple[str, list[list[int]]]]:
    """Of each optimizer, the mean over its runs that completed."""
    found = []
    for row in compared.rows:
        own = [run.tested.confusion for run in compared.get_completed_runs(row.optimizer)]
        if own:
            cells = (zip(*lines, strict=True) for lines in zip(*own, strict=True))
            found.append((row.optimizer, [[round(fmean(each)) for each in line] for line in cells]))
    return found
