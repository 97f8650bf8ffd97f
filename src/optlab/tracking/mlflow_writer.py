"""Translation of event-log events into calls of MLflow's client.

MLflow may refuse a part of a run for good, such as a name that is too long. The rest of the run is logged all the same,
and values that were refused or cut are whole in an artifact.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optlab.analysis import presentation
from optlab.system import source_code
from optlab.system.errors import WeightsError
from optlab.tracking import mlflow_store
from optlab.tracking.event_log import FIGURES_FOLDER, EventLog

if TYPE_CHECKING:
    from mlflow import MlflowClient

EntityKind = Literal["params", "tags", "metrics"]
RefusedItems = list[tuple[str, str]]  # refused part, reason

_MLFLOW_STATUS = {"completed": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MAX_NAME_CHARS = 250  # of a run's name
_MODEL_METRICS_AND_PARAMS = (  # of a run that its logged model gets, too
    "test/accuracy", "test/loss", "epoch/validation_accuracy", "epoch/validation_loss", "epoch/train_loss",
    "model", "optimizer", "optimizer.class", "optimizer.lr", "seed",
)  # fmt: skip

_BATCH_LIMITS = {"params": 100, "tags": 100, "metrics": 1000}  # MLflow's limits for one call
_MAX_VALUE_CHARS = {"params": 6000, "tags": 8000}  # beyond which MLflow cuts a value without an error
_TRUNCATION_NOTE = " … (cut: the whole value is among the artifacts, in whole/)"

_MIN_FREE_BYTES = 50_000_000  # of the disk, below which no error is due to an event's content
_PERMANENT_ERROR_CODES = (
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
)
_TRANSIENT_WORDS = ("thread", "shutdown")  # in Python's messages where it cannot start a thread, or is ending


def is_permanent(error: Exception) -> bool:
    """Return whether the same call would be refused again: not if the store was away, overloaded, or failed inside."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _PERMANENT_ERROR_CODES
    if shutil.disk_usage(".").free < _MIN_FREE_BYTES:  # libraries raise whatever they like then
        return False
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TRANSIENT_WORDS):
        return False
    # On a bad connection, the store's clients raise an OSError, or a database's own error.
    permanent_errors = LookupError | TypeError | ValueError | RuntimeError | WeightsError
    return isinstance(error, permanent_errors) and not isinstance(error, OSError)


def log_event(client: "MlflowClient", log: EventLog, run_id: str | None, event: dict[str, Any],
              refused: RefusedItems) -> str | None:  # fmt: skip
    """Send one event of a log; sending it twice changes nothing.

    Args:
        run_id: of the log's run in MLflow; None before the start event.
        refused: gets each part that MLflow refuses; the rest is sent all the same.

    Returns:
        The run's id in MLflow, once it has one.

    Raises:
        Exception: whatever MLflow raises; ValueError if a file was altered since it was kept, or a model's module
            since the run.
    """
    event_kind = event["event"]
    if event_kind == "start":
        return _log_start(client, log, event, refused)
    if run_id is None:  # it was stopped before its start: there is nothing to show
        return None
    if event_kind == "resume":
        _log_resume(client, run_id, event, refused)
    elif event_kind == "metrics":
        _log_metrics(client, run_id, event["points"], refused)
    elif event_kind == "artifact":
        client.log_artifact(run_id, str(_verify_file(log, event)), event["folder"] or None)
    elif event_kind == "figures":
        _log_figures(client, run_id, event)
    elif event_kind == "model":
        _log_model(client, run_id, log, event)
    elif event_kind == "tags":
        _log_tags(client, run_id, event["tags"], refused)
    elif event_kind == "end":
        _log_tags(client, run_id, {"status": event["status"]}, refused)
        client.set_terminated(run_id, _MLFLOW_STATUS[event["status"]], event["time"])
    return run_id


def _log_start(client: "MlflowClient", log: EventLog, event: dict[str, Any], refused: RefusedItems) -> str | None:
    """Find the log's run by its tag, or create it with its original time; return its id.

    Returns None for a run that a person has deleted in MLflow: it stays deleted.
    """
    from mlflow.entities import Param, ViewType

    experiment = mlflow_store.get_or_create_experiment(client, event["experiment"])
    # Two clones can begin the same run in the same second: the folder's name is not enough.
    key = "-".join([log.folder.name, *([event["id"]] if "id" in event else [])])
    own_tag = f"tags.`optlab.journal` = '{key}'"
    existing = client.search_runs([experiment], own_tag, max_results=1)
    if existing:
        run = existing[0]
    elif client.search_runs([experiment], own_tag, ViewType.DELETED_ONLY, max_results=1):
        return None
    else:
        initial_tags = {"optlab.journal": key, "mlflow.user": event["tags"].get("mlflow.user", "unknown")}
        run = client.create_run(experiment, event["time"], initial_tags, event["name"][:_MAX_NAME_CHARS])
    run_id = str(run.info.run_id)
    # From here on the run is there: a refusal of the rest must not lose the events that follow.
    missing_tags = {name: value for name, value in event["tags"].items() if name not in run.data.tags}
    _log_tags(client, run_id, missing_tags, refused)
    params = [Param(name, str(value)) for name, value in event["params"].items()]
    log_entities(client, run_id, "params", params, refused)
    if event["dataset"]:
        try:
            _log_dataset(client, run_id, event["dataset"])
        except Exception as error:
            if not is_permanent(error):
                raise
            refused.append(("the dataset", mlflow_store.describe_error(error)))
    return run_id


def _log_resume(client: "MlflowClient", run_id: str, event: dict[str, Any], refused: RefusedItems) -> None:
    """Set the run's status to running, and count and describe the interruption in tags."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(event["time"] / 1000))
    interruption = f"{event['after']}; at {when} it went on after step {event['step']}"
    count = event["number"]
    tags = {"status": "running", "interruptions": count, f"interruption.{count}": interruption}
    _log_tags(client, run_id, tags, refused)
    client.update_run(run_id, status="RUNNING")


def _verify_file(log: EventLog, event: dict[str, Any]) -> Path:
    """Return the path of an event's file.

    Raises:
        ValueError: the file is not the one that was kept for the run.
    """
    path = log.find_stored_file(event["path"])
    if not path.is_file():
        raise ValueError(f"{path} is gone")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if event.get("sha256") not in (None, digest):  # logs of older versions have none
        raise ValueError(f"{path} was altered since it was written: SHA-256 differs")
    return path


def _log_dataset(client: "MlflowClient", run_id: str, dataset_info: dict[str, str]) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    dataset: Any = MetaDataset(  # type: ignore[abstract]
        HTTPDatasetSource(dataset_info["source"]), name=dataset_info["name"], digest=dataset_info["digest"]
    )
    tag = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def _log_metrics(client: "MlflowClient", run_id: str, points: list[Any], refused: RefusedItems) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, when, step) for key, value, when, step in points]
    log_entities(client, run_id, "metrics", metrics, refused)


def _log_tags(client: "MlflowClient", run_id: str, tags: dict[str, Any], refused: RefusedItems) -> None:
    from mlflow.entities import RunTag

    log_entities(client, run_id, "tags", [RunTag(name, str(value)) for name, value in tags.items()], refused)


def _log_figures(client: "MlflowClient", run_id: str, event: dict[str, Any]) -> None:
    """Log the page of the confusion matrix, which MLflow cannot draw from metrics."""
    if event["confusion"]:
        page = presentation.render_confusion_matrix(event["run"], event["confusion"]).decode()
        client.log_text(run_id, page, f"{FIGURES_FOLDER}/confusion_matrix.html")


def log_entities(
    client: "MlflowClient", run_id: str, kind: EntityKind, entities: list[Any], refused: RefusedItems
) -> None:
    """Log parameters, tags or metrics; add those that the store refuses to `refused`, and log the others.

    Values that are refused, or longer than MLflow takes, are whole in an artifact.

    Raises:
        Exception: whatever MLflow raises, but for a refusal of some of them.
    """
    artifact_values = {}
    if kind != "metrics":
        artifact_values = {each.key: each.value for each in entities if len(each.value) > _MAX_VALUE_CHARS[kind]}
        entities = [_truncate_value(kind, each) for each in entities]
    full_values = {each.key: each.value for each in entities} | artifact_values
    for start in range(0, len(entities), _BATCH_LIMITS[kind]):
        for each, reason in _log_batch(client, run_id, kind, entities[start : start + _BATCH_LIMITS[kind]]):
            refused.append((f"the {kind[:-1]} {each.key!r}", reason))
            artifact_values[each.key] = full_values[each.key]
    if artifact_values and kind != "metrics":
        text = json.dumps(artifact_values, indent=2)
        client.log_text(run_id, text, f"whole/{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json")


def _truncate_value(kind: EntityKind, entity: Any) -> Any:
    max_chars = _MAX_VALUE_CHARS[kind]
    if len(entity.value) <= max_chars:
        return entity
    return type(entity)(entity.key, entity.value[: max_chars - len(_TRUNCATION_NOTE)] + _TRUNCATION_NOTE)


def _log_batch(client: "MlflowClient", run_id: str, kind: EntityKind, entities: list[Any]) -> list[tuple[Any, str]]:
    """Log entities in one call, or else in halves; return (entity, reason) of those that are refused alone."""
    try:
        batch: dict[str, Any] = {kind: entities}
        client.log_batch(run_id, **batch)
    except Exception as error:
        if not is_permanent(error) or not _is_run_active(client, run_id):
            raise
        if len(entities) == 1:
            return [(entities[0], mlflow_store.describe_error(error))]
        half = len(entities) // 2
        return [*_log_batch(client, run_id, kind, entities[:half]), *_log_batch(client, run_id, kind, entities[half:])]
    return []


def _is_run_active(client: "MlflowClient", run_id: str) -> bool:
    """Return whether the run exists and takes anything: nobody has deleted it, nor emptied the store."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def _log_model(client: "MlflowClient", run_id: str, log: EventLog, event: dict[str, Any]) -> None:
    """Log the weights as a model that MLflow can load and serve: the file, and this repository's code to read it.

    Nothing is exported, and nothing is pickled.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput

    from optlab.tracking import pyfunc_model

    if find_logged_model_id(client, run_id):
        return
    path = _verify_file(log, event)
    if changed := source_code.find_changed(event.get("code", {})):
        raise ValueError(f"{changed[0]} is not the one that the run was trained with, so the model would be another")
    experiment = client.get_run(run_id).info.experiment_id
    for unfinished in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(unfinished.model_id)  # a kill or an error cut it short
    logged = mlflow.initialize_logged_model(
        name=event["name"], experiment_id=experiment, source_run_id=run_id, model_type="classifier"
    )
    try:
        pyfunc_model.log_model(event["name"], logged.model_id, path, event["model"], event["sha256"])
    except Exception:
        mlflow.finalize_logged_model(logged.model_id, "FAILED")
        raise
    _copy_metrics_to_model(client, logged)
    mlflow.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def find_logged_model_id(client: "MlflowClient", run_id: str) -> str | None:
    """Return the id of the model that a run has logged, if any."""
    outputs = client.get_run(run_id).outputs
    return str(outputs.model_outputs[0].model_id) if outputs and outputs.model_outputs else None


def fill_model_metrics(client: "MlflowClient", experiment: str, run_ids: set[str]) -> None:
    """Give the models of these runs the runs' metrics where they have none: older versions logged none."""
    token = None
    while True:
        page = client.search_logged_models([experiment], page_token=token)
        for model in page:
            if model.source_run_id in run_ids and not model.metrics:
                _copy_metrics_to_model(client, model)
        token = page.token
        if not token:
            return


def _copy_metrics_to_model(client: "MlflowClient", model: Any) -> None:
    """Copy to a model the last metrics of its run, with their times, and some parameters.

    MLflow's table of models shows them. The run itself has these points already, and gets no second one.
    """
    from mlflow.entities import Metric

    run = client.get_run(model.source_run_id)
    params = {key: value for key, value in run.data.params.items() if key in _MODEL_METRICS_AND_PARAMS}
    client.log_model_params(model.model_id, params)
    metrics = [
        Metric(each.key, each.value, each.timestamp, each.step, model_id=model.model_id, run_id=run.info.run_id)
        for each in run.data._metric_objs  # the only list with times
        if each.key in _MODEL_METRICS_AND_PARAMS
    ]
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)
