"""Data of report.html: what report.js draws, as values that JSON can hold, with `BilingualText` for texts."""

from collections.abc import Iterator
from typing import Any

from optlab.analysis import figures, tables, verdicts
from optlab.analysis.chinese import CHINESE
from optlab.analysis.comparison import Comparison
from optlab.analysis.figures import Curve
from optlab.analysis.mean_ci import compute_mean_ci
from optlab.analysis.sequential import Pair, PairComparison
from optlab.analysis.translation import BilingualText, build_bilingual, translate
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.records import TrialRecord

_SIGNIFICANT_DIGITS = 5
_TEXTS = (  # of the figures
    "epoch", "step", "gradients computed", "learning rate", "validation accuracy", "mean", "share of seeds", "seed",
    "chosen", "default", "completed", "stopped", "diverged", "failed", "No optimizer is shown.",
    "{count} of {total} values lie outside the axis.",
)  # fmt: skip


def build(compared: Comparison, curves: dict[str, dict[str, Curve]]) -> dict[str, Any]:
    """Return all data of the page.

    Args:
        curves: from `figures.compute_curves`.
    """
    return {
        "title": build_bilingual(lambda: tables.format_title(compared)),
        "metric": _describe_metric(compared.verdict_metric),
        "stepsPerEpoch": compared.config.steps_per_epoch,
        "totalSteps": compared.config.total_steps,
        "optimizers": [_build_optimizer(compared, row.optimizer) for row in compared.rows],
        "curves": list(_build_curves(compared, curves)),
        "target": _build_target(compared),
        "tuning": [_build_tuning(name, each) for name, each in compared.tunings.items() if each.learning_rate_key],
        "pairs": [_build_pair(compared, names, pair) for names, pair in compared.pairs.items()],
        "texts": {template: BilingualText(template, CHINESE[template]) for template in _TEXTS},
    }


def _describe_metric(key: str) -> dict[str, Any]:
    return {
        "key": key,
        "name": build_bilingual(lambda: verdicts.format_metric_name(key)),
        "percent": "accuracy" in key,
    }


def _build_optimizer(compared: Comparison, name: str) -> dict[str, Any]:
    row = next(row for row in compared.rows if row.optimizer == name)
    values = compared.get_values(name)
    mean = compute_mean_ci(values) if values else None
    return {
        "name": name,
        "colour": compared.colours[name],
        "seeds": [[run.files.seed, compared.get_value(run)] for run in compared.get_completed_runs(name)],
        "mean": mean and mean.mean,
        "low": mean and mean.low,
        "high": mean and mean.high,
        "gradientsPerStep": row.gradients_per_step,
        "text": verdicts.format_mean(mean, compared.verdict_metric) if mean else tables.EMPTY_CELL,
    }


def _build_curves(compared: Comparison, curves: dict[str, dict[str, Curve]]) -> Iterator[dict[str, Any]]:
    """Yield one figure per metric that has a mean curve; each line lists values at `steps`, None for a missing one."""
    for metric, by_optimizer in figures.extract_seed_curves(compared).items():
        lines = []
        for name, seeds in by_optimizer.items():
            steps = sorted(set().union(*seeds.values()))
            means = [curves[metric][name].get(step) for step in steps]
            lines.append({
                "optimizer": name,
                "steps": steps,
                **{end: _round([each and getattr(each, end) for each in means]) for end in ("mean", "low", "high")},
                "seeds": [[seed, _round([points.get(step) for step in steps])] for seed, points in seeds.items()],
            })  # fmt: skip
        if any(curves[metric].values()):
            yield _describe_metric(metric) | {"lines": lines}


def _round(values: list[Any]) -> list[float | None]:
    """Return rounded values, without the None at the end."""
    while values and values[-1] is None:
        values = values[:-1]
    return [None if value is None else float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values]


def _build_target(compared: Comparison) -> dict[str, Any] | None:
    """Return the target with the steps of the seeds that reached it, without lines if nobody did so before the end."""
    target = compared.target
    if target is None:
        return None
    steps_by_name = target.steps if figures.has_early_target(compared) else {}
    return {
        "accuracy": target.accuracy,
        "lines": [
            {"optimizer": name, "seeds": len(steps), "steps": sorted(step for step in steps if step is not None)}
            for name, steps in steps_by_name.items()
        ],
    }


def _build_tuning(name: str, tuning: OptimizerTuning) -> dict[str, Any]:
    key = str(tuning.learning_rate_key)
    chosen = [tuning.get_chosen_trial(number) for number in tuning.choices]
    grids = [
        [[rate, sum(each) / len(each), min(each), max(each)] for rate, each in grid.items()]
        for grid in tuning.sensitivity_grids.values()
    ]
    return {
        "optimizer": name,
        "trials": [
            {
                "rate": trial.values.get(key)
                if trial.index is not None
                else tuning.get_default_value(trial.search, key),
                "accuracy": get_final_accuracy(trial),
                "status": trial.status,
                "values": _format_values(trial),
                "isChosen": trial in chosen,
                "isDefault": trial.index is None,
            }
            for trial in tuning.trials
        ],
        "grids": grids,
    }


def _format_values(trial: TrialRecord) -> str:
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in trial.values.items())  # fmt: skip


def _build_pair(compared: Comparison, names: Pair, pair: PairComparison) -> dict[str, Any]:
    """Return a pair's verdict, its facts as (label, value), and the names whose seeds are shown."""

    def build_facts() -> list[list[str]]:
        facts = [
            [translate("difference"), verdicts.format_difference(pair, compared.verdict_metric)],
            [translate("p value"), tables.format_p(pair.p)],
            [translate("verdict"), tables.describe_verdict(pair, *names)],
            [translate("wins"), tables.format_wins(pair)],
            [translate("correlation"), tables.format_correlation(pair)],
            [translate("test"), translate("paired t test" if pair.is_paired else "Welch's t test")],
            [translate("seeds used"), str(pair.n)],
        ]
        if pair.outperforming:
            probability = tables.format_probability(pair.outperforming, *names)
            facts.append([translate("probability of outperforming"), probability])
        return facts

    return {
        "names": list(names),
        "n": pair.n,
        "sentence": build_bilingual(lambda: verdicts.describe_pair(compared, names, pair)),
        "facts": build_bilingual(build_facts),
    }
