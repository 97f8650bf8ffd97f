"""Content of an event log besides the training's metrics: parameters and tags of a run, its evaluation, and its end."""

import getpass
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optlab.analysis.presentation import assign_colours
from optlab.data import cifar10
from optlab.records import Choice, Environment, EvalRecord, RunFiles, TrainRecord
from optlab.schema.parameters import Config, format_run_id
from optlab.system import git, processes, repository
from optlab.system.errors import RecordError, StorageError
from optlab.tracking.event_log import (
    EventLog,
    get_current_time_ms,
    get_experiment_name,
    get_lock_name,
    make_epoch_points,
    make_validation_points,
    round_metric,
)
from optlab.training import models, optimizers
from optlab.training.optimizer_factory import TrainingContext

DATASET_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def build_trial_tags(config: Config, choice: Choice | None, seed: int) -> dict[str, str]:
    """Return tags that name the trial of a run's values; none if nothing was tuned."""
    if choice is None or not choice.is_tuned:
        return {}
    trial = "default" if choice.trial is None else str(choice.trial)
    return {"tuned.search": str(config.get_search_number(seed)), "tuned.trial": trial}


def build_run_metadata(config: Config, folder: Path, name: str, seed: int, conditions: Environment,
                       provenance: dict[str, str] | None = None,
                       extra_tags: dict[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    """Return the fields of a log's start event, for a run of the optimizer `name` of the pipeline in `folder`.

    Args:
        conditions: environment of the training.
        provenance: as from `git.get_provenance`, which is the default.
    """
    run = format_run_id(name, seed)
    params: dict[str, Any] = {"model": config.model, "optimizer": name, "seed": seed}
    params |= {f"data.{key}": value for key, value in config.data.model_dump().items()}
    params |= {f"training.{key}": value for key, value in config.training.model_dump(exclude={"schedule"}).items()}
    params |= {f"schedule.{key}": value for key, value in config.get_schedule(name).model_dump().items()}
    params["device"] = conditions.device
    provenance = git.get_provenance() if provenance is None else provenance
    tags = provenance | {
        "optlab.run": run, "optimizer": name, "status": "running",
        "mlflow.runColor": assign_colours(config.optimizers)[name],
        "mlflow.source.name": "pipeline/train.py", "mlflow.source.type": "LOCAL", "mlflow.user": _get_user(),
        "conditions.cpu": conditions.cpu, "conditions.cpu_capability": conditions.cpu_capability,
        "conditions.python": conditions.python, "conditions.torch": conditions.packages.get("torch", "unknown"),
    } | (extra_tags or {})  # fmt: skip
    exp = repository.get_dvc_experiment()
    if exp:
        tags |= {"dvc.exp.name": exp, "dvc.exp.baseline": os.environ.get("DVC_EXP_BASELINE_REV", "unknown")}
    if provenance:
        tags["mlflow.source.git.commit"] = provenance["git.commit"]
    if config.data.train_split == "test":
        tags["mlflow.note.content"] = (
            "Trained on the **test** split, in file order, as the tutorial does: its test accuracy is an accuracy "
            "on training images."
        )
    dataset = config.data.dataset
    return {
        "id": uuid.uuid4().hex[:16], "time": get_current_time_ms(), "name": f"{run} [{exp}]" if exp else run,
        "experiment": get_experiment_name(folder), "params": params, "tags": tags,
        "dataset": {"name": dataset, "digest": cifar10.compute_digest(dataset), "source": DATASET_SOURCE},
        "lock": get_lock_name(folder, run),
    }  # fmt: skip


def _get_user() -> str:
    """Return the account's name, which tells on a shared server who has trained."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


@contextmanager
def close_on_error(log: EventLog) -> Iterator[None]:
    """End the log as `interrupted` or `failed`, with all buffered metrics, if the block raises."""
    with processes.interrupt_on_sigterm():
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | BrokenPipeError)  # as when the reader of the output is gone
            with suppress(StorageError):  # on a full disk, the next process ends it
                log.end("interrupted" if stopped else "failed")
            raise


def create_log_from_record(config: Config, files: RunFiles, weights: Path | None, trained: TrainRecord,
                           conditions: Environment | None = None, timestamp_ms: int | None = None,
                           provenance: dict[str, str] | None = None,
                           extra_tags: dict[str, str] | None = None) -> EventLog:  # fmt: skip
    """Return the draft of a log for a run that came with the record, which has no times, in place of a training.

    Args:
        weights: the file, if it is there.
        conditions: the recorded environment; default: that beside the record, if it is of these weights.
        timestamp_ms: time of all events, in ms since 1970; default: now.
        provenance: revision of the record, as from `git.get_provenance`; default: the present one.
    """
    digest, timestamp_ms = trained.weights_sha256, get_current_time_ms() if timestamp_ms is None else timestamp_ms
    log = EventLog.create(files.id, digest, draft=True)
    if conditions is None:
        with suppress(RecordError):  # a damaged file beside the record stops no stage
            conditions = Environment.read_for_weights(files.environment, digest)
    metadata = build_run_metadata(
        config, files.folder, files.optimizer, files.seed, conditions or Environment(), provenance, extra_tags
    )
    metadata["time"] = timestamp_ms
    hyperparameters = dict(trained.hyperparameters) or _get_default_hyperparameters(config, files.optimizer)
    metadata["params"] |= {f"optimizer.{key}": value for key, value in hyperparameters.items()}
    metadata["tags"]["optlab.restored"] = "yes"
    log.append("start", **metadata)
    steps = [loss for losses in trained.step_losses for loss in losses]
    points = [("step/loss", loss, timestamp_ms, step) for step, loss in enumerate(steps) if loss is not None]
    for epoch in trained.history:
        points += make_epoch_points(epoch.model_dump(), timestamp_ms, metadata["params"])
    for validation in trained.validations:
        points += make_validation_points(validation.model_dump(), timestamp_ms)
    log.log_metrics(points)
    log.log_weights(weights, digest)
    log.append("end", status=trained.status, time=timestamp_ms)
    return log


def _get_default_hyperparameters(config: Config, optimizer: str) -> dict[str, str]:
    """Return the installed class's hyperparameters, for old records without them."""
    context = TrainingContext.from_config(config, models.build(config.model, 0))
    driver = optimizers.build(optimizer, config.get_optimizer(optimizer), context)
    return {key: str(value) for key, value in driver.get_hyperparameters().items()}


def log_evaluation(log: EventLog, run: str, weights: Path | None, trained: TrainRecord, measured: EvalRecord,
                   model: str, timestamp_ms: int | None = None) -> None:  # fmt: skip
    """Write the events of an evaluation: test metrics, data of the figures and, if there are weights, the model.

    A run whose outputs are not finite has diverged, though its training may have completed.

    Args:
        weights: the file, if it is there.
        model: name in params.yaml.
        timestamp_ms: in ms since 1970; default: now.
    """
    _log_test_metrics(log, measured, get_current_time_ms() if timestamp_ms is None else timestamp_ms)
    if measured.status != trained.status:
        log.append("tags", tags={"status": measured.status})
    log.log_figures(run, measured.confusion)
    if weights and measured.status == "completed":
        log.log_model(weights, run, model)


def _log_test_metrics(log: EventLog, measured: EvalRecord, timestamp_ms: int) -> None:
    """Write the test metrics that the log lacks, at step 0, where MLflow draws a bar for each run."""
    logged = log.read_metric_values()
    values = {
        "test/loss": measured.test_loss,
        "test/accuracy": measured.test_accuracy,
        "test/mirrored_accuracy": measured.mirrored_test_accuracy,
        "test/expected_calibration_error": measured.expected_calibration_error,
    } | {f"test_class_accuracy/{name}": value for name, value in measured.class_accuracy}
    metrics = {key: round_metric(value) for key, value in values.items() if value is not None}
    # Logs of older versions have all digits.
    points = [
        (key, value, timestamp_ms, 0)
        for key, value in metrics.items()
        if (key, 0) not in logged or round_metric(logged[key, 0]) != value
    ]
    if points:
        log.log_metrics(points)
