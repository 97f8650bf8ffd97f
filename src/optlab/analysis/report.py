"""Files under reports/: tables, curves, figures, the tuning page, and one HTML page that needs no network.

The same record gives the same bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from optlab.analysis import figures, page, tables, tuning_page
from optlab.analysis.comparison import Comparison, Row
from optlab.analysis.figures import Curve
from optlab.analysis.mean_ci import MeanCI
from optlab.analysis.tuning_results import OptimizerTuning
from optlab.records import REPORTS_FOLDER, Champion, Record, write_csv
from optlab.schema.parameters import CLASS_NAMES
from optlab.system import files


class MeanCIRecord(Record):
    """Mean over the completed runs, with the ends of its 95 % interval; these are None for one run."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def from_mean(cls, mean: MeanCI | None) -> "MeanCIRecord | None":
        return cls(mean=mean.mean, low=mean.low, high=mean.high) if mean else None


class SummaryRecord(Record):
    """summary/{optimizer}.json, for `dvc metrics`, which leaves out what is None."""

    completed: int
    diverged: int
    test_accuracy: MeanCIRecord | None
    validation_accuracy: MeanCIRecord | None
    train_loss: MeanCIRecord | None


def write(compared: Comparison, folder: Path) -> None:
    """Write all files under reports/ of the pipeline in `folder`."""
    reports = folder / REPORTS_FOLDER
    curves = figures.compute_curves(compared)
    files.write_atomic(reports / "comparison.md", tables.render_markdown(compared).encode())
    _write_comparison_table(compared, reports / "comparison.csv")
    _write_pairs(compared, reports / "pairs.csv")
    _write_history(compared, reports / "history.csv")
    _write_confusion(compared, reports / "confusion.csv")
    _write_champion(compared, reports / "champion.json")
    _write_summaries(compared, reports / "summary")
    _write_curves(compared, curves, reports / "curves")
    _write_trials(compared.tunings, reports / "tuning" / "trials.csv")
    figures.save(figures.plot_curves(compared, curves), reports / "curves.png")
    figures.save(figures.plot_all_seeds(compared), reports / "seeds.png")
    if compared.tunings:
        figures.save(figures.plot_learning_rates(compared), reports / tuning_page.TUNING_FIGURE)
    else:
        (reports / tuning_page.TUNING_FIGURE).unlink(missing_ok=True)
    files.write_atomic(reports / "tuning.md", tuning_page.render(compared).encode())
    files.write_atomic(reports / "report.html", page.render(compared, curves, reports))


def _write_comparison_table(compared: Comparison, path: Path) -> None:
    target, metrics = compared.target, tables.list_columns(compared)
    header = ["optimizer", "n", "status"]
    header += [f"{key}{part}" for key in metrics for part in ("", "_sd", "_low", "_high")]
    header += ["target", "reached", "steps_to_target", "gradients_a_step"]

    def build_row(row: Row) -> Iterable[object]:
        means: list[MeanCI | None] = [getattr(row, key) for key in metrics]
        name = row.optimizer
        yield from (name, row.statuses.count("completed"), row.status)
        for each in means:
            yield from (each.mean, each.sd, each.low, each.high) if each else [None] * 4
        if target:
            yield from (target.accuracy, target.count_reached(name), target.compute_median_steps(name))
        else:
            yield from [None] * 3
        yield row.gradients_per_step

    write_csv(path, [header, *map(build_row, compared.rows)])


def _write_pairs(compared: Comparison, path: Path) -> None:
    header = ["first", "second", "n", "difference", "low", "high", "p", "wins", "correlation", "is_paired", "verdict"]
    keys = header[2:]
    more = ["probability", "low", "high"]
    rows = [
        [*names, *(getattr(pair, key) for key in keys), pair.get_better(names),
         *(getattr(pair.outperforming, key, None) for key in more)]
        for names, pair in compared.pairs.items()
    ]  # fmt: skip
    write_csv(path, [[*header, "better", *(f"outperforming_{key}" for key in more)], *rows])


def _write_history(compared: Comparison, path: Path) -> None:
    metrics = ["epoch", "train_loss", "running_loss", "validation_loss", "validation_accuracy", "lr"]
    rows = [
        [run.files.optimizer, run.files.seed, *(getattr(epoch, key) for key in metrics)]
        for run in compared.runs
        for epoch in run.trained.history
    ]
    write_csv(path, [["optimizer", "seed", *metrics], *rows])


def _write_confusion(compared: Comparison, path: Path) -> None:
    rows = [
        [run.files.id, CLASS_NAMES[actual], CLASS_NAMES[predicted], count]
        for run in compared.runs
        for actual, counts in enumerate(run.tested.confusion)
        for predicted, count in enumerate(counts)
    ]
    write_csv(path, [["run", "actual", "predicted", "images"], *rows])


def _write_champion(compared: Comparison, path: Path) -> None:
    champion = None if compared.challenger else compared.champion  # it may be in the study's folder
    Champion(
        champion=champion.files.id if champion else None,
        chosen_by=compared.selection_metric,
        validation_accuracy=champion.trained.validation_accuracy if champion else None,
        test_accuracy=champion.tested.test_accuracy if champion else None,
    ).write(path)


def _write_summaries(compared: Comparison, folder: Path) -> None:
    for stale in folder.glob("*.json"):
        stale.unlink()
    for row in compared.rows:
        SummaryRecord(
            completed=row.statuses.count("completed"),
            diverged=row.statuses.count("diverged"),
            test_accuracy=MeanCIRecord.from_mean(row.test_accuracy),
            validation_accuracy=MeanCIRecord.from_mean(row.validation_accuracy),
            train_loss=MeanCIRecord.from_mean(row.train_loss),
        ).write(folder / f"{row.optimizer}.json")


def _write_curves(compared: Comparison, curves: dict[str, dict[str, Curve]], folder: Path) -> None:
    """Write one file per metric, a line per optimizer and step."""
    for stale in folder.glob("*.csv"):
        stale.unlink()
    for metric, by_optimizer in curves.items():
        rows = [
            [optimizer, step, step / compared.config.steps_per_epoch, each.mean, each.low, each.high]
            for optimizer, curve in by_optimizer.items()
            for step, each in curve.items()
        ]
        write_csv(folder / f"{metric}.csv", [["optimizer", "step", "epoch", "mean", "low", "high"], *rows])


def _write_trials(tunings: dict[str, OptimizerTuning], path: Path) -> None:
    header = ["optimizer", "search", "trial", "seed", "status", "step", "loss", "accuracy", "beyond", "values"]
    rows = [
        [name, trial.search, "default" if trial.index is None else trial.index, trial.seed, trial.status, *validation,
         " ".join(trial.beyond), json.dumps(trial.values)]
        for name, tuning in tunings.items()
        for trial in tuning.trials
        for validation in [[each.step, each.loss, each.accuracy] for each in trial.looks] or [[None] * 3]
    ]  # fmt: skip
    write_csv(path, [header, *rows])
