"""What is said about a run besides its figures: the facts that open its journal, and how it ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optlab import data, models, optimizers, processes, project
from optlab.colours import colour
from optlab.config import Config, run_id
from optlab.journal import Journal, epoch_points, now_ms
from optlab.record import RunFiles

EXPERIMENT = "optlab"
DATASET_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def experiment(folder: Path) -> str:
    """The MLflow experiment of a pipeline: the project's name, with the folder's where it is not the top."""
    return EXPERIMENT if folder == Path() else f"{EXPERIMENT}-{folder.name}"


def facts(config: Config, folder: Path, name: str, seed: int, conditions: dict[str, Any]) -> dict[str, Any]:
    """The fields of a journal's first event."""
    params: dict[str, Any] = {"model": config.model, "optimizer": name, "seed": seed}
    params |= {f"data.{key}": value for key, value in config.data.model_dump().items()}
    params |= {f"training.{key}": value for key, value in config.training.model_dump(exclude={"schedule"}).items()}
    params |= {f"schedule.{key}": value for key, value in config.training.schedule.model_dump().items()}
    params["device"] = conditions["device"]
    git = project.git_state()
    tags = git | {
        "optlab.run": run_id(name, seed),
        "optimizer": name,
        "status": "running",
        "mlflow.runColor": colour(name),
        "mlflow.source.name": "pipeline/train.py",
        "mlflow.source.type": "LOCAL",
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


@contextmanager
def ending(journal: Journal) -> Iterator[None]:
    """If what is inside does not end by itself, close the journal as `interrupted` or `failed`, with all it has."""

    try:
        with processes.terminable():
            yield
    except KeyboardInterrupt:
        journal.end("interrupted")
        raise
    except BaseException:
        journal.end("failed")
        raise


def restored(config: Config, folder: Path, name: str, seed: int, trained: dict[str, Any], digest: str) -> Journal:
    """A journal for weights that were not trained here but came with the record: its times are those of now."""
    files = RunFiles(folder, name, seed)
    journal = Journal.create(files.id)
    unknown = {"device": "unknown", "cpu": "unknown", "cpu_capability": "unknown", "python": "unknown"}
    opening = facts(config, folder, name, seed, unknown | {"packages": {"torch": "unknown"}})
    stepper = optimizers.build(name, config.optimizer(name), models.build(config.model, seed))
    opening["params"] |= {f"optimizer.{key}": str(value) for key, value in stepper.hyperparameters().items()}
    opening["tags"]["optlab.restored"] = "yes"
    journal.append("start", **opening)
    when = now_ms()
    steps = [loss for losses in trained["step_losses"] for loss in losses]
    points = [("step/loss", loss, when, step) for step, loss in enumerate(steps) if loss is not None]
    for epoch in trained["history"]:
        points += epoch_points(epoch, when)
    journal.metrics(points)
    journal.artifact(files.weights, "weights")
    journal.append("tags", tags={"weights.sha256": digest})
    journal.end(trained["status"])
    return journal


def test_metrics(journal: Journal, measured: dict[str, Any]) -> None:
    """Write the test metrics; at step 0, where MLflow draws a bar for each run."""
    when = now_ms()
    values = {
        "test/loss": measured["test_loss"],
        "test/accuracy": measured["test_accuracy"],
        "test/expected_calibration_error": measured["expected_calibration_error"],
    } | {f"test_class_accuracy/{name}": value for name, value in measured["class_accuracy"]}
    points = [(key, value, when, 0) for key, value in values.items() if value is not None]
    if points:
        journal.metrics(points)
