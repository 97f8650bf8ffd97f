"""tuning.md: the search for hyperparameters, the chosen values, and statistics of the trials.

The protocol and the table of chosen values are in report.html, too, so they follow `translation.use_language`.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from statistics import fmean, median, stdev

from optlab.analysis import tuning_results
from optlab.analysis.comparison import Comparison
from optlab.analysis.mean_ci import compute_mean_ci
from optlab.analysis.tables import EMPTY_CELL, Cells, render_markdown_table
from optlab.analysis.translation import join_items, join_phrases, translate, translate_count
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.analysis.verdicts import format_mean
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.search_space import NumericRange
from optlab.tuning import search

TUNING_FIGURE = "tuning/accuracy.png"
_NOT_TUNED_MESSAGE = "No hyperparameter has a range, so nothing was tuned: every value is that of params.yaml."


def render(compared: Comparison) -> str:
    """Return tuning.md: the search, the chosen values, and statistics of the trials."""
    tunings = compared.tunings
    if not tunings:
        return f"{_NOT_TUNED_MESSAGE}\n"
    parts = [
        describe_tuning_protocol(compared),
        render_markdown_table(build_chosen_table(compared)),
        f"![Validation accuracy of every trial against its learning rate]({TUNING_FIGURE})",
        *_list_tuning_remarks(compared),
        "Are the trials enough? The searches of an optimizer should choose similar rates, and on both sides of the "
        f"best rate, at most {tuning_results.NEIGHBOUR_DECADES:g} decades away, another one should be as good within a "
        "point:",
        render_markdown_table(_build_tuned_table(tunings)),
    ]
    for name, tuning in tunings.items():
        for number, grid in tuning.sensitivity_grids.items():
            search_name = f" in the search for seed {number}" if len(tuning.choices) > 1 else ""
            parts.append(f"The learning rate of {name} alone, the rest as chosen{search_name}:")
            parts.append(render_markdown_table(_build_sensitivity_table(grid)))
    return "\n\n".join(parts) + "\n"


def describe_tuning_protocol(compared: Comparison) -> str:
    """Return how every optimizer with a range was tuned."""
    settings, steps = compared.config.tuning, compared.config.total_steps
    is_older = any(tuning.has_older_rule for tuning in compared.tunings.values())
    scope = "One search chose the values for all seeds: the intervals leave out the variation between searches."
    if settings.per_seed and not is_older:
        scope = (
            "Each seed has its own search, and its run is trained with the values found: the intervals include the "
            "variation between searches."
        )
    halving = ""
    if settings.halving > 1:
        template = (
            "Of each half, the best of every {factor} trials went on after the first part of the steps, and "
            "{completed} of {trials} trials of a search were trained to the end (selected after {rungs} of {steps} "
            "steps). "
        )
        if is_older:
            template = "After {rungs} of {steps} steps, the best of every {factor} went on. "
        halving = translate(
            template,
            rungs=translate(" and after ").join(
                f"{rung:,}" for rung in search.compute_rungs(steps, settings.halving)[:-1]
            ),
            steps=f"{steps:,}",
            factor=settings.halving,
            completed=_count_completed(compared),
            trials=settings.trials,
        )
    points = "half of them at the same points of its ranges and half in a window about the best of these"
    if is_older:
        points = "at the same points of its ranges"
    template = (
        "Each optimizer with a range was tuned alike: {trials} trials, {points}, and its default besides. {scope} "
        "{halving}The choice is by validation accuracy; no trial saw the test split, and the runs that confirm it have "
        "other seeds."
    )
    return translate(
        template, trials=settings.trials, points=translate(points), scope=translate(scope), halving=halving
    )


def _count_completed(compared: Comparison) -> str:
    """Return how many sampled trials of a search were trained to the end: a number, or the range over all searches."""
    counts = [
        sum(trial.search == number and trial.status == "completed" for trial in tuning.sampled_trials)
        for tuning in compared.tunings.values()
        for number in tuning.choices
    ]
    low, high = min(counts), max(counts)
    return str(low) if low == high else translate("{low} to {high}", low=low, high=high)


def build_chosen_table(compared: Comparison) -> Cells:
    """Return a row per optimizer: the chosen values and their validation accuracy, over all searches."""
    header = ["optimizer", "searches", "trials", "diverged", "chosen", "validation accuracy", "default's"]
    table = [list(map(translate, header))]
    for name in compared.config.optimizers:
        tuning = compared.tunings.get(name)
        if tuning is None:
            table.append([name, "0", "0", EMPTY_CELL, translate("not tuned"), EMPTY_CELL, EMPTY_CELL])
            continue
        defaults = [tuning.get_default_trial(number) for number in tuning.choices]
        row = [
            name,
            str(len(tuning.choices)),
            str(len(tuning.sampled_trials)),
            str(sum(trial.status in ("diverged", "failed") for trial in tuning.sampled_trials)),
            _format_chosen_values(tuning),
            _format_accuracies([choice.validation_accuracy for choice in tuning.choices.values()]),
            _format_accuracies([get_final_accuracy(default) if default else None for default in defaults]),
        ]
        table.append(row)
    return table


def _format_accuracies(accuracies: list[float | None]) -> str:
    """Return the mean of fractions, with the lowest and the highest of several, and of how many if some are missing."""
    known = [each for each in accuracies if each is not None]
    mean = _format_percent(fmean(known) if known else None)
    parts = []
    if len(known) > 1:
        low, high = (f"{100 * each:.2f}" for each in (min(known), max(known)))
        parts.append(translate("{low} to {high}", low=low, high=high))
    if known and len(known) < len(accuracies):
        parts.append(translate("{count} of {total}", count=len(known), total=len(accuracies)))
    return translate("{value} ({share})", value=mean, share=join_phrases(parts)) if parts else mean


def _format_chosen_values(tuning: OptimizerTuning) -> str:
    """Return the values in place of the ranges: of one search, or the median, lowest and highest of several."""
    if len(tuning.choices) == 1:
        return _format_entry(next(iter(tuning.choices.values())).entry, tuning.spec)
    chosen = [tuning.get_chosen_trial(number) for number in tuning.choices]
    parts = []
    for key in tuning.spec.ranges:
        values = [trial.values[key] for trial in chosen if trial and key in trial.values]
        if values and isinstance(tuning.spec.ranges[key], NumericRange):
            middle, low, high = (f"{each:.3g}" for each in (median(values), min(values), max(values)))
            parts.append(translate("{key} {value} ({low} to {high})", key=key, value=middle, low=low, high=high))
        elif values:
            counts = Counter(json.dumps(each) for each in values).most_common()
            without = len(chosen) - len(values)  # a default's record has numbers only
            counts += [(translate("default"), without)] * bool(without)
            chosen_values = (translate("{value} ({share})", value=value, share=count) for value, count in counts)
            parts.append(f"{key} {join_phrases(chosen_values)}")
    return join_items(parts) or translate("the class's defaults")


def _format_entry(entry: dict[str, object], spec: OptimizerSpec) -> str:
    """Return the values in place of the ranges; the whole entry where a group or a wrapped optimizer has a range."""
    chosen = OptimizerSpec.model_validate(entry)
    if set(spec.ranges) == set(spec.local_ranges):
        fixed = set(spec.hyperparameters) - set(spec.local_ranges)
        values = [f"{key} {each}" for key, each in chosen.hyperparameters.items() if key not in fixed]
        return join_phrases(values) or translate("the class's defaults")
    return json.dumps({key: each for key, each in entry.items() if key != "class"})


def _format_percent(fraction: float | None) -> str:
    return EMPTY_CELL if fraction is None else f"{100 * fraction:.2f} %"


def _build_tuned_table(tunings: dict[str, OptimizerTuning]) -> Cells:
    """Return a row per optimizer: how much the searches' choices and results scatter, and whether neighbours agree."""
    table = [["optimizer", "spread of the chosen rates", "spread of their accuracies", "good rates on both sides"]]
    for name, tuning in tunings.items():
        key = tuning.learning_rate_key
        chosen = [tuning.get_chosen_trial(number) for number in tuning.choices]
        rates = [math.log10(each.values[key]) for each in chosen if key and each and each.values.get(key)]
        results = [100 * choice.validation_accuracy for choice in tuning.choices.values() if choice.validation_accuracy]
        near = {None: EMPTY_CELL, True: "yes", False: "no"}[tuning.has_near_neighbours]
        table.append([
            name,
            f"{stdev(rates):.2f} decades" if len(rates) > 1 else EMPTY_CELL,
            f"{stdev(results):.2f} points" if len(results) > 1 else EMPTY_CELL,
            near,
        ])  # fmt: skip
    return table


def _list_tuning_remarks(compared: Comparison) -> Iterator[str]:
    config, tunings = compared.config, compared.tunings
    for name, tuning in tunings.items():
        beyond = sorted({key for trial in tuning.sampled_trials for key in trial.beyond})
        if beyond:
            yield f"{name}: the best lay near the edge of {', '.join(beyond)}, so some trials were drawn beyond it."
        if tuning.ranges_at_edge:
            edges = ", ".join(tuning.ranges_at_edge)
            yield f"{name}: not tuned: {_format_share(tuning)} a value at the edge of {edges}: widen the range."
        if config.tuning.sensitivity and not tuning.sensitivity:
            yield f"{name}: without a grid over the learning rate, for the default was chosen, or it has no range."
    coarse = ", ".join(name for name, tuning in tunings.items() if tuning.has_near_neighbours is False)
    if coarse:
        yield (
            f"{coarse}: the search may be too coarse: on one side or both, no rate near the best one is as good: add "
            f"trials."
        )
    if config.tuning.halving > 1:
        shares = ", ".join(
            f"{name} {100 * tuning_results.compute_saved_fraction(each, config.total_steps):.0f} %"
            for name, each in tunings.items()
        )
        yield f"Stopping early has saved of the steps: {shares}."
        if any(config.get_schedule(name).name != "constant" for name in tunings):
            yield "A trial that was stopped saw the beginning of the whole run's schedule, not a shorter schedule."


def _format_share(tuning: OptimizerTuning) -> str:
    return "the search chose" if len(tuning.choices) == 1 else "at least half of the searches chose"


def _build_sensitivity_table(grid: dict[float, list[float]]) -> Cells:
    rows = [[f"{rate:g}", format_mean(compute_mean_ci(accuracies), "accuracy")] for rate, accuracies in grid.items()]
    seeds = translate_count(len(next(iter(grid.values()))), "seed")
    return [["learning rate", f"validation accuracy ({seeds}; a diverged one counts as 10 %)"], *rows]
