"""Files under reports/: tables, curves, figures, the tuning page, and one HTML page that needs no network.

The same record gives the same bytes.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, median

from matplotlib.figure import Figure

from optlab.analysis import environment_diff, figures, paired_tests, presentation, tables, tuning_results
from optlab.analysis.comparison import Comparison, Row
from optlab.analysis.figures import Curve
from optlab.analysis.paired_tests import MeanCI
from optlab.analysis.tables import EMPTY_CELL, Cells, render_markdown_table
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.analysis.verdicts import format_mean, format_metric_name, summarize_verdicts
from optlab.records import REPORTS_FOLDER, Champion, Record, write_csv
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import CLASS_NAMES, Config
from optlab.system import files
from optlab.tuning import search

_TUNING_FIGURE = "tuning/accuracy.png"
_NOT_TUNED_MESSAGE = "No hyperparameter has a range, so nothing was tuned: every value is that of params.yaml."


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
    figures.save(_plot_seeds(compared), reports / "seeds.png")
    if compared.tunings:
        figures.save(figures.plot_learning_rates(compared), reports / _TUNING_FIGURE)
    else:
        (reports / _TUNING_FIGURE).unlink(missing_ok=True)
    files.write_atomic(reports / "tuning.md", render_tuning_page(compared).encode())
    files.write_atomic(reports / "report.html", _render_html(compared, curves))


def _write_comparison_table(compared: Comparison, path: Path) -> None:
    target = compared.target
    header = ["optimizer", "n", "status"]
    header += [f"{key}{part}" for key in tables.COLUMNS for part in ("", "_sd", "_low", "_high")]
    header += ["target", "reached", "steps_to_target", "gradients_a_step"]

    def build_row(row: Row) -> Iterable[object]:
        means: list[MeanCI | None] = [getattr(row, key) for key in tables.COLUMNS]
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
    header = ["first", "second", "n", "difference", "low", "high", "p", "wins", "correlation", "verdict", "needed"]
    more = ["probability", "low", "high"]
    rows = [
        [*names, *(getattr(pair, key) for key in header[2:]), *(getattr(pair.outperforming, key, None) for key in more)]
        for names, pair in compared.pairs.items()
    ]
    write_csv(path, [[*header, *(f"outperforming_{key}" for key in more)], *rows])


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
    header = ["optimizer", "study", "trial", "seed", "status", "step", "loss", "accuracy", "beyond", "values"]
    rows = [
        [name, trial.study, "default" if trial.index is None else trial.index, trial.seed, trial.status, *validation,
         " ".join(trial.beyond), json.dumps(trial.values)]
        for name, tuning in tunings.items()
        for trial in tuning.trials
        for validation in [[each.step, each.loss, each.accuracy] for each in trial.looks] or [[None] * 3]
    ]  # fmt: skip
    write_csv(path, [header, *rows])


def _plot_seeds(compared: Comparison) -> Figure:
    values = {row.optimizer: compared.get_seed_values(row.optimizer) for row in compared.rows}
    means = {name: paired_tests.compute_mean_ci(compared.get_replicate_values(name)) for name in values if values[name]}
    return figures.plot_seeds(values, means, compared.verdict_metric, compared.colours)


def _render_html(compared: Comparison, curves: dict[str, dict[str, Curve]]) -> bytes:
    tunings, fully_trained = compared.tunings, _find_fully_trained(compared)
    return presentation.render_template(
        "report",
        title=tables.format_title(compared),
        protocol_in_brief=tables.summarize_protocol(compared),
        verdict=summarize_verdicts(compared),
        remarks=tables.list_remarks(compared),
        cells=tables.build_optimizer_table(compared),
        judged_by=format_metric_name(compared.verdict_metric),
        colours=[(row.optimizer, compared.colours[row.optimizer]) for row in compared.rows],
        seeds=figures.render_svg(_plot_seeds(compared)),
        panels=figures.render_curve_panels(compared, curves),
        matrix_cells=tables.build_pair_matrix(compared) if compared.pairs else [],
        pair_cells=tables.build_pair_table(compared),
        looks=tables.label_cells(compared),
        protocol=_describe_tuning_protocol(compared.config),
        chosen_cells=_build_chosen_table(compared) if tunings else [],
        rates=figures.render_learning_rate_panels(compared),
        best_after=figures.render_expected_best(fully_trained, compared.colours) if fully_trained else "",
        class_cells=_build_class_table(compared),
        matrices=_compute_mean_confusions(compared),
        definitions=tables.explain_metrics(compared),
        parameter_cells=environment_diff.build_parameter_table(compared.config),
        condition_cells=environment_diff.build_environment_table(run.conditions for run in compared.runs),
    )


def _build_class_table(compared: Comparison) -> Cells:
    """Return mean accuracies by class over each optimizer's completed runs."""
    table = [["optimizer", *CLASS_NAMES]]
    for row in compared.rows:
        accuracies = [run.tested.class_accuracy for run in compared.get_completed_runs(row.optimizer)]
        if accuracies:
            means = (fmean(value for _, value in each) for each in zip(*accuracies, strict=True))
            table.append([row.optimizer, *(f"{mean:.1%}" for mean in means)])
    return table


def _compute_mean_confusions(compared: Comparison) -> list[tuple[str, list[list[int]]]]:
    """Return (optimizer, rounded mean confusion matrix over its completed runs)."""
    confusions = []
    for row in compared.rows:
        matrices = [run.tested.confusion for run in compared.get_completed_runs(row.optimizer)]
        if matrices:
            cells = (zip(*lines, strict=True) for lines in zip(*matrices, strict=True))
            confusions.append((row.optimizer, [[round(fmean(each)) for each in line] for line in cells]))
    return confusions


def render_tuning_page(compared: Comparison) -> str:
    """Return tuning.md: the search, the chosen values, and statistics of the trials."""
    tunings, fully_trained = compared.tunings, _find_fully_trained(compared)
    if not tunings:
        return f"{_NOT_TUNED_MESSAGE}\n"
    parts = [
        _describe_tuning_protocol(compared.config),
        render_markdown_table(_build_chosen_table(compared)),
        f"![Validation accuracy of every trial against its learning rate]({_TUNING_FIGURE})",
        *_list_tuning_remarks(compared),
    ]
    if compared.config.tuning.studies > 1:
        parts.append("Each study is a search of its own, confirmed by runs of its own:")
        parts.append(render_markdown_table(build_study_table(compared)))
    if fully_trained:
        parts.append("The best validation accuracy to be expected after k trials:")
        parts.append(render_markdown_table(_build_expected_best_table(fully_trained)))
    for name, tuning in tunings.items():
        if tuning.sensitivity:
            parts.append(f"The learning rate of {name} alone, the rest as chosen:")
            parts.append(render_markdown_table(_build_sensitivity_table(tuning)))
    return "\n\n".join(parts) + "\n"


def _find_fully_trained(compared: Comparison) -> dict[str, OptimizerTuning]:
    """Return the tunings for which the expected best of k trials is known."""
    return {name: each for name, each in compared.tunings.items() if each.is_fully_trained and each.in_range_trials}


def _describe_tuning_protocol(config: Config) -> str:
    settings, steps = config.tuning, config.total_steps
    studies = f", in each of {settings.studies} studies" if settings.studies > 1 else ""
    halving = ""
    if settings.halving > 1:
        rungs = " and after ".join(f"{rung:,}" for rung in search.compute_rungs(steps, settings.halving)[:-1])
        halving = f"After {rungs} of {steps:,} steps, the best of every {settings.halving} went on. "
    return (
        f"Each optimizer with a range was tuned alike: {settings.trials} trials at the same points of its ranges, and "
        f"its default besides{studies}. {halving}The choice is by validation accuracy; no trial saw the test split, "
        f"and the runs that confirm it have other seeds."
    )


def _build_chosen_table(compared: Comparison) -> Cells:
    """Return a row per optimizer and study: the chosen values and their validation accuracy."""
    table = [["optimizer", "trials", "diverged", "chosen", "validation accuracy", "default's"]]
    for name in compared.config.optimizers:
        tuning = compared.tunings.get(name)
        if tuning is None:
            table.append([name, "0", EMPTY_CELL, "not tuned", EMPTY_CELL, EMPTY_CELL])
            continue
        for number, study in enumerate(tuning.choice.studies):
            default = tuning.get_default_trial(number)
            sampled = [trial for trial in tuning.sampled_trials if trial.study == number]
            row = [
                name if len(tuning.choice.studies) == 1 else f"{name}, study {number + 1}",
                str(len(sampled)),
                str(sum(trial.status in ("diverged", "failed") for trial in sampled)),
                _format_chosen_values(study.entry, tuning.spec),
                _format_percent(study.validation_accuracy),
                _format_percent(get_final_accuracy(default) if default else None),
            ]
            table.append(row)
    return table


def _format_chosen_values(entry: dict[str, object], spec: OptimizerSpec) -> str:
    """Return the values in place of the ranges; the whole entry where a group or a wrapped optimizer has a range."""
    chosen = OptimizerSpec.model_validate(entry)
    if set(spec.ranges) == set(spec.local_ranges):
        fixed = set(spec.hyperparameters) - set(spec.local_ranges)
        values = [f"{key} {each}" for key, each in chosen.hyperparameters.items() if key not in fixed]
        return ", ".join(values) or "the class's defaults"
    return json.dumps({key: each for key, each in entry.items() if key != "class"})


def _format_percent(fraction: float | None) -> str:
    return EMPTY_CELL if fraction is None else f"{100 * fraction:.2f} %"


def _list_tuning_remarks(compared: Comparison) -> Iterator[str]:
    config, tunings = compared.config, compared.tunings
    for name, tuning in tunings.items():
        beyond = sorted({key for trial in tuning.sampled_trials for key in trial.beyond})
        if beyond:
            yield f"{name}: the best of the first three quarters lay at the edge of {', '.join(beyond)}, so the last " \
                  f"quarter was drawn in the decade beyond it."  # fmt: skip
        if tuning.ranges_at_edge:
            edges = ", ".join(tuning.ranges_at_edge)
            yield f"{name}: not tuned: what was chosen lies at the edge of {edges}: widen the range."
        if config.tuning.sensitivity and not tuning.sensitivity:
            yield f"{name}: without a grid over the learning rate, for the default was chosen, or it has no range."
    if config.tuning.halving > 1:
        shares = ", ".join(
            f"{name} {100 * tuning_results.compute_saved_fraction(each, config.total_steps):.0f} %"
            for name, each in tunings.items()
        )
        yield f"Stopping early has saved of the steps: {shares}."
        if any(config.get_schedule(name).name != "constant" for name in tunings):
            yield "A trial that was stopped saw the beginning of the whole run's schedule, not a shorter schedule."
        yield (
            "What the best of k trials would be, and how wide the good learning rates are, is left out: with trials "
            "that were stopped it cannot be known (`halving: 1` trains all to the end)."
        )
    for name, tuning in tunings.items():
        key = tuning.learning_rate_key
        if tuning.is_fully_trained and key and len(tuning.in_range_trials) > 1:
            rates = [trial.values[key] for trial in tuning.in_range_trials]
            decades = tuning_results.compute_near_best_width(rates, tuning.in_range_accuracies)
            yield f"{name}: learning rates within one point of the best span {decades:.1f} decades."


def _build_expected_best_table(tunings: dict[str, OptimizerTuning]) -> Cells:
    columns = {name: tuning_results.compute_expected_best(each.in_range_accuracies) for name, each in tunings.items()}
    rows = zip_longest(*columns.values())
    return [["k", *columns], *([str(k), *map(_format_percent, row)] for k, row in enumerate(rows, start=1))]


def _build_sensitivity_table(tuning: OptimizerTuning) -> Cells:
    rows = [
        [f"{rate:g}", format_mean(paired_tests.compute_mean_ci(accuracies), "accuracy")]
        for rate, accuracies in tuning.sensitivity_grid.items()
    ]
    return [["learning rate", f"validation accuracy ({len(tuning.sensitivity) // len(rows)} seeds)"], *rows]


def build_study_table(compared: Comparison) -> Cells:
    """Return a row per optimizer: each study's value of the verdict metric, their median and their spread."""
    studies = [f"study {number + 1}" for number in range(compared.config.tuning.studies)]
    table = [["optimizer", *studies, "median", "spread"]]
    for row in compared.rows:
        if row.all_completed and row.optimizer in compared.tunings:
            values = compared.get_replicate_values(row.optimizer)
            shown = [*values, median(values), max(values) - min(values)]
            means = (paired_tests.compute_mean_ci([each]) for each in shown)
            table.append([row.optimizer, *(format_mean(each, compared.verdict_metric) for each in means)])
    return table
