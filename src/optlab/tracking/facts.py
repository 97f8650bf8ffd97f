"""What is said about a run besides its figures: the facts that open its journal, and how it ended."""

import getpass
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optlab.config.parameters import Config, run_id
from optlab.data import dataset
from optlab.record.contents import Conditions, Evaluated, Trained
from optlab.record.runs import RunFiles
from optlab.results.colours import colours
from optlab.system import git, processes, repository
from optlab.system.errors import StorageError
from optlab.tracking.journal import Journal, now_ms
from optlab.tracking.notes import experiment, lock_name
from optlab.tracking.points import epoch_points, rounded, validation_points
from optlab.training import models, optimizers
from optlab.training.construction import Context

DATASET_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def facts(config: Config, folder: Path, name: str, seed: int, conditions: Conditions,
          state: dict[str, str] | None = None, more: dict[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    """The fields of a journal's first event.

    Args:
        state: as `git.state` has it, which is the default.
        more: tags besides.
    """
    run = run_id(name, seed)
    params: dict[str, Any] = {"model": config.model, "optimizer": name, "seed": seed}
    params |= {f"data.{key}": value for key, value in config.data.model_dump().items()}
    params |= {f"training.{key}": value for key, value in config.training.model_dump(exclude={"schedule"}).items()}
    params |= {f"schedule.{key}": value for key, value in config.schedule(name).model_dump().items()}
    params["device"] = conditions.device
    state = git.state() if state is None else state
    tags = state | {
        "optlab.run": run,
        "optimizer": name,
        "status": "running",
        "mlflow.runColor": colours(config.optimizers)[name],
        "mlflow.source.name": "pipeline/train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "conditions.cpu": conditions.cpu,
        "conditions.cpu_capability": conditions.cpu_capability,
        "conditions.python": conditions.python,
        "conditions.torch": conditions.packages.get("torch", "unknown"),
    }
    tags |= more or {}
    exp = repository.experiment()
    if exp:
        tags |= {"dvc.exp.name": exp, "dvc.exp.baseline": os.environ.get("DVC_EXP_BASELINE_REV", "unknown")}
    if state:
        tags["mlflow.source.git.commit"] = state["git.commit"]
    if config.data.train_split == "test":
        tags["mlflow.note.content"] = (
            "Trained on the **test** split, in file order, as the tutorial does: its test accuracy is an accuracy "
            "on training images."
        )
    described = {
        "name": config.data.dataset,
        "digest": dataset.digest(config.data.dataset),
        "source": DATASET_SOURCE,
    }
    return {
        "id": uuid.uuid4().hex[:16], "time": now_ms(), "name": f"{run} [{exp}]" if exp else run,
        "experiment": experiment(folder), "params": params, "tags": tags, "dataset": described,
        "lock": lock_name(folder, run),
    }  # fmt: skip


def _user() -> str:
    """The account's name: on a shared server, who trained."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


@contextmanager
def ending(journal: Journal) -> Iterator[None]:
    """If what is inside does not end by itself, close the journal as `interrupted` or `failed`, with all it has."""

    with processes.terminable():
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | BrokenPipeError)  # as when who reads its output is gone
            with suppress(StorageError):  # on a full disk, the next process says that this one has ended
                journal.end("interrupted" if stopped else "failed")
            raise


def restored(config: Config, files: RunFiles, weights: Path | None, trained: Trained,
             conditions: Conditions | None = None, when: int | None = None,
             state: dict[str, str] | None = None, more: dict[str, str] | None = None) -> Journal:  # fmt: skip
    """A draft of a journal for a run that was not trained here but came with the record, which has no times.

    Args:
        weights: the file, where it is at hand.
        conditions: those that are recorded, where they are.
        when: the time of all that is in it, in ms since 1970; default: now.
        state: the revision that the record is from, as `git.state` has it; default: the present one.
        more: tags besides.
    """
    digest, when = trained.weights_sha256, now_ms() if when is None else when
    journal = Journal.create(files.id, digest, draft=True)
    opening = facts(config, files.folder, files.optimizer, files.seed, conditions or Conditions(), state, more)
    opening["time"] = when
    hyperparameters = dict(trained.hyperparameters) or _hyperparameters(config, files.optimizer)
    opening["params"] |= {f"optimizer.{key}": value for key, value in hyperparameters.items()}
    opening["tags"]["optlab.restored"] = "yes"
    journal.append("start", **opening)
    steps = [loss for losses in trained.step_losses for loss in losses]
    points = [("step/loss", loss, when, step) for step, loss in enumerate(steps) if loss is not None]
    for epoch in trained.history:
        points += epoch_points(epoch.model_dump(), when, opening["params"])
    for validation in trained.validations:
        points += validation_points(validation.model_dump(), when)
    journal.metrics(points)
    journal.weights(weights, digest)
    journal.append("end", status=trained.status, time=when)
    return journal


def _hyperparameters(config: Config, optimizer: str) -> dict[str, str]:
    """Those that the installed version gives it, for records that do not have them."""
    context = Context.of(config, models.build(config.model, 0))
    stepper = optimizers.build(optimizer, config.optimizer(optimizer), context)
    return {key: str(value) for key, value in stepper.hyperparameters().items()}


def evaluation(journal: Journal, run: str, weights: Path | None, trained: Trained, measured: Evaluated,
               model: str, when: int | None = None) -> None:  # fmt: skip
    """Write what an evaluation adds: the test metrics, what figures show and, where the weights are at hand, the model.

    A run whose outputs are not finite has diverged, though its training may have completed.

    Args:
        model: its name in params.yaml.
        when: in ms since 1970; default: now.
    """
    _test_metrics(journal, measured, now_ms() if when is None else when)
    if measured.status != trained.status:
        journal.append("tags", tags={"status": measured.status})
    journal.figures(run, measured.confusion)
    if weights and measured.status == "completed":
        journal.model(weights, run, model)


def _test_metrics(journal: Journal, measured: Evaluated, when: int) -> None:
    """Write the test metrics that are not there yet; at step 0, where MLflow draws a bar for each run."""
    known = journal.recorded()
    values = {
        "test/loss": measured.test_loss,
        "test/accuracy": measured.test_accuracy,
        "test/expected_calibration_error": measured.expected_calibration_error,
    } | {f"test_class_accuracy/{name}": value for name, value in measured.class_accuracy}
    shown = {key: rounded(value) for key, value in values.items() if value is not None}
    # Journals of earlier versions have all digits.
    points = [
        (key, value, when, 0)
        for key, value in shown.items()
        if (key, 0) not in known or rounded(known[key, 0]) != value
    ]
    if points:
        journal.metrics(points)
