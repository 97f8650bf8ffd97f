"""Events of a journal as calls of MLflow's client."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab.results import pages
from optlab.tracking import refusals, server
from optlab.tracking.journal import FIGURES, Journal
from optlab.tracking.refusals import Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_NAME = 250  # characters of a run's name
_OF_MODEL = (  # which of its run's metrics and parameters a logged model has
    "test/accuracy", "test/loss", "epoch/validation_accuracy", "epoch/validation_loss", "epoch/train_loss",
    "model", "optimizer", "optimizer.class", "optimizer.lr", "seed",
)  # fmt: skip
_STATUS = {"completed": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def send(client: "MlflowClient", journal: Journal, run_id: str | None, event: dict[str, Any],
         refused: Refused) -> str | None:  # fmt: skip
    """Send one event of a journal; sent twice, it changes nothing.

    Args:
        run_id: of the journal's run in MLflow; None before its start.
        refused: gets each part that MLflow refuses; the rest is sent all the same.

    Returns:
        The id of the run, once it has one.

    Raises:
        Exception: whatever MLflow raises; ValueError if a file was altered since it was kept.
    """
    kind = event["event"]
    if kind == "start":
        return _start(client, journal, event, refused)
    if run_id is None:  # it was stopped before its start: there is nothing to show
        return None
    if kind == "resume":
        _resume(client, run_id, event, refused)
    elif kind == "metrics":
        _metrics(client, run_id, event["points"], refused)
    elif kind == "artifact":
        _check(event)
        client.log_artifact(run_id, event["path"], event["folder"] or None)
    elif kind == "figures":
        _figures(client, run_id, event)
    elif kind == "model":
        _model(client, run_id, event)
    elif kind == "tags":
        _tags(client, run_id, event["tags"], refused)
    elif kind == "end":
        _tags(client, run_id, {"status": event["status"]}, refused)
        client.set_terminated(run_id, _STATUS[event["status"]], event["time"])
    return run_id


def _start(client: "MlflowClient", journal: Journal, event: dict[str, Any], refused: Refused) -> str:
    """Find the journal's run by its tag, or create it with its original time."""
    from mlflow.entities import Param

    experiment = server.experiment(client, event["experiment"])
    # Two clones can begin the same run in the same second: the folder's name is not enough.
    key = "-".join([journal.folder.name, *([event["id"]] if "id" in event else [])])
    found = client.search_runs([experiment], f"tags.`optlab.journal` = '{key}'", max_results=1)
    if found:
        run = found[0]
    else:
        known = {"optlab.journal": key, "mlflow.user": event["tags"].get("mlflow.user", "unknown")}
        run = client.create_run(experiment, event["time"], known, event["name"][:_LONGEST_NAME])
    run_id = str(run.info.run_id)
    # From here on the run is there: what is refused of the rest must not lose what follows.
    absent = {name: value for name, value in event["tags"].items() if name not in run.data.tags}
    _tags(client, run_id, absent, refused)
    params = [Param(name, str(value)) for name, value in event["params"].items()]
    refusals.log(client, run_id, "params", params, refused)
    if event["dataset"]:
        try:
            _dataset(client, run_id, event["dataset"])
        except Exception as error:
            if not refusals.is_final(error):
                raise
            refused.append(("the dataset", server.describe(error)))
    return run_id


def _resume(client: "MlflowClient", run_id: str, event: dict[str, Any], refused: Refused) -> None:
    """The run is at work again, and says when it was interrupted."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(event["time"] / 1000))
    told = f"{event['after']}; at {when} it went on after step {event['step']}"
    count = event["number"]
    _tags(client, run_id, {"status": "running", "interruptions": count, f"interruption.{count}": told}, refused)
    client.update_run(run_id, status="RUNNING")


def _check(event: dict[str, Any]) -> None:
    """Refuse a file that is no longer what was kept for the run."""
    path = Path(event["path"])
    if not path.is_file():
        raise ValueError(f"{path} is gone")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if event.get("sha256") not in (None, digest):  # journals of older versions have none
        raise ValueError(f"{path} was altered since it was written: SHA-256 differs")


def _dataset(client: "MlflowClient", run_id: str, described: dict[str, str]) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    dataset: Any = MetaDataset(  # type: ignore[abstract]
        HTTPDatasetSource(described["source"]), name=described["name"], digest=described["digest"]
    )
    tag = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def _metrics(client: "MlflowClient", run_id: str, points: list[Any], refused: Refused) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, when, step) for key, value, when, step in points]
    refusals.log(client, run_id, "metrics", metrics, refused)


def _tags(client: "MlflowClient", run_id: str, tags: dict[str, Any], refused: Refused) -> None:
    from mlflow.entities import RunTag

    refusals.log(client, run_id, "tags", [RunTag(name, str(value)) for name, value in tags.items()], refused)


def _figures(client: "MlflowClient", run_id: str, event: dict[str, Any]) -> None:
    """Draw what MLflow does not draw itself from a run's metrics."""
    if event["confusion"]:
        page = pages.confusion(event["run"], event["confusion"]).decode()
        client.log_text(run_id, page, f"{FIGURES}/confusion_matrix.html")


def _model(client: "MlflowClient", run_id: str, event: dict[str, Any]) -> None:
    """Log the weights as a model that MLflow can load and serve: the file itself, and code that reads it.

    Nothing is exported, and nothing is pickled. The code is that of this repository.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput

    from optlab.tracking import served

    if logged_model(client, run_id):
        return
    _check(event)
    experiment = client.get_run(run_id).info.experiment_id
    for unfinished in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(unfinished.model_id)  # a kill or an error cut it short
    logged = mlflow.initialize_logged_model(
        name=event["name"], experiment_id=experiment, source_run_id=run_id, model_type="classifier"
    )
    try:
        served.log(event["name"], logged.model_id, Path(event["path"]), event["model"], event["sha256"])
    except Exception:
        mlflow.finalize_logged_model(logged.model_id, "FAILED")
        raise
    _describe(client, logged)
    mlflow.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def logged_model(client: "MlflowClient", run_id: str) -> str | None:
    """The id of the model that a run has logged, if any."""
    outputs = client.get_run(run_id).outputs
    return str(outputs.model_outputs[0].model_id) if outputs and outputs.model_outputs else None


def describe_models(client: "MlflowClient", experiment: str) -> None:
    """Give the models of an experiment that have no metrics those of their runs: earlier versions logged none."""
    token = None
    while True:
        page = client.search_logged_models([experiment], page_token=token)
        for model in page:
            if not model.metrics and model.source_run_id:
                _describe(client, model)
        token = page.token
        if not token:
            return


def _describe(client: "MlflowClient", model: Any) -> None:
    """Give a model the last metrics of its run, and the parameters that name it: MLflow's table of models shows these.

    With the run's own times: the run itself has them already, and gets no second point.
    """
    from mlflow.entities import Metric

    run = client.get_run(model.source_run_id)
    own = {key: value for key, value in run.data.params.items() if key in _OF_MODEL}
    client.log_model_params(model.model_id, own)
    metrics = [
        Metric(each.key, each.value, each.timestamp, each.step, model_id=model.model_id, run_id=run.info.run_id)
        for each in run.data._metric_objs  # the only list with times
        if each.key in _OF_MODEL
    ]
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)
