"""The same optimizers at another revision: what has changed since, paired by seed, in the words of the verdict."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlab.analysis import comparison, environment_diff, paired_tests
from optlab.analysis.comparison import Comparison, Run
from optlab.analysis.paired_tests import MeanCI, PairedComparison
from optlab.analysis.tables import EMPTY_CELL, MINUS, describe_verdict, render_table
from optlab.analysis.verdicts import format_difference, format_mean, format_metric_name
from optlab.config import loader
from optlab.schema.parameters import Config
from optlab.system.errors import RevisionError
from optlab.system.git import Revision

_NON_TRAINING_KEYS = {"verdict", "seeds"}  # what decides no run


@dataclass(frozen=True)
class RevisionChange:
    """One optimizer at a revision and now.

    Attributes:
        runs: (at the revision, now) for each seed that both have.
        n_completed: how many of these completed on both sides.
        then, now: over those; None where there are none.
        pair: now - then; None where there is no verdict, for the reason in `no_verdict_reason`.
    """

    optimizer: str
    runs: list[tuple[Run, Run]]
    n_completed: int
    then: MeanCI | None
    now: MeanCI | None
    pair: PairedComparison | None
    no_verdict_reason: str


def build_report(config: Config, folder: Path, revisions: list[Revision]) -> str:
    """A table for each revision, and what has changed besides; for a terminal.

    Raises:
        RevisionError: a revision has no such record, or one that cannot be compared with the present one.
        ConfigError: its params.yaml cannot be used with this version.
        RecordError: the present record is incomplete.
    """
    now = comparison.collect(config, folder)
    past = [(each.name, comparison.collect(loader.load_at_revision(each, folder), folder, each)) for each in revisions]
    for name, then in past:
        _check_comparable(name, then, now)
    count = sum(not why for _, then in past for why in _find_no_verdict_reasons(then, now).values())
    title = f"{format_metric_name(now.verdict_metric).capitalize()} now less that at the revision, paired by seed"
    title += (
        f"; ± 95 %, for {count} difference{'s at once' if count > 1 else ''}." if count else ": there is no verdict."
    )
    return "\n\n".join([title, *(_format_revision(name, then, now, count) for name, then in past)])


def _check_comparable(name: str, then: Comparison, now: Comparison) -> None:
    if then.verdict_metric != now.verdict_metric:
        raise RevisionError(
            f"{name}: its runs are judged by their {format_metric_name(then.verdict_metric)}, and the present ones by "
            f"their "
            f"{format_metric_name(now.verdict_metric)}: they cannot be compared"
        )
    if then.config.data.dataset != now.config.data.dataset:
        raise RevisionError(f"{name}: its images are those of {then.config.data.dataset}: they cannot be compared")
    if not _list_common_optimizers(then, now):
        raise RevisionError(f"{name}: has none of the present optimizers: it has {', '.join(then.config.optimizers)}")


def _list_common_optimizers(then: Comparison, now: Comparison) -> list[str]:
    return [row.optimizer for row in now.rows if row.optimizer in then.config.optimizers]


def _match_runs(then: Comparison, now: Comparison, optimizer: str) -> list[tuple[Run, Run]]:
    before = {run.files.id: run for run in then.runs}
    own = [run for run in now.runs if run.files.optimizer == optimizer]
    return [(before[run.files.id], run) for run in own if run.files.id in before]


def _find_no_verdict_reasons(then: Comparison, now: Comparison) -> dict[str, str]:
    """Of each optimizer, why it has no verdict; empty where it has one."""
    several = (
        "several studies: each comparison has its own" if {then.replicate_name, now.replicate_name} != {"seeds"} else ""
    )
    return {
        name: several or _explain_no_verdict(_match_runs(then, now, name))
        for name in _list_common_optimizers(then, now)
    }


def _explain_no_verdict(runs: list[tuple[Run, Run]]) -> str:
    if all(before.trained.weights_sha256 == after.trained.weights_sha256 for before, after in runs):
        return "the same weights" if runs else "no seed in common"
    if any("diverged" in (before.status, after.status) for before, after in runs):
        return "diverged"
    return "one seed in common" if len(runs) == 1 else ""


def _compute_changes(then: Comparison, now: Comparison, count: int) -> Iterable[RevisionChange]:
    higher_is_better = now.verdict_metric == "test_accuracy"
    margin = now.config.verdict.margin if higher_is_better else None
    for name, why in _find_no_verdict_reasons(then, now).items():
        runs = _match_runs(then, now, name)
        completed = [(before, after) for before, after in runs if before.status == after.status == "completed"]
        values_then, values_now = (
            [now.get_value(run) for run, _ in completed],
            [now.get_value(run) for _, run in completed],
        )
        then_figure, now_figure = (
            paired_tests.compute_mean_ci(values) if values else None for values in (values_then, values_now)
        )
        pair = (
            None
            if why
            else paired_tests.compare_pair(values_now, values_then, count, margin, higher_is_better, now.resolution)
        )
        yield RevisionChange(name, runs, len(completed), then_figure, now_figure, pair, why)


def _format_revision(name: str, then: Comparison, now: Comparison, count: int) -> str:
    changes = list(_compute_changes(then, now, count))
    header = ["optimizer", "n", name, "now", f"now {MINUS} {name}", "p", "wins", "verdict"]
    table = render_table([header, *(_build_cells(each, name, now.verdict_metric) for each in changes)])
    return "\n".join([table, *_describe_other_changes(name, then, now, changes)])


def _build_cells(change: RevisionChange, name: str, metric: str) -> list[str]:
    figures = [format_mean(each, metric) if each else EMPTY_CELL for each in (change.then, change.now)]
    n = (
        str(change.n_completed)
        if change.n_completed == len(change.runs)
        else f"{change.n_completed} of {len(change.runs)}"
    )
    start, pair = [change.optimizer, n, *figures], change.pair
    if pair is None:
        return [*start, EMPTY_CELL, EMPTY_CELL, EMPTY_CELL, change.no_verdict_reason]
    return [
        *start,
        format_difference(pair, metric),
        f"{pair.p:.2g}",
        f"{pair.wins:g} of {pair.n}",
        describe_verdict(pair, "now", name),
    ]


def _describe_other_changes(
    name: str, then: Comparison, now: Comparison, changes: list[RevisionChange]
) -> Iterable[str]:
    common = [each.optimizer for each in changes]
    for where, side in ((f"only at {name}", then), ("only now", now)):
        alone = [each for each in side.config.optimizers if each not in common]
        if alone:
            yield f"{where}: {', '.join(alone)}"
    before, after = (_flatten_config(side.config, common) for side in (then, now))
    different = [key for key in before | after if before.get(key) != after.get(key)]
    if different:
        pairs = (f"{key} {_format_value(before.get(key))} → {_format_value(after.get(key))}" for key in different)
        yield f"params.yaml since {name}: {'; '.join(pairs)}"
    yield from _describe_environment_changes(name, now, [pair for each in changes for pair in each.runs])


def _flatten_config(config: Config, optimizers: list[str]) -> dict[str, Any]:
    """Key → value of all that decides these optimizers' runs."""
    found: dict[str, Any] = {}

    def put(key: str, content: Any) -> None:
        if isinstance(content, dict):
            for name, each in content.items():
                put(f"{key}.{name}" if key else name, each)
        else:
            found[key] = content

    dumped = config.model_dump(exclude=_NON_TRAINING_KEYS, by_alias=True)
    put("", dumped | {"optimizers": {name: dumped["optimizers"][name] for name in optimizers}})
    return found


def _format_value(value: Any) -> str:
    return EMPTY_CELL if value is None else str(value)


def _describe_environment_changes(name: str, now: Comparison, runs: list[tuple[Run, Run]]) -> Iterable[str]:
    """A sentence for each difference between the conditions of the same run then and now."""
    groups: dict[str, list[str]] = {}
    portable = now.config.training.numerics == "portable"
    for before, after in runs:
        if before.trained.weights_sha256 == after.trained.weights_sha256:
            continue  # there is no difference to be explained
        if before.conditions is None or after.conditions is None:
            groups.setdefault("conditions that are not recorded", []).append(after.files.id)
            continue
        found = environment_diff.diff_relevant_conditions(before.conditions, after.conditions, portable)
        if found:
            parts = (
                f"{environment_diff.format_condition_name(key)} {was} → {is_now}"
                for key, (was, is_now) in found.items()
            )
            groups.setdefault("; ".join(parts), []).append(after.files.id)
    for how, ids in groups.items():
        yield f"other conditions since {name}, so a difference need not be the optimizer's: {how} ({', '.join(ids)})"
