"""Comparison of the present record with that of git revisions: each optimizer paired with itself by seed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optlab.analysis import comparison, environment_diff, sequential
from optlab.analysis.comparison import Comparison, Run
from optlab.analysis.mean_ci import compute_mean_ci
from optlab.analysis.sequential import PairComparison
from optlab.analysis.tables import EMPTY_CELL, MINUS, describe_verdict, format_p, format_wins, render_table
from optlab.analysis.verdicts import format_difference, format_mean, format_metric_name
from optlab.config import loader
from optlab.schema.parameters import Config, format_count
from optlab.system.errors import RevisionError
from optlab.system.git import Revision

_NON_TRAINING_KEYS = {"verdict", "seeds"}  # of params.yaml, that decide no run


def build_report(config: Config, folder: Path, revisions: list[Revision]) -> str:
    """Return a table per revision, with the changes of parameters and environment, for a terminal.

    Raises:
        RevisionError: a revision has no complete record, or one that cannot be compared with the present one.
        ConfigError: this version cannot use the revision's params.yaml.
        RecordError: the present record is incomplete.
    """
    now = comparison.collect(config, folder)
    past = [(each.name, comparison.collect(loader.load_at_revision(each, folder), folder, each)) for each in revisions]
    for name, then in past:
        _check_comparable(name, then, now)
    differences = _compare_all(past, now)
    looks = f" and {format_count(len(now.plan.looks), 'look')}" if len(now.plan.looks) > 1 else ""
    level = f"; intervals hold for {format_count(len(differences), 'difference')}{looks} at once, with 95 %"
    metric = format_metric_name(now.verdict_metric).capitalize()
    held = level if differences else ": there is no verdict"
    title = f"{metric} now less that at the revision, over the seeds of both{held}."
    return "\n\n".join([title, *(_format_revision(name, then, now, differences) for name, then in past)])


def _compare_all(past: list[tuple[str, Comparison]], now: Comparison) -> dict[tuple[str, str], PairComparison]:
    """Return (revision, optimizer) → value now - value then, of those that have a verdict, all corrected together."""
    values, seeds, pairs = dict[str, list[float]](), dict[str, list[int]](), dict[tuple[str, str], tuple[str, str]]()
    for revision, then in past:
        for optimizer, reason in _find_no_verdict_reasons(then, now).items():
            if not reason:
                runs = _match_runs(then, now, optimizer)
                key = pairs[revision, optimizer] = (f"{optimizer} now, for {revision}", f"{optimizer} at {revision}")
                for name, index in zip(key, (1, 0), strict=True):
                    values[name] = [now.get_value(run[index]) for run in runs]
                    seeds[name] = [run[index].files.seed for run in runs]
    plan = dataclasses.replace(now.plan, n_pairs=max(1, len(pairs)))
    compared = sequential.compare_pairs(values, list(pairs.values()), plan, seeds)
    return {each: compared[pair] for each, pair in pairs.items()}


def _check_comparable(name: str, then: Comparison, now: Comparison) -> None:
    if then.verdict_metric != now.verdict_metric:
        raise RevisionError(
            f"{name}: its runs are judged by their {format_metric_name(then.verdict_metric)}, and the present ones by "
            f"their {format_metric_name(now.verdict_metric)}: they cannot be compared"
        )
    if then.config.data.dataset != now.config.data.dataset:
        raise RevisionError(f"{name}: its images are those of {then.config.data.dataset}: they cannot be compared")
    if not _list_common_optimizers(then, now):
        raise RevisionError(f"{name}: has none of the present optimizers: it has {', '.join(then.config.optimizers)}")


def _list_common_optimizers(then: Comparison, now: Comparison) -> list[str]:
    return [row.optimizer for row in now.rows if row.optimizer in then.config.optimizers]


def _match_runs(then: Comparison, now: Comparison, optimizer: str) -> list[tuple[Run, Run]]:
    before = {run.files.id: run for run in then.runs}
    runs = [run for run in now.runs if run.files.optimizer == optimizer and run.files.id in before]
    return [(before[run.files.id], run) for run in runs]


def _find_no_verdict_reasons(then: Comparison, now: Comparison) -> dict[str, str]:
    """Return optimizer → reason why it has no verdict, empty where it has one."""
    names = _list_common_optimizers(then, now)
    return {name: _explain_no_verdict(_match_runs(then, now, name), now.plan.looks[0]) for name in names}


def _explain_no_verdict(runs: list[tuple[Run, Run]], first_look: int) -> str:
    if all(before.trained.weights_sha256 == after.trained.weights_sha256 for before, after in runs):
        return "the same weights" if runs else "no seed in common"
    if any("diverged" in (before.status, after.status) for before, after in runs):
        return "diverged"
    too_few = f"{format_count(len(runs), 'seed')} in common, the first look is at {first_look}"
    return too_few if len(runs) < first_look else ""


def _format_revision(
    name: str, then: Comparison, now: Comparison, differences: dict[tuple[str, str], PairComparison]
) -> str:
    table = [["optimizer", "n", name, "now", f"now {MINUS} {name}", "p", "wins", "verdict"]]
    for optimizer, reason in _find_no_verdict_reasons(then, now).items():
        table.append(_build_row(name, then, now, optimizer, differences.get((name, optimizer)) or reason))
    return "\n".join([render_table(table), *_describe_other_changes(name, then, now)])


def _build_row(
    name: str, then: Comparison, now: Comparison, optimizer: str, pair_or_reason: PairComparison | str
) -> list[str]:
    metric, runs = now.verdict_metric, _match_runs(then, now, optimizer)
    completed = [pair for pair in runs if pair[0].status == pair[1].status == "completed"]
    if isinstance(pair_or_reason, PairComparison):
        completed = completed[: pair_or_reason.n]  # the seeds of the last look, as the difference has them
    values_then = [now.get_value(run) for run, _ in completed]
    values_now = [now.get_value(run) for _, run in completed]
    means = [format_mean(compute_mean_ci(each), metric) if each else EMPTY_CELL for each in (values_then, values_now)]
    n = f"{len(completed)}" if len(completed) == len(runs) else f"{len(completed)} of {len(runs)}"
    if isinstance(pair_or_reason, str):
        return [optimizer, n, *means, EMPTY_CELL, EMPTY_CELL, EMPTY_CELL, pair_or_reason]
    pair = pair_or_reason
    verdict = describe_verdict(pair, "now", name)
    return [optimizer, n, *means, format_difference(pair, metric), format_p(pair.p), format_wins(pair), verdict]


def _describe_other_changes(name: str, then: Comparison, now: Comparison) -> Iterator[str]:
    common = _list_common_optimizers(then, now)
    for where, side in ((f"only at {name}", then), ("only now", now)):
        alone = [each for each in side.config.optimizers if each not in common]
        if alone:
            yield f"{where}: {', '.join(alone)}"
    before, after = (_flatten_config(side.config, common) for side in (then, now))
    pairs = [(key, before.get(key), after.get(key)) for key in before | after]
    changed = [f"{key} {_format_value(old)} → {_format_value(new)}" for key, old, new in pairs if old != new]
    if changed:
        yield f"params.yaml since {name}: {'; '.join(changed)}"
    yield from _describe_environment_changes(name, then, now)


def _flatten_config(config: Config, optimizers: list[str]) -> dict[str, Any]:
    """Return dotted key → value of all parameters that decide these optimizers' runs."""
    flat: dict[str, Any] = {}

    def put(key: str, content: Any) -> None:
        if isinstance(content, dict):
            for name, each in content.items():
                put(f"{key}.{name}" if key else name, each)
        else:
            flat[key] = content

    dumped = config.model_dump(exclude=_NON_TRAINING_KEYS, by_alias=True)
    put("", dumped | {"optimizers": {name: dumped["optimizers"][name] for name in optimizers}})
    return flat


def _format_value(value: Any) -> str:
    return EMPTY_CELL if value is None else str(value)


def _describe_environment_changes(name: str, then: Comparison, now: Comparison) -> Iterator[str]:
    """Yield a sentence for each difference between the conditions of the same run then and now."""
    groups: dict[str, list[str]] = {}
    portable = now.config.training.numerics == "portable"
    pairs = (pair for optimizer in _list_common_optimizers(then, now) for pair in _match_runs(then, now, optimizer))
    for before, after in pairs:
        if before.trained.weights_sha256 == after.trained.weights_sha256:
            continue
        if before.conditions is None or after.conditions is None:
            groups.setdefault("conditions that are not recorded", []).append(after.files.id)
            continue
        changes = environment_diff.diff_relevant_conditions(before.conditions, after.conditions, portable)
        if changes:
            parts = (
                f"{environment_diff.format_condition_name(key)} {old} → {new}" for key, (old, new) in changes.items()
            )
            groups.setdefault("; ".join(parts), []).append(after.files.id)
    remark = f"other conditions since {name}, so a difference need not be the optimizer's"
    for difference, ids in groups.items():
        yield f"{remark}: {difference} ({', '.join(ids)})"
