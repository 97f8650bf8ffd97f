"""The same optimizers at another revision: what has changed since, paired by seed, in the words of the verdict."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlab.config import reading
from optlab.config.parameters import Config
from optlab.results import comparison, origin, statistics
from optlab.results.comparison import Comparison, Run
from optlab.results.statistics import Figure, Pair
from optlab.results.tables import MINUS, NOTHING, drawn, said
from optlab.results.verdict import gap, value, words
from optlab.system.errors import RevisionError
from optlab.system.revision import Revision

_UNCHANGED = {"verdict", "seeds"}  # what decides no run


@dataclass(frozen=True)
class Change:
    """One optimizer at a revision and now.

    Attributes:
        runs: (at the revision, now) for each seed that both have.
        whole: how many of these completed on both sides.
        then, now: over those; None where there are none.
        pair: now - then; None where there is no verdict, for the reason in `why`.
    """

    optimizer: str
    runs: list[tuple[Run, Run]]
    whole: int
    then: Figure | None
    now: Figure | None
    pair: Pair | None
    why: str


def report(config: Config, folder: Path, revisions: list[Revision]) -> str:
    """A table for each revision, and what has changed besides; for a terminal.

    Raises:
        RevisionError: a revision has no such record, or one that cannot be compared with the present one.
        ConfigError: its params.yaml cannot be used with this version.
        RecordError: the present record is incomplete.
    """
    now = comparison.collect(config, folder)
    past = [(each.name, comparison.collect(reading.at(each, folder), folder, each)) for each in revisions]
    for name, then in past:
        _check_comparable(name, then, now)
    count = sum(not why for _, then in past for why in _reasons(then, now).values())
    title = f"{words(now.judged_by).capitalize()} now less that at the revision, paired by seed"
    title += (
        f"; ± 95 %, for {count} difference{'s at once' if count > 1 else ''}." if count else ": there is no verdict."
    )
    return "\n\n".join([title, *(_of_revision(name, then, now, count) for name, then in past)])


def _check_comparable(name: str, then: Comparison, now: Comparison) -> None:
    if then.judged_by != now.judged_by:
        raise RevisionError(
            f"{name}: its runs are judged by their {words(then.judged_by)}, and the present ones by their "
            f"{words(now.judged_by)}: they cannot be compared"
        )
    if then.config.data.dataset != now.config.data.dataset:
        raise RevisionError(f"{name}: its images are those of {then.config.data.dataset}: they cannot be compared")
    if not _common(then, now):
        raise RevisionError(f"{name}: has none of the present optimizers: it has {', '.join(then.config.optimizers)}")


def _common(then: Comparison, now: Comparison) -> list[str]:
    return [row.optimizer for row in now.rows if row.optimizer in then.config.optimizers]


def _runs(then: Comparison, now: Comparison, optimizer: str) -> list[tuple[Run, Run]]:
    before = {run.files.id: run for run in then.runs}
    own = [run for run in now.runs if run.files.optimizer == optimizer]
    return [(before[run.files.id], run) for run in own if run.files.id in before]


def _reasons(then: Comparison, now: Comparison) -> dict[str, str]:
    """Of each optimizer, why it has no verdict; empty where it has one."""
    several = "several studies: each comparison has its own" if {then.unit, now.unit} != {"seeds"} else ""
    return {name: several or _why(_runs(then, now, name)) for name in _common(then, now)}


def _why(runs: list[tuple[Run, Run]]) -> str:
    if all(before.trained.weights_sha256 == after.trained.weights_sha256 for before, after in runs):
        return "the same weights" if runs else "no seed in common"
    if any("diverged" in (before.status, after.status) for before, after in runs):
        return "diverged"
    return "one seed in common" if len(runs) == 1 else ""


def _changes(then: Comparison, now: Comparison, count: int) -> Iterable[Change]:
    higher = now.judged_by == "test_accuracy"
    margin = now.config.verdict.margin if higher else None
    for name, why in _reasons(then, now).items():
        runs = _runs(then, now, name)
        whole = [(before, after) for before, after in runs if before.status == after.status == "completed"]
        was, is_now = [now.value(run) for run, _ in whole], [now.value(run) for _, run in whole]
        then_figure, now_figure = (statistics.figure(values) if values else None for values in (was, is_now))
        pair = None if why else statistics.pair(is_now, was, count, margin, higher, now.resolution)
        yield Change(name, runs, len(whole), then_figure, now_figure, pair, why)


def _of_revision(name: str, then: Comparison, now: Comparison, count: int) -> str:
    changes = list(_changes(then, now, count))
    header = ["optimizer", "n", name, "now", f"now {MINUS} {name}", "p", "wins", "verdict"]
    table = drawn([header, *(_cells(each, name, now.judged_by) for each in changes)])
    return "\n".join([table, *_remarks(name, then, now, changes)])


def _cells(change: Change, name: str, by: str) -> list[str]:
    figures = [value(each, by) if each else NOTHING for each in (change.then, change.now)]
    n = str(change.whole) if change.whole == len(change.runs) else f"{change.whole} of {len(change.runs)}"
    start, pair = [change.optimizer, n, *figures], change.pair
    if pair is None:
        return [*start, NOTHING, NOTHING, NOTHING, change.why]
    return [*start, gap(pair, by), f"{pair.p:.2g}", f"{pair.wins:g} of {pair.n}", said(pair, "now", name)]


def _remarks(name: str, then: Comparison, now: Comparison, changes: list[Change]) -> Iterable[str]:
    common = [each.optimizer for each in changes]
    for where, side in ((f"only at {name}", then), ("only now", now)):
        alone = [each for each in side.config.optimizers if each not in common]
        if alone:
            yield f"{where}: {', '.join(alone)}"
    before, after = (_flat(side.config, common) for side in (then, now))
    different = [key for key in before | after if before.get(key) != after.get(key)]
    if different:
        pairs = (f"{key} {_shown(before.get(key))} → {_shown(after.get(key))}" for key in different)
        yield f"params.yaml since {name}: {'; '.join(pairs)}"
    yield from _conditions(name, now, [pair for each in changes for pair in each.runs])


def _flat(config: Config, optimizers: list[str]) -> dict[str, Any]:
    """Key → value of all that decides these optimizers' runs."""
    found: dict[str, Any] = {}

    def put(key: str, content: Any) -> None:
        if isinstance(content, dict):
            for name, each in content.items():
                put(f"{key}.{name}" if key else name, each)
        else:
            found[key] = content

    dumped = config.model_dump(exclude=_UNCHANGED, by_alias=True)
    put("", dumped | {"optimizers": {name: dumped["optimizers"][name] for name in optimizers}})
    return found


def _shown(value: Any) -> str:
    return NOTHING if value is None else str(value)


def _conditions(name: str, now: Comparison, runs: list[tuple[Run, Run]]) -> Iterable[str]:
    """A sentence for each difference between the conditions of the same run then and now."""
    groups: dict[str, list[str]] = {}
    portable = now.config.training.numerics == "portable"
    for before, after in runs:
        if before.trained.weights_sha256 == after.trained.weights_sha256:
            continue  # there is no difference to be explained
        if before.conditions is None or after.conditions is None:
            groups.setdefault("conditions that are not recorded", []).append(after.files.id)
            continue
        found = origin.changed(before.conditions, after.conditions, portable)
        if found:
            parts = (f"{origin.title(key)} {was} → {is_now}" for key, (was, is_now) in found.items())
            groups.setdefault("; ".join(parts), []).append(after.files.id)
    for how, ids in groups.items():
        yield f"other conditions since {name}, so a difference need not be the optimizer's: {how} ({', '.join(ids)})"
