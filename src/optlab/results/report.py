"""The comparison on paper: tables, curves, confusion matrices, and one HTML page that needs no network."""

from itertools import chain
from pathlib import Path
from statistics import fmean

from matplotlib import figure as drawing

from optlab.config.parameters import CLASSES
from optlab.record.contents import Champion, Contents
from optlab.record.runs import REPORTS
from optlab.results import curves, figures, origin, pages, statistics, tables, trial_figures, tuning
from optlab.results.comparison import Comparison, Row
from optlab.results.statistics import Figure
from optlab.results.verdict import verdict, words
from optlab.system import files


class Interval(Contents):
    """A mean over the runs that completed, with the ends of its 95 % interval; these are None for one run."""

    mean: float
    low: float | None
    high: float | None


class Summary(Contents):
    """summary/{optimizer}.json: what `dvc metrics` shows of an optimizer; what no run has is None, and not shown."""

    completed: int
    diverged: int
    test_accuracy: Interval | None
    validation_accuracy: Interval | None
    train_loss: Interval | None


def write(compared: Comparison, folder: Path) -> None:
    """Write everything under reports/; the same record gives the same bytes."""
    reports = folder / REPORTS
    files.write(reports / "comparison.md", tables.markdown(compared).encode())
    _write_table(compared, reports / "comparison.csv")
    _write_pairs(compared, reports / "pairs.csv")
    _write_history(compared, reports / "history.csv")
    _write_confusion(compared, reports / "confusion.csv")
    champion = None if compared.challenger else compared.champion  # it may be in the study's folder
    Champion(
        champion=champion.files.id if champion else None,
        chosen_by=compared.chosen_by,
        validation_accuracy=champion.trained.validation_accuracy if champion else None,
        test_accuracy=champion.tested.test_accuracy if champion else None,
    ).write(reports / "champion.json")
    for left in (reports / "summary").glob("*.json"):
        left.unlink()  # of an optimizer that is no more
    for row in compared.rows:
        _summary(row).write(reports / "summary" / f"{row.optimizer}.json")
    by_step = curves.curves(compared)
    _write_curves(compared, by_step, reports / "curves")
    figures.save(figures.curves(compared, by_step), reports / "curves.png")
    figures.save(_seeds(compared), reports / "seeds.png")
    tuning.write(compared, folder)
    files.write(reports / "report.html", _html(compared, by_step))


def _summary(row: Row) -> Summary:
    def interval(figure: Figure | None) -> Interval | None:
        return Interval(mean=figure.mean, low=figure.low, high=figure.high) if figure else None

    return Summary(
        completed=row.statuses.count("completed"),
        diverged=row.statuses.count("diverged"),
        test_accuracy=interval(row.test_accuracy),
        validation_accuracy=interval(row.validation_accuracy),
        train_loss=interval(row.train_loss),
    )


def _write_table(compared: Comparison, path: Path) -> None:
    target = compared.target
    header = ["optimizer", "n", "status"]
    header += [f"{key}{part}" for key in tables.COLUMNS for part in ("", "_sd", "_low", "_high")]
    header += ["target", "reached", "steps_to_target", "gradients_a_step"]

    def values(row: Row) -> list[object]:
        found: list[Figure | None] = [getattr(row, key) for key in tables.COLUMNS]
        parts = [(each.mean, each.sd, each.low, each.high) if each else (None,) * 4 for each in found]
        name, last = row.optimizer, [None, None, None]
        if target:
            last = [target.accuracy, target.reached(name), target.median(name)]  # type: ignore[list-item]
        return [name, row.statuses.count("completed"), row.status, *chain.from_iterable(parts), *last, row.gradients]

    files.write_csv(path, [header, *(values(row) for row in compared.rows)])


def _write_pairs(compared: Comparison, path: Path) -> None:
    header = ["first", "second", "n", "difference", "low", "high", "p", "wins", "correlation", "verdict", "needed"]
    more = ["probability", "low", "high"]
    rows = [
        [*names, *(getattr(pair, key) for key in header[2:]), *(getattr(pair.outperforming, key, None) for key in more)]
        for names, pair in compared.pairs.items()
    ]
    files.write_csv(path, [[*header, *(f"outperforming_{key}" for key in more)], *rows])


def _write_history(compared: Comparison, path: Path) -> None:
    figures = ["epoch", "train_loss", "running_loss", "validation_loss", "validation_accuracy", "lr"]
    rows = [
        [run.files.optimizer, run.files.seed, *(getattr(epoch, key) for key in figures)]
        for run in compared.runs
        for epoch in run.trained.history
    ]
    files.write_csv(path, [["optimizer", "seed", *figures], *rows])


def _write_curves(compared: Comparison, by_step: dict[str, dict[str, curves.Curve]], folder: Path) -> None:
    """Of each figure a file, with a line for each optimizer and step."""
    for left in folder.glob("*.csv"):
        left.unlink()
    for name, own in by_step.items():
        rows = [
            [optimizer, step, step / compared.config.steps_per_epoch, each.mean, each.low, each.high]
            for optimizer, curve in own.items()
            for step, each in curve.items()
        ]
        files.write_csv(folder / f"{name}.csv", [["optimizer", "step", "epoch", "mean", "low", "high"], *rows])


def _write_confusion(compared: Comparison, path: Path) -> None:
    rows = [
        [run.files.id, CLASSES[actual], CLASSES[predicted], count]
        for run in compared.runs
        for actual, counts in enumerate(run.tested.confusion)
        for predicted, count in enumerate(counts)
    ]
    files.write_csv(path, [["run", "actual", "predicted", "images"], *rows])


def _html(compared: Comparison, by_step: dict[str, dict[str, curves.Curve]]) -> bytes:
    tunings, whole = compared.tunings, tuning.known_whole(compared)
    return pages.render(
        "report",
        title=tables.title(compared),
        protocol_in_brief=tables.in_brief(compared),
        verdict=verdict(compared),
        remarks=tables.remarks(compared),
        cells=tables.optimizers(compared),
        judged_by=words(compared.judged_by),
        colours=[(row.optimizer, compared.colours[row.optimizer]) for row in compared.rows],
        seeds=figures.svg(_seeds(compared)),
        panels=figures.panels(compared, by_step),
        matrix_cells=tables.matrix(compared) if compared.pairs else [],
        pair_cells=tables.pairs(compared),
        looks=tables.looks(compared),
        protocol=tuning.protocol(compared.config),
        chosen_cells=tuning.chosen(compared) if tunings else [],
        rates=trial_figures.rate_panels(compared),
        best_after=trial_figures.best_after(whole, compared.colours) if whole else "",
        class_cells=_class_cells(compared),
        matrices=_matrices(compared),
        definitions=tables.definitions(compared),
        parameter_cells=origin.parameters(compared.config),
        condition_cells=origin.conditions(run.conditions for run in compared.runs),
    )


def _seeds(compared: Comparison) -> drawing.Figure:
    values = {row.optimizer: compared.of_seeds(row.optimizer) for row in compared.rows}
    means = {name: statistics.figure(compared.values(name)) for name, own in values.items() if own}
    return figures.seeds(values, means, compared.judged_by, compared.colours)


def _class_cells(compared: Comparison) -> list[list[str]]:
    """Of each optimizer, over its runs that completed."""
    rows = []
    for row in compared.rows:
        own = [run.tested.class_accuracy for run in compared.completed(row.optimizer)]
        if own:
            means = (fmean(value for _, value in each) for each in zip(*own, strict=True))
            rows.append([row.optimizer, *(f"{mean:.1%}" for mean in means)])
    return [["optimizer", *CLASSES], *rows]


def _matrices(compared: Comparison) -> list[tuple[str, list[list[int]]]]:
    """Of each optimizer, the mean over its runs that completed."""
    found = []
    for row in compared.rows:
        own = [run.tested.confusion for run in compared.completed(row.optimizer)]
        if own:
            cells = (zip(*lines, strict=True) for lines in zip(*own, strict=True))
            found.append((row.optimizer, [[round(fmean(each)) for each in line] for line in cells]))
    return found
