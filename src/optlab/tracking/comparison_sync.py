"""Publication of a finished comparison: complete event logs of its runs, and the view that MLflow shows."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from optlab.analysis import environment_diff, figures
from optlab.analysis.comparison import Comparison, Run
from optlab.records import REPORTS_FOLDER
from optlab.system import git, locks, repository
from optlab.system.errors import BusyError, print_stderr
from optlab.system.text import format_place
from optlab.tracking import comparison_view, event_log, mlflow_store, run_metadata, uploader
from optlab.tracking.comparison_view import ComparisonView, SummaryRun
from optlab.tracking.event_log import EventLog, round_metric
from optlab.tracking.uploader_client import UploaderClient

_UNREACHABLE_MESSAGE = "MLflow was not reached: the reports are complete, and `optlab sync` sends the runs later."


def publish(compared: Comparison, folder: Path, client: UploaderClient | None = None) -> str:
    """Bring MLflow up to date, and return a message for the user; print errors of the store as warnings.

    Args:
        folder: of the pipeline.
        client: of the daemon that does it; without one, or if it has ended, this process does.
    """
    _log_missing_evaluations(compared)
    if repository.is_experiment_copy():  # the repository is at another comparison
        # DVC commits the tracked files and the stages' outputs: a new run's environment is neither.
        git.get_output("add", "--", *(str(run.files.environment) for run in compared.runs if run.conditions))
        answer = client.request(push=True) if client else None
        message = f"In MLflow: filter with  tags.`dvc.exp.name` = '{repository.get_dvc_experiment()}'"
        return message if answer and answer["reached"] else _UNREACHABLE_MESSAGE
    view = build_view(compared, folder)
    if not _create_missing_logs(compared, folder, client):
        command = f"`optlab show`{format_place(folder)}"
        return f"MLflow was not reached: the reports are complete, and {command} sends the runs later."
    is_saved = comparison_view.ComparisonSyncState(shown=view).write()
    answer = client.request(update_comparison=view.experiment) if client and is_saved else None
    if answer is not None:
        return str(answer.get("message", _UNREACHABLE_MESSAGE))
    if not uploader.push_pending():
        return _UNREACHABLE_MESSAGE
    try:
        return comparison_view.update_view(view)
    except Exception as error:
        _warn(error)
        return _UNREACHABLE_MESSAGE


def build_view(compared: Comparison, folder: Path) -> ComparisonView:
    """Return the view of a comparison; `folder` is the pipeline's."""
    can_be_champion = compared.champion is not None and compared.config.data.train_split == "train"
    return ComparisonView(
        experiment=event_log.get_experiment_name(folder),
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
        for trial in tuning.trials:
            index = "default" if trial.index is None else str(trial.index)
            values = {key: value for key, value in trial.values.items() if not isinstance(value, dict)}
            merged = {
                key: value for part in trial.values.values() if isinstance(part, dict) for key, value in part.items()
            }
            points = [
                (f"validation/{metric}", round_metric(value), validation.step)
                for validation in trial.looks
                for metric, value in (("accuracy", validation.accuracy), ("loss", validation.loss))
                if value is not None
            ]
            number = str(trial.search)
            is_chosen = trial == tuning.get_chosen_trial(trial.search)
            yield SummaryRun(
                optimizer=name, colour=compared.colours[name], points=tuple(points), source="pipeline/tune.py",
                run=f"{name} {index}" if len(tuning.choices) == 1 else f"{name} {number}/{index}",
                params={"optimizer": name, "class": spec.class_} | {k: str(v) for k, v in (values | merged).items()},
                tags={
                    "optimizer": name, "search": number, "trial": index, "status": trial.status,
                    "seed": str(trial.seed), "steps": str(trial.looks[-1].step if trial.looks else 0),
                    "chosen": "yes" if is_chosen else "no",
                },
            )  # fmt: skip


def _build_summary_runs(compared: Comparison) -> Iterator[SummaryRun]:
    curves = figures.compute_curves(compared)
    seeds = ", ".join(str(seed) for seed in compared.config.seeds)
    for row in compared.rows:
        name, tested = row.optimizer, {0: row.test_accuracy} if row.test_accuracy else {}  # a bar
        own_curves = {metric: by_optimizer[name] for metric, by_optimizer in curves.items()}
        points = [
            (f"{metric}/{part}", round_metric(value), step)
            for metric, curve in (own_curves | {"test_accuracy": tested}).items()
            for step, each in curve.items()
            for part, value in (("mean", each.mean), ("lower", each.low), ("upper", each.high))
            if value is not None
        ]
        params = {"optimizer": name, "seeds": seeds, "status": row.status}
        params["class"] = compared.config.get_optimizer(name).class_
        yield SummaryRun(optimizer=name, colour=compared.colours[name], params=params, points=tuple(points))


def _log_missing_evaluations(compared: Comparison) -> None:
    """Log the evaluations of runs that were trained once more with the same weights: DVC does not repeat them."""
    for run in compared.runs:
        log = event_log.find_by_weights(run.files.id, run.trained.weights_sha256)
        if log is None or not log.load_summary().is_from_this_tree(run.files.id) or log.is_evaluated:
            continue
        with contextlib.suppress(BusyError), locks.hold_lock(log.load_summary().lock):  # a process may repeat the run
            _log_evaluation(log, run, compared)


def _create_missing_logs(compared: Comparison, folder: Path, client: UploaderClient | None) -> bool:
    """Create a log for each run that DVC has restored, and that MLflow has not got from elsewhere.

    Returns:
        False if MLflow could not be asked.
    """
    without_log = {
        (run.files.id, run.trained.weights_sha256): run
        for run in compared.runs
        if event_log.find_by_weights(run.files.id, run.trained.weights_sha256) is None
    }
    if not without_log:
        return True
    missing = _find_missing_runs(event_log.get_experiment_name(folder), list(without_log), client)
    if missing is None:
        return False
    for run in without_log.values():
        if run.files.id in missing:
            with contextlib.suppress(BusyError), locks.hold_lock(event_log.get_lock_name(folder, run.files.id)):
                tuned = compared.tunings.get(run.files.optimizer)
                tags = (
                    run_metadata.build_trial_tags(compared.config, tuned.get_choice(run.files.seed), run.files.seed)
                    if tuned
                    else {}
                )
                log = run_metadata.create_log_from_record(
                    compared.config, run.files, _get_weights(run), run.trained, run.conditions, extra_tags=tags
                )
                _log_evaluation(log, run, compared)
                log.commit_draft()
    return True


def _log_evaluation(log: EventLog, run: Run, compared: Comparison) -> None:
    run_metadata.log_evaluation(log, run.files.id, _get_weights(run), run.trained, run.tested, compared.config.model)


def _get_weights(run: Run) -> Path | None:
    return run.files.weights if run.files.weights.exists() else None


def _find_missing_runs(experiment: str, runs: list[tuple[str, str]], client: UploaderClient | None) -> list[str] | None:
    """Return the ids of the runs that MLflow has not got; None if it cannot be asked."""
    answer = client.request(experiment=experiment, find_missing=runs) if client else None
    if answer is not None:
        return list(answer["missing"]) if answer.get("reached") else None  # {} if it is too slow
    try:
        return mlflow_store.find_missing_runs(experiment, runs)
    except Exception as error:
        _warn(error)
        return None


def _warn(error: Exception) -> None:
    print_stderr(f"warning: MLflow at {mlflow_store.get_redacted_uri()}: {mlflow_store.describe_error(error)}")
