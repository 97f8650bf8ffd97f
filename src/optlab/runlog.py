"""What is said about a run besides its figures: the facts that open its journal, and how it ended."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optlab import data, figures, models, optimizers, processes, project
from optlab.colours import colour
from optlab.config import Config, run_id
from optlab.errors import StorageError
from optlab.journal import FIGURES, Journal, epoch_points, now_ms
from optlab.record import RunFiles

EXPERIMENT = "optlab"
DATASET_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def experiment(folder: Path) -> str:
    """The MLflow experiment of a pipeline: the project's name, with the folder's where it is not the top."""
    return EXPERIMENT if folder == Path() else f"{EXPERIMENT}-{folder.name}"


def lock_name(folder: Path, run: str) -> str:
    """What a process holds while it writes the outputs of a run: see `Journal.lock_name`."""
    return f"{experiment(folder)}-{run}"


def facts(config: Config, folder: Path, name: str, seed: int, conditions: dict[str, Any],
          git: dict[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    """The fields of a journal's first event; `git` is as `project.git_state` has it, which is the default."""
    params: dict[str, Any] = {"model": config.model, "optimizer": name, "seed": seed}
    params |= {f"data.{key}": value for key, value in config.data.model_dump().items()}
    params |= {f"training.{key}": value for key, value in config.training.model_dump(exclude={"schedule"}).items()}
    params |= {f"schedule.{key}": value for key, value in config.training.schedule.model_dump().items()}
    params["device"] = conditions["device"]
    git = project.git_state() if git is None else git
    tags = git | {
        "optlab.run": run_id(name, seed),
        "optimizer": name,
        "status": "running",
        "mlflow.runColor": colour(name),
        "mlflow.source.name": "pipeline/train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "conditions.cpu": conditions["cpu"],
        "conditions.cpu_capability": conditions["cpu_capability"],
        "conditions.python": conditions["python"],
        "conditions.torch": conditions["packages"]["torch"],
    }
    if git:
        tags["mlflow.source.git.commit"] = git["git.commit"]
    if config.data.train_split == "test":
        tags["mlflow.note.content"] = (
            "Trained on the **test** split, in file order, as the tutorial does: its test accuracy is an accuracy "
            "on training images."
        )
    dataset = {
        "name": config.data.dataset,
        "digest": data.digest(config.data.dataset),
        "source": DATASET_SOURCE,
    }
    return {
        "time": now_ms(), "name": name, "experiment": experiment(folder), "params": params, "tags": tags,
        "dataset": dataset,
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


def restored(config: Config, files: RunFiles, weights: Path | None, trained: dict[str, Any], conditions: dict[str, Any],
             when: int | None = None, git: dict[str, str] | None = None) -> Journal:  # fmt: skip
    """A draft of a journal for a run that was not trained here but came with the record, which has no times.

    Args:
        weights: the file, where it is at hand.
        trained: the content of train.json.
        conditions: the content of conditions.json, or nothing where there is none.
        when: the time of all that is in it, in ms since 1970; default: now.
        git: the tags of the revision that the record is from; default: the present one.
    """
    digest, when = trained["weights_sha256"], now_ms() if when is None else when
    journal = Journal.create(files.id, digest, draft=True)
    unknown = {"device": "unknown", "cpu": "unknown", "cpu_capability": "unknown", "python": "unknown"}
    known = unknown | {"packages": {"torch": "unknown"}} | conditions
    opening = facts(config, files.folder, files.optimizer, files.seed, known, git) | {"time": when}
    stepper = optimizers.build(files.optimizer, config.optimizer(files.optimizer), models.build(config.model, 0))
    opening["params"] |= {f"optimizer.{key}": str(value) for key, value in stepper.hyperparameters().items()}
    opening["tags"]["optlab.restored"] = "yes"
    journal.append("start", **opening)
    steps = [loss for losses in trained["step_losses"] for loss in losses]
    points = [("step/loss", loss, when, step) for step, loss in enumerate(steps) if loss is not None]
    for epoch in trained["history"]:
        points += epoch_points(epoch, when)
    journal.metrics(points)
    if weights:
        journal.artifact(weights, "weights")
    journal.append("tags", tags={"weights.sha256": digest})
    journal.append("end", status=trained["status"], time=when)
    return journal


def evaluation(journal: Journal, run: str, weights: Path | None, trained: dict[str, Any], measured: dict[str, Any],
               model: str, when: int | None = None) -> None:  # fmt: skip
    """Write what an evaluation adds: the test metrics, the figures and, where the weights are at hand, the model.

    Args:
        trained, measured: the contents of train.json and test.json.
        model: its name in params.yaml.
        when: in ms since 1970; default: now.
    """
    _test_metrics(journal, measured, now_ms() if when is None else when)
    for path in figures.of_run(journal.folder, run, trained["history"], measured["confusion"]):
        journal.artifact(path, FIGURES)
    if weights and trained["status"] == "completed":
        journal.model(weights, run, model)


def _test_metrics(journal: Journal, measured: dict[str, Any], when: int) -> None:
    """Write the test metrics that are not there yet; at step 0, where MLflow draws a bar for each run."""
    known = journal.recorded()
    values = {
        "test/loss": measured["test_loss"],
        "test/accuracy": measured["test_accuracy"],
        "test/expected_calibration_error": measured["expected_calibration_error"],
    } | {f"test_class_accuracy/{name}": value for name, value in measured["class_accuracy"]}
    points = [(key, value, when, 0) for key, value in values.items() if value not in (None, known.get((key, 0)))]
    if points:
        journal.metrics(points)
