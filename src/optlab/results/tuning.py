"""The tunings on paper: reports/tuning.md, a figure and all trials."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import Config
from optlab.record.runs import REPORTS
from optlab.results import figures, statistics, trial_figures, tuned
from optlab.results.comparison import Comparison
from optlab.results.tables import NOTHING, Cells, markdown_table
from optlab.results.tuned import Tuned, accuracy
from optlab.results.verdict import value
from optlab.system import files
from optlab.tuning import search

FIGURE = "accuracy.png"
_NONE = "No hyperparameter has a range, so nothing was tuned: every value is that of params.yaml."


def write(compared: Comparison, folder: Path) -> None:
    """Write reports/tuning.md and reports/tuning/; without a tuning, they say so."""
    reports = folder / REPORTS
    _write_trials(compared.tunings, reports / "tuning" / "trials.csv")
    place = reports / "tuning" / FIGURE
    if compared.tunings:
        figures.save(trial_figures.rates(compared), place)
    else:
        place.unlink(missing_ok=True)
    files.write(reports / "tuning.md", markdown(compared).encode())


def markdown(compared: Comparison) -> str:
    """What was searched, how, and what came out."""
    if not compared.tunings:
        return f"{_NONE}\n"
    parts = [protocol(compared.config), markdown_table(chosen(compared))]
    parts += [f"![Validation accuracy of every trial against its learning rate](tuning/{FIGURE})"]
    parts += [*_remarks(compared)]
    if compared.config.tuning.studies > 1:
        parts += ["Each study is a search of its own, confirmed by runs of its own:", markdown_table(studies(compared))]
    whole = known_whole(compared)
    if whole:
        parts += ["The best validation accuracy to be expected after k trials:", markdown_table(_best_after(whole))]
    grids = {name: each for name, each in compared.tunings.items() if each.sensitivity}
    for name, each in grids.items():
        parts += [f"The learning rate of {name} alone, the rest as chosen:", markdown_table(_grid(each))]
    return "\n\n".join(parts) + "\n"


def known_whole(compared: Comparison) -> dict[str, Tuned]:
    """The tunings of which it is known what the best of k trials would be."""
    return {name: each for name, each in compared.tunings.items() if each.is_whole and each.alike}


def protocol(config: Config) -> str:
    """How the values were searched for."""
    own, steps = config.tuning, config.steps
    said = (
        f"Each optimizer with a range was tuned alike: {own.trials} trials at the same points of its ranges, and its "
    )
    said += f"default besides{f', in each of {own.studies} studies' if own.studies > 1 else ''}. "
    if own.halving > 1:
        ends = search.rungs(steps, own.halving)
        said += f"After {' and after '.join(f'{end:,}' for end in ends[:-1])} of {steps:,} steps, the best of every "
        said += f"{own.halving} went on. "
    said += (
        "The choice is by validation accuracy; no trial saw the test split, and the runs that confirm it have other "
    )
    return said + "seeds."


def chosen(compared: Comparison) -> Cells:
    """One row for each optimizer: what was chosen, and how good it was on the validation split."""
    table = [["optimizer", "trials", "diverged", "chosen", "validation accuracy", "default's"]]
    for name in compared.config.optimizers:
        own = compared.tunings.get(name)
        if own is None:
            table.append([name, "0", NOTHING, "not tuned", NOTHING, NOTHING])
            continue
        for number, study in enumerate(own.choice.studies):
            default, drawn = own.default(number), [each for each in own.drawn if each.study == number]
            bad = sum(each.status in ("diverged", "failed") for each in drawn)
            table.append([
                name if len(own.choice.studies) == 1 else f"{name}, study {number + 1}",
                str(len(drawn)), str(bad), _values(study.entry, own.spec), _percent(study.validation_accuracy),
                _percent(accuracy(default) if default else None),
            ])  # fmt: skip
    return table


def _values(entry: dict[str, object], spec: OptimizerSpec) -> str:
    """The values in place of the ranges, or of those of its parts."""
    settled = OptimizerSpec.model_validate(entry)
    if set(spec.ranges) == set(spec.own_ranges):
        fixed = {key for key in spec.hyperparameters if key not in spec.own_ranges}
        found = {key: each for key, each in settled.hyperparameters.items() if key not in fixed}
        return ", ".join(f"{key} {each}" for key, each in found.items()) or "the class's defaults"
    return json.dumps({key: each for key, each in entry.items() if key != "class"})


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{100 * fraction:.2f} %"


def _remarks(compared: Comparison) -> Iterator[str]:
    config = compared.config
    for name, own in compared.tunings.items():
        beyond = sorted({key for each in own.drawn for key in each.beyond})
        if beyond:
            yield f"{name}: the best of the first three quarters lay at the edge of {', '.join(beyond)}, so the last " \
                  f"quarter was drawn in the decade beyond it."  # fmt: skip
        if own.at_edge:
            yield f"{name}: not tuned: what was chosen lies at the edge of {', '.join(own.at_edge)}: widen the range."
        if config.tuning.sensitivity and not own.sensitivity:
            yield f"{name}: without a grid over the learning rate, for the default was chosen, or it has no range."
    if config.tuning.halving > 1:
        shares = ", ".join(
            f"{name} {100 * tuned.saved(own, config.steps):.0f} %" for name, own in compared.tunings.items()
        )
        yield f"Stopping early has saved of the steps: {shares}."
        if any(config.schedule(name).name != "constant" for name in compared.tunings):
            yield "A trial that was stopped saw the beginning of the whole run's schedule, not a shorter schedule."
        yield (
            "What the best of k trials would be, and how wide the good learning rates are, is left out: with trials "
            "that were stopped it cannot be known (`halving: 1` trains all to the end)."
        )
    for name, own in compared.tunings.items():
        key = own.rate
        if own.is_whole and key and len(own.alike) > 1:
            rates = [each.values[key] for each in own.alike]
            decades = tuned.width(rates, [tuned.counted(each) for each in own.alike])
            yield f"{name}: learning rates within one point of the best span {decades:.1f} decades."


def _best_after(whole: dict[str, Tuned]) -> Cells:
    columns = {name: tuned.best_after([tuned.counted(each) for each in own.alike]) for name, own in whole.items()}
    longest = max(len(each) for each in columns.values())
    rows = [
        [str(k + 1), *(_percent(each[k]) if k < len(each) else NOTHING for each in columns.values())]
        for k in range(longest)
    ]
    return [["k", *columns], *rows]


def _grid(own: Tuned) -> Cells:
    rows = [[f"{rate:g}", value(statistics.figure(each), "accuracy")] for rate, each in own.grid.items()]
    return [["learning rate", f"validation accuracy ({len(own.sensitivity) // len(rows)} seeds)"], *rows]


def studies(compared: Comparison) -> Cells:
    """One row for each optimizer: the confirmed figure of each study, their median and their spread."""
    table = [["optimizer", *(f"study {number + 1}" for number in range(compared.config.tuning.studies)), "median",
              "spread"]]  # fmt: skip
    for row in compared.rows:
        if row.is_whole and row.optimizer in compared.tunings:
            own = compared.values(row.optimizer)
            shown = [*own, median(own), max(own) - min(own)]
            table.append([row.optimizer, *(value(statistics.figure([each]), compared.judged_by) for each in shown)])
    return table


def _write_trials(tunings: dict[str, Tuned], path: Path) -> None:
    header = ["optimizer", "study", "trial", "seed", "status", "step", "loss", "accuracy", "beyond", "values"]
    rows = [
        [name, each.study, "default" if each.index is None else each.index, each.seed, each.status, *look,
         " ".join(each.beyond), json.dumps(each.values)]
        for name, own in tunings.items()
        for each in own.trials
        for look in [[seen.step, seen.loss, seen.accuracy] for seen in each.looks] or [[None] * 3]
    ]  # fmt: skip
    files.write_csv(path, [header, *rows])
