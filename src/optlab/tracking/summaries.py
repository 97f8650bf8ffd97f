"""For each optimizer one run in MLflow with the means over its seeds, by step; and one for each trial of its tuning.

These runs are in experiments of their own, so that whatever counts, groups or filters trainings does not meet them.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from optlab.tracking import descriptions, refusals, server, view
from optlab.tracking.journal import now_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "summary"  # unfinished, current, or earlier; no training has it
_DIGEST = "summary.digest"
_UNFINISHED = "unfinished"
_LONGEST_MS = 3_600_000  # that one is being made


class Summary(BaseModel):
    """One optimizer's curves over its seeds, or one of its trials.

    Attributes:
        optimizer: its name.
        colour: of its lines.
        params: what to show in the table.
        points: (metric, value, step) of each.
        run: what the run in MLflow is called; the optimizer's name where it is empty.
        tags: to filter and group by.
        source: the program that it is from.
    """

    model_config = ConfigDict(frozen=True)

    optimizer: str
    colour: str
    params: dict[str, str]
    points: tuple[tuple[str, float, int], ...]
    run: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    source: str = "pipeline/compare.py"

    @property
    def digest(self) -> str:
        """A SHA-256 of all of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def experiment(trainings: str) -> str:
    """The name of the experiment that holds the summaries of that one."""
    return f"{trainings}.summary"  # a folder's experiment is named with a hyphen


def show(client: "MlflowClient", trainings: str, summaries: tuple[Summary, ...], validated: bool,
         report: str = "reports/report.html") -> str:  # fmt: skip
    """Bring the experiment to these summaries, each there once, and return its id.

    Metrics of a run can only be added to: a summary that has changed is deleted, and made anew.

    Args:
        trainings: the name of the experiment with their trainings.
        validated: whether there is a validation split.
        report: the path of the page that has the bands.

    Raises:
        Exception: whatever MLflow raises.
    """
    place = server.experiment(client, experiment(trainings))
    _bring(client, place, summaries)
    client.set_experiment_tag(place, view.TAG, view.saved(view.summaries(TAG, validated)))
    text = descriptions.SUMMARIES.format(trainings=trainings, report=report)
    client.set_experiment_tag(place, descriptions.TAG, text)
    return place


def show_trials(client: "MlflowClient", trainings: str, trials: tuple[Summary, ...]) -> None:
    """Bring the experiment of a comparison's tunings to these trials, as `show` does; without any, it stays as it is.

    Raises:
        Exception: whatever MLflow raises.
    """
    if trials:
        place = server.experiment(client, f"{trainings}-tuning")
        _bring(client, place, trials)
        drawn = [set(each.params) for each in trials if each.tags.get("trial") != "default"]  # has the class's values
        common = set.intersection(*drawn) - {"class"} if drawn else set()
        client.set_experiment_tag(place, view.TAG, view.saved(view.trials(TAG, sorted(common))))
        client.set_experiment_tag(place, descriptions.TAG, descriptions.TRIALS.format(trainings=trainings))


def _bring(client: "MlflowClient", place: str, wanted: tuple[Summary, ...]) -> None:
    with FileLock(Path(".optlab") / "summaries.lock"):
        missing = _missing(client, place, wanted)
        for each in missing:
            _make(client, place, each)
        if missing:
            _missing(client, place, wanted)  # another machine may have made the same ones meanwhile
        _sweep(client, place)


def _missing(client: "MlflowClient", place: str, summaries: tuple[Summary, ...]) -> list[Summary]:
    """Those that are not there; whatever else passes for a present one is removed, of equal ones all but the first."""
    wanted = {each.digest: each for each in summaries}
    for run in server.search_runs(client, place, f"tags.{TAG} = 'current'", ["start_time ASC"]):
        if wanted.pop(run.data.tags.get(_DIGEST, ""), None) is None:
            _remove(client, run.info.run_id)
    return list(wanted.values())


def _sweep(client: "MlflowClient", place: str) -> None:
    """Remove what a kill has left half-made."""
    old = now_ms() - _LONGEST_MS
    for run in server.search_runs(client, place, f"tags.{TAG} = '{_UNFINISHED}' AND attributes.start_time < {old}"):
        _remove(client, run.info.run_id)


def _remove(client: "MlflowClient", run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_run(run_id)
    except MlflowException:  # on a server with a login, only who has made it may
        with contextlib.suppress(MlflowException):  # another machine has removed it meanwhile
            client.set_tag(run_id, TAG, "earlier")


def _make(client: "MlflowClient", place: str, summary: Summary) -> None:
    """It passes for a present one when it is whole, and not before."""
    from mlflow.entities import Metric, Param, RunTag

    when = now_ms()
    tags = {TAG: _UNFINISHED, "mlflow.runColor": summary.colour, "mlflow.source.name": summary.source} | summary.tags
    run_id = client.create_run(place, when, tags, run_name=summary.run or summary.optimizer).info.run_id
    refused: refusals.Refused = []  # whole among the artifacts
    refusals.log(client, run_id, "params", [Param(key, value) for key, value in summary.params.items()], refused)
    metrics = [Metric(key, value, when, step) for key, value, step in summary.points]
    refusals.log(client, run_id, "metrics", metrics, refused)
    client.set_terminated(run_id, "FINISHED", now_ms())
    client.log_batch(run_id, tags=[RunTag(_DIGEST, summary.digest), RunTag(TAG, "current")])
