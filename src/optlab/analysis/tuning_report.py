"""The tunings on paper: reports/tuning.md, a figure and all trials."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from optlab.analysis import figures, paired_tests, tuning_figures, tuning_results
from optlab.analysis.comparison import Comparison
from optlab.analysis.tables import EMPTY_CELL, Cells, render_markdown_table
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.analysis.verdicts import format_mean
from optlab.records import REPORTS_FOLDER, write_csv
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import files
from optlab.tuning import search

FIGURE_NAME = "accuracy.png"
_NOT_TUNED_MESSAGE = "No hyperparameter has a range, so nothing was tuned: every value is that of params.yaml."


def write(compared: Comparison, folder: Path) -> None:
    """Write reports/tuning.md and reports/tuning/; without a tuning, they say so."""
    reports = folder / REPORTS_FOLDER
    _write_trials(compared.tunings, reports / "tuning" / "trials.csv")
    place = reports / "tuning" / FIGURE_NAME
    if compared.tunings:
        figures.save(tuning_figures.plot_learning_rates(compared), place)
    else:
        place.unlink(missing_ok=True)
    files.write_atomic(reports / "tuning.md", render_markdown(compared).encode())


def render_markdown(compared: Comparison) -> str:
    """What was searched, how, and what came out."""
    if not compared.tunings:
        return f"{_NOT_TUNED_MESSAGE}\n"
    parts = [describe_protocol(compared.config), render_markdown_table(build_chosen_table(compared))]
    parts += [f"![Validation accuracy of every trial against its learning rate](tuning/{FIGURE_NAME})"]
    parts += [*_generate_remarks(compared)]
    if compared.config.tuning.studies > 1:
        parts += [
            "Each study is a search of its own, confirmed by runs of its own:",
            render_markdown_table(build_study_table(compared)),
        ]
    whole = find_fully_trained(compared)
    if whole:
        parts += [
            "The best validation accuracy to be expected after k trials:",
            render_markdown_table(_build_expected_best_table(whole)),
        ]
    grids = {name: each for name, each in compared.tunings.items() if each.sensitivity}
    for name, each in grids.items():
        parts += [
            f"The learning rate of {name} alone, the rest as chosen:",
            render_markdown_table(_build_sensitivity_table(each)),
        ]
    return "\n\n".join(parts) + "\n"


def find_fully_trained(compared: Comparison) -> dict[str, OptimizerTuning]:
    """The tunings of which it is known what the best of k trials would be."""
    return {name: each for name, each in compared.tunings.items() if each.is_fully_trained and each.in_range_trials}


def describe_protocol(config: Config) -> str:
    """How the values were searched for."""
    own, steps = config.tuning, config.total_steps
    text = (
        f"Each optimizer with a range was tuned alike: {own.trials} trials at the same points of its ranges, and its "
    )
    text += f"default besides{f', in each of {own.studies} studies' if own.studies > 1 else ''}. "
    if own.halving > 1:
        ends = search.compute_rungs(steps, own.halving)
        text += f"After {' and after '.join(f'{end:,}' for end in ends[:-1])} of {steps:,} steps, the best of every "
        text += f"{own.halving} went on. "
    text += (
        "The choice is by validation accuracy; no trial saw the test split, and the runs that confirm it have other "
    )
    return text + "seeds."


def build_chosen_table(compared: Comparison) -> Cells:
    """One row for each optimizer: what was chosen, and how good it was on the validation split."""
    table = [["optimizer", "trials", "diverged", "chosen", "validation accuracy", "default's"]]
    for name in compared.config.optimizers:
        own = compared.tunings.get(name)
        if own is None:
            table.append([name, "0", EMPTY_CELL, "not tuned", EMPTY_CELL, EMPTY_CELL])
            continue
        for number, study in enumerate(own.choice.studies):
            default, drawn = (
                own.get_default_trial(number),
                [each for each in own.sampled_trials if each.study == number],
            )
            bad = sum(each.status in ("diverged", "failed") for each in drawn)
            table.append(
                [
                    name if len(own.choice.studies) == 1 else f"{name}, study {number + 1}",
                    str(len(drawn)),
                    str(bad),
                    _format_values(study.entry, own.spec),
                    _format_percent(study.validation_accuracy),
                    _format_percent(get_final_accuracy(default) if default else None),
                ]
            )
    return table


def _format_values(entry: dict[str, object], spec: OptimizerSpec) -> str:
    """The values in place of the ranges, or of those of its parts."""
    chosen = OptimizerSpec.model_validate(entry)
    if set(spec.ranges) == set(spec.local_ranges):
        fixed = {key for key in spec.hyperparameters if key not in spec.local_ranges}
        found = {key: each for key, each in chosen.hyperparameters.items() if key not in fixed}
        return ", ".join(f"{key} {each}" for key, each in found.items()) or "the class's defaults"
    return json.dumps({key: each for key, each in entry.items() if key != "class"})


def _format_percent(fraction: float | None) -> str:
    return EMPTY_CELL if fraction is None else f"{100 * fraction:.2f} %"


def _generate_remarks(compared: Comparison) -> Iterator[str]:
    config = compared.config
    for name, own in compared.tunings.items():
        beyond = sorted({key for each in own.sampled_trials for key in each.beyond})
        if beyond:
            yield f"{name}: the best of the first three quarters lay at the edge of {', '.join(beyond)}, so the last " \
                  f"quarter was drawn in the decade beyond it."  # fmt: skip
        if own.ranges_at_edge:
            edges = ", ".join(own.ranges_at_edge)
            yield f"{name}: not tuned: what was chosen lies at the edge of {edges}: widen the range."
        if config.tuning.sensitivity and not own.sensitivity:
            yield f"{name}: without a grid over the learning rate, for the default was chosen, or it has no range."
    if config.tuning.halving > 1:
        shares = ", ".join(
            f"{name} {100 * tuning_results.compute_saved_fraction(own, config.total_steps):.0f} %"
            for name, own in compared.tunings.items()
        )
        yield f"Stopping early has saved of the steps: {shares}."
        if any(config.get_schedule(name).name != "constant" for name in compared.tunings):
            yield "A trial that was stopped saw the beginning of the whole run's schedule, not a shorter schedule."
        yield (
            "What the best of k trials would be, and how wide the good learning rates are, is left out: with trials "
            "that were stopped it cannot be known (`halving: 1` trains all to the end)."
        )
    for name, own in compared.tunings.items():
        key = own.learning_rate_key
        if own.is_fully_trained and key and len(own.in_range_trials) > 1:
            rates = [each.values[key] for each in own.in_range_trials]
            decades = tuning_results.compute_near_best_width(
                rates, [tuning_results.get_accuracy_or_chance(each) for each in own.in_range_trials]
            )
            yield f"{name}: learning rates within one point of the best span {decades:.1f} decades."


def _build_expected_best_table(whole: dict[str, OptimizerTuning]) -> Cells:
    columns = {
        name: tuning_results.compute_expected_best(
            [tuning_results.get_accuracy_or_chance(each) for each in own.in_range_trials]
        )
        for name, own in whole.items()
    }
    longest = max(len(each) for each in columns.values())
    rows = [
        [str(k + 1), *(_format_percent(each[k]) if k < len(each) else EMPTY_CELL for each in columns.values())]
        for k in range(longest)
    ]
    return [["k", *columns], *rows]


def _build_sensitivity_table(own: OptimizerTuning) -> Cells:
    rows = [
        [f"{rate:g}", format_mean(paired_tests.compute_mean_ci(each), "accuracy")]
        for rate, each in own.sensitivity_grid.items()
    ]
    return [["learning rate", f"validation accuracy ({len(own.sensitivity) // len(rows)} seeds)"], *rows]


def build_study_table(compared: Comparison) -> Cells:
    """One row for each optimizer: the confirmed figure of each study, their median and their spread."""
    table = [["optimizer", *(f"study {number + 1}" for number in range(compared.config.tuning.studies)), "median",
              "spread"]]  # fmt: skip
    for row in compared.rows:
        if row.all_completed and row.optimizer in compared.tunings:
            own = compared.get_replicate_values(row.optimizer)
            shown = [*own, median(own), max(own) - min(own)]
            table.append(
                [
                    row.optimizer,
                    *(format_mean(paired_tests.compute_mean_ci([each]), compared.verdict_metric) for each in shown),
                ]
            )
    return table


def _write_trials(tunings: dict[str, OptimizerTuning], path: Path) -> None:
    header = ["optimizer", "study", "trial", "seed", "status", "step", "loss", "accuracy", "beyond", "values"]
    rows = [
        [name, each.study, "default" if each.index is None else each.index, each.seed, each.status, *look,
         " ".join(each.beyond), json.dumps(each.values)]
        for name, own in tunings.items()
        for each in own.trials
        for look in [[seen.step, seen.loss, seen.accuracy] for seen in each.looks] or [[None] * 3]
    ]  # fmt: skip
    write_csv(path, [header, *rows])
