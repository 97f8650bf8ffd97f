"""A comparison is complete: MLflow is to have its runs whole, and to show it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from optlab.record.runs import REPORTS
from optlab.results import curves, origin
from optlab.results.comparison import Comparison
from optlab.system import git, locks, repository
from optlab.system.errors import BusyError
from optlab.tracking import facts, journal, notes, pending, replay, server
from optlab.tracking.link import Link
from optlab.tracking.points import rounded
from optlab.tracking.shown import Shown
from optlab.tracking.summaries import Summary
from optlab.tuning import settling

_AWAY = "MLflow was not reached: the reports are complete, and `optlab sync` sends the runs later."


def publish(compared: Comparison, folder: Path, sender: Link | None = None) -> str:
    """Bring MLflow up to date and return what to tell the user; trouble with a server is a warning.

    Args:
        sender: does it, where there is one; otherwise this process does.
    """
    _complete(compared)
    if repository.is_copy():  # it is not the comparison that the repository stands at
        # DVC commits what is tracked and what the stages declare: a new run's conditions are neither.
        git.ask("add", "--", *(str(run.files.conditions) for run in compared.runs if run.conditions))
        answer = sender.ask(push=True) if sender else None
        told = f"In MLflow: filter with  tags.`dvc.exp.name` = '{repository.experiment()}'"
        return told if answer and answer["reached"] else _AWAY
    present = shown(compared, folder)
    pending.Pending(shown=present).write()
    _restore(compared, folder, sender)
    answer = sender.ask(publish=present.model_dump()) if sender else None
    if answer is not None:
        return str(answer.get("told", _AWAY))
    if not replay.push_pending():
        return _AWAY
    try:
        return pending.show(present)
    except Exception as error:
        print(f"warning: MLflow at {server.shown()}: {server.describe(error)}", file=sys.stderr)
        return _AWAY


def shown(compared: Comparison, folder: Path) -> Shown:
    """What MLflow is to show of the comparison of the pipeline in that folder."""
    real = compared.champion is not None and compared.config.data.train_split == "train"
    return Shown(
        experiment=notes.experiment(folder),
        runs=tuple((run.files.id, run.trained.weights_sha256) for run in compared.runs),
        champion=compared.champion.files.id if compared.champion and real else None,
        conditions=origin.sentence(compared.mixture) if compared.mixture else "the same for all runs",
        chosen_by=compared.chosen_by,
        summaries=tuple(_summaries(compared)),
        trials=tuple(_trials(compared)),
        report=str(folder / REPORTS / "report.html"),
        colours={run.files.id: compared.colours[run.files.optimizer] for run in compared.runs},
    )


def _trials(compared: Comparison) -> Iterator[Summary]:
    for name, own in compared.tunings.items():
        spec = compared.config.optimizer(name)
        for each in own.trials:
            index = "default" if each.index is None else str(each.index)
            values = {key: value for key, value in each.values.items() if not isinstance(value, dict)}
            merged = {
                key: value for part in each.values.values() if isinstance(part, dict) for key, value in part.items()
            }
            points = [
                (f"validation/{figure}", rounded(value), look.step)
                for look in each.looks
                for figure, value in (("accuracy", look.accuracy), ("loss", look.loss))
                if value is not None
            ]
            study = str(each.study)
            is_chosen = each == own.chosen(each.study)
            yield Summary(
                optimizer=name, colour=compared.colours[name], points=tuple(points), source="pipeline/tune.py",
                run=f"{name} {index}" if len(own.choice.studies) == 1 else f"{name} {study}/{index}",
                params={"optimizer": name, "class": spec.class_} | {k: str(v) for k, v in (values | merged).items()},
                tags={
                    "optimizer": name, "study": study, "trial": index, "status": each.status, "seed": str(each.seed),
                    "steps": str(each.looks[-1].step if each.looks else 0), "chosen": "yes" if is_chosen else "no",
                },
            )  # fmt: skip


def _summaries(compared: Comparison) -> Iterator[Summary]:
    by_step = curves.curves(compared)
    for row in compared.rows:
        name, tested = row.optimizer, {0: row.test_accuracy} if row.test_accuracy else {}  # a bar
        found = {figure: own[name] for figure, own in by_step.items()} | {"test_accuracy": tested}
        points = [
            (f"{figure}/{part}", rounded(value), step)
            for figure, curve in found.items()
            for step, each in curve.items()
            for part, value in (("mean", each.mean), ("lower", each.low), ("upper", each.high))
            if value is not None
        ]
        seeds = ", ".join(str(seed) for seed in compared.config.seeds)
        params = {"optimizer": name, "seeds": seeds, "status": row.status}
        params["class"] = compared.config.optimizer(name).class_
        yield Summary(optimizer=name, colour=compared.colours[name], params=params, points=tuple(points))


def _complete(compared: Comparison) -> None:
    """Evaluate in the journal what was trained once more with the same weights: DVC runs no second evaluation then."""
    for run in compared.runs:
        log = journal.find(run.files.id, run.trained.weights_sha256)
        if log is None or not log.summary().is_ours(run.files.id) or log.evaluated:
            continue
        with contextlib.suppress(BusyError), locks.holding(log.summary().lock):  # it may be at work once more
            weights = run.files.weights if run.files.weights.exists() else None
            facts.evaluation(log, run.files.id, weights, run.trained, run.tested, compared.config.model)


def _restore(compared: Comparison, folder: Path, sender: Link | None) -> None:
    """Write a journal for each run that DVC has restored, and that MLflow has not got from elsewhere."""
    own = [run for run in compared.runs if journal.find(run.files.id, run.trained.weights_sha256) is None]
    wanted = [(run.files.id, run.trained.weights_sha256) for run in own]
    if not wanted:
        return
    missing = _missing(notes.experiment(folder), wanted, sender)
    for run in own:
        if run.files.id in missing:
            with contextlib.suppress(BusyError), locks.holding(notes.lock_name(folder, run.files.id)):
                weights = run.files.weights if run.files.weights.exists() else None
                tuned = compared.tunings.get(run.files.optimizer)
                more = settling.tags(compared.config, tuned.choice, run.files.seed) if tuned else {}
                log = facts.restored(compared.config, run.files, weights, run.trained, run.conditions, more=more)
                facts.evaluation(log, run.files.id, weights, run.trained, run.tested, compared.config.model)
                log.publish()


def _missing(experiment: str, wanted: list[tuple[str, str]], sender: Link | None) -> list[str]:
    """The ids of the runs that MLflow has not got; none where it cannot be asked."""
    answer = sender.ask(experiment=experiment, missing=wanted) if sender else None
    if answer is not None:
        return list(answer.get("missing", ()))
    try:
        return server.missing_runs(experiment, wanted)
    except Exception:  # the push that follows says so
        return []
