"""A comparison is complete: MLflow is to have its runs whole, and to show it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from optlab.analysis import environment_diff, figures
from optlab.analysis.comparison import Comparison
from optlab.records import REPORTS_FOLDER
from optlab.system import git, locks, repository
from optlab.system.errors import BusyError
from optlab.tracking import comparison_view, event_log, log_uploader, mlflow_store, run_metadata, sync_state
from optlab.tracking.comparison_view import ComparisonView, SummaryRun
from optlab.tracking.event_log import round_metric
from optlab.tracking.uploader_client import UploaderClient
from optlab.training import tuned_values

_UNREACHABLE_MESSAGE = "MLflow was not reached: the reports are complete, and `optlab sync` sends the runs later."


def publish(compared: Comparison, folder: Path, uploader: UploaderClient | None = None) -> str:
    """Bring MLflow up to date and return what to tell the user; trouble with a server is a warning.

    Args:
        uploader: does it, where there is one; otherwise this process does.
    """
    _log_missing_evaluations(compared)
    if repository.is_experiment_copy():  # it is not the comparison that the repository stands at
        # DVC commits what is tracked and what the stages declare: a new run's conditions are neither.
        git.get_output("add", "--", *(str(run.files.environment) for run in compared.runs if run.conditions))
        answer = uploader.request(push=True) if uploader else None
        message = f"In MLflow: filter with  tags.`dvc.exp.name` = '{repository.get_dvc_experiment()}'"
        return message if answer and answer["reached"] else _UNREACHABLE_MESSAGE
    view = build_view(compared, folder)
    comparison_view.ComparisonSyncState(shown=view).write()
    _create_missing_logs(compared, folder, uploader)
    answer = uploader.request(publish=view.model_dump()) if uploader else None
    if answer is not None:
        return str(answer.get("told", _UNREACHABLE_MESSAGE))
    if not log_uploader.push_pending():
        return _UNREACHABLE_MESSAGE
    try:
        return comparison_view.update_view(view)
    except Exception as error:
        print(
            f"warning: MLflow at {mlflow_store.get_redacted_uri()}: {mlflow_store.describe_error(error)}",
            file=sys.stderr,
        )
        return _UNREACHABLE_MESSAGE


def build_view(compared: Comparison, folder: Path) -> ComparisonView:
    """What MLflow is to show of the comparison of the pipeline in that folder."""
    can_be_champion = compared.champion is not None and compared.config.data.train_split == "train"
    return ComparisonView(
        experiment=sync_state.get_experiment_name(folder),
        runs=tuple((run.files.id, run.trained.weights_sha256) for run in compared.runs),
        champion=compared.champion.files.id if compared.champion and can_be_champion else None,
        conditions=environment_diff.describe_differences(compared.differing_conditions)
        if compared.differing_conditions
        else "the same for all runs",
        chosen_by=compared.selection_metric,
        summaries=tuple(_build_summary_runs(compared)),
        trials=tuple(_build_trial_runs(compared)),
        report=str(folder / REPORTS_FOLDER / "report.html"),
        colours={run.files.id: compared.colours[run.files.optimizer] for run in compared.runs},
    )


def _build_trial_runs(compared: Comparison) -> Iterator[SummaryRun]:
    for name, tuning in compared.tunings.items():
        spec = compared.config.get_optimizer(name)
        for each in tuning.trials:
            index = "default" if each.index is None else str(each.index)
            values = {key: value for key, value in each.values.items() if not isinstance(value, dict)}
            merged = {
                key: value for part in each.values.values() if isinstance(part, dict) for key, value in part.items()
            }
            points = [
                (f"validation/{figure}", round_metric(value), look.step)
                for look in each.looks
                for figure, value in (("accuracy", look.accuracy), ("loss", look.loss))
                if value is not None
            ]
            study = str(each.study)
            is_chosen = each == tuning.get_chosen_trial(each.study)
            yield SummaryRun(
                optimizer=name, colour=compared.colours[name], points=tuple(points), source="pipeline/tune.py",
                run=f"{name} {index}" if len(tuning.choice.studies) == 1 else f"{name} {study}/{index}",
                params={"optimizer": name, "class": spec.class_} | {k: str(v) for k, v in (values | merged).items()},
                tags={
                    "optimizer": name, "study": study, "trial": index, "status": each.status, "seed": str(each.seed),
                    "steps": str(each.looks[-1].step if each.looks else 0), "chosen": "yes" if is_chosen else "no",
                },
            )  # fmt: skip


def _build_summary_runs(compared: Comparison) -> Iterator[SummaryRun]:
    by_step = figures.compute_curves(compared)
    for row in compared.rows:
        name, tested = row.optimizer, {0: row.test_accuracy} if row.test_accuracy else {}  # a bar
        found = {figure: own[name] for figure, own in by_step.items()} | {"test_accuracy": tested}
        points = [
            (f"{figure}/{part}", round_metric(value), step)
            for figure, curve in found.items()
            for step, each in curve.items()
            for part, value in (("mean", each.mean), ("lower", each.low), ("upper", each.high))
            if value is not None
        ]
        seeds = ", ".join(str(seed) for seed in compared.config.seeds)
        params = {"optimizer": name, "seeds": seeds, "status": row.status}
        params["class"] = compared.config.get_optimizer(name).class_
        yield SummaryRun(optimizer=name, colour=compared.colours[name], params=params, points=tuple(points))


def _log_missing_evaluations(compared: Comparison) -> None:
    """Evaluate in the journal what was trained once more with the same weights: DVC runs no second evaluation then."""
    for run in compared.runs:
        log = event_log.find_by_weights(run.files.id, run.trained.weights_sha256)
        if log is None or not log.load_summary().is_from_this_tree(run.files.id) or log.is_evaluated:
            continue
        with contextlib.suppress(BusyError), locks.hold_lock(log.load_summary().lock):  # it may be at work once more
            weights = run.files.weights if run.files.weights.exists() else None
            run_metadata.log_evaluation(log, run.files.id, weights, run.trained, run.tested, compared.config.model)


def _create_missing_logs(compared: Comparison, folder: Path, uploader: UploaderClient | None) -> None:
    """Write a journal for each run that DVC has restored, and that MLflow has not got from elsewhere."""
    without_log = [
        run for run in compared.runs if event_log.find_by_weights(run.files.id, run.trained.weights_sha256) is None
    ]
    wanted = [(run.files.id, run.trained.weights_sha256) for run in without_log]
    if not wanted:
        return
    missing = _find_missing_runs(sync_state.get_experiment_name(folder), wanted, uploader)
    for run in without_log:
        if run.files.id in missing:
            with contextlib.suppress(BusyError), locks.hold_lock(sync_state.get_lock_name(folder, run.files.id)):
                weights = run.files.weights if run.files.weights.exists() else None
                tuned = compared.tunings.get(run.files.optimizer)
                extra_tags = (
                    tuned_values.build_trial_tags(compared.config, tuned.choice, run.files.seed) if tuned else {}
                )
                log = run_metadata.create_log_from_record(
                    compared.config, run.files, weights, run.trained, run.conditions, extra_tags=extra_tags
                )
                run_metadata.log_evaluation(log, run.files.id, weights, run.trained, run.tested, compared.config.model)
                log.commit_draft()


def _find_missing_runs(experiment: str, runs: list[tuple[str, str]], uploader: UploaderClient | None) -> list[str]:
    """The ids of the runs that MLflow has not got; none where it cannot be asked."""
    answer = uploader.request(experiment=experiment, missing=runs) if uploader else None
    if answer is not None:
        return list(answer.get("missing", ()))
    try:
        return mlflow_store.find_missing_runs(experiment, runs)
    except Exception:  # the push that follows says so
        return []
