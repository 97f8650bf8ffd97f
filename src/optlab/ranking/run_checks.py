"""Checks of the files of a record's runs that need no training: what one number says about another one."""

import math
import tempfile
from pathlib import Path
from typing import TypeVar

import numpy as np

from optlab.records import Choice, Environment, EpochMetrics, EvalRecord, Record, RunFiles, TrainRecord
from optlab.schema.parameters import CLASS_NAMES, SPLIT_SIZES, Config, format_count
from optlab.system.errors import RecordError
from optlab.training.loop import compute_validation_steps

_RecordType = TypeVar("_RecordType", bound=Record)


def read_canonical(record_type: type[_RecordType], path: Path) -> _RecordType:
    """Read a file of a record.

    Raises:
        RecordError: it is missing, damaged, or has other bytes than the stages write, such as unknown or missing keys.
    """
    if not path.is_file():
        raise RecordError(f"{path}: missing: `optlab submit {path.parents[2].name}` adds what the record lacks")
    try:
        record = record_type.read(path)
    except RecordError as error:
        raise RecordError(f"{path}: damaged, or of another version") from error
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        record.write(written)
        if written.read_bytes() != path.read_bytes():
            raise RecordError(f"{path}: has not the bytes that the stages write")
    return record


def check_run(config: Config, files: RunFiles, choice: Choice) -> None:
    """Check that the files of a run do not contradict each other, its choice or the parameters.

    Raises:
        RecordError: they do.
    """
    environment = read_canonical(Environment, files.environment)
    trained, tested = read_canonical(TrainRecord, files.training), read_canonical(EvalRecord, files.test)
    if trained.weights_sha256 != tested.weights_sha256:
        raise RecordError(f"{files.test}: of other weights than {files.training}")
    if environment.weights_sha256 != trained.weights_sha256:
        raise RecordError(f"{files.environment}: of other weights than {files.training}")
    if tested.status not in (trained.status, "diverged"):
        raise RecordError(f"{files.test}: {tested.status}, where the training {trained.status}")
    _check_hyperparameters(trained, choice, files.training)
    _check_lengths(config, trained, files.training)
    _check_validations(config, trained, files.training)
    for epoch, losses in zip(trained.history, trained.step_losses, strict=True):
        _check_epoch(config, epoch, losses, files.training)
    for key in ("train_loss", "validation_loss", "validation_accuracy"):
        if getattr(trained, key) != getattr(trained.history[-1], key):
            raise RecordError(f"{files.training}: {key} is not that of the last epoch")
    _check_evaluation(config, tested, files.test)


def _check_hyperparameters(trained: TrainRecord, choice: Choice, path: Path) -> None:
    """Compare the numbers that the run was trained with with those that its search chose."""
    used = dict(trained.hyperparameters)
    for key, value in choice.entry.items():
        if isinstance(value, int | float) and key in used and not _is_same_number(used[key], value):
            raise RecordError(f"{path}: trained with {key} {used[key]}, and {value} was chosen")


def _is_same_number(text: str, value: float) -> bool:
    try:
        return text == str(value) or float(text) == value
    except ValueError:
        return False


def _check_lengths(config: Config, trained: TrainRecord, path: Path) -> None:
    """Check the numbers of epochs and steps; a training that diverges ends earlier."""
    steps = [len(losses) for losses in trained.step_losses]
    if not trained.history or len(trained.history) != trained.epochs or len(steps) != trained.epochs:
        raise RecordError(f"{path}: has {len(trained.history)} epochs in `history`, {len(steps)} in `step_losses`, "
                          f"and `epochs` is {trained.epochs}")  # fmt: skip
    wanted = [config.steps_per_epoch] * config.training.epochs
    is_part = steps[:-1] == wanted[: len(steps) - 1] and 0 < steps[-1] <= config.steps_per_epoch
    if steps != wanted and not (trained.status == "diverged" and is_part and len(steps) <= len(wanted)):
        raise RecordError(
            f"{path}: not of {config.total_steps} steps in {format_count(config.training.epochs, 'epoch')}"
        )


def _check_validations(config: Config, trained: TrainRecord, path: Path) -> None:
    """Check the steps of all validations, and that an epoch has the values of the one at its end."""
    per_epoch, done = config.steps_per_epoch, sum(map(len, trained.step_losses))
    points = {*compute_validation_steps(config.training.validations_per_epoch, per_epoch), per_epoch}
    due = [epoch * per_epoch + point for epoch in range(trained.epochs) for point in sorted(points)]
    is_finite = trained.step_losses[-1][-1] is not None  # none follows a step whose loss is not
    wanted = [step for step in due if step < done or (step == done and is_finite)]
    if [each.step for each in trained.validations] != wanted:
        raise RecordError(f"{path}: its validations are not those after the steps {', '.join(map(str, wanted))}")
    at_end = {each.step: (each.loss, each.accuracy) for each in trained.validations}
    for index, epoch in enumerate(trained.history, 1):
        if (epoch.validation_loss, epoch.validation_accuracy) != at_end.get(index * per_epoch, (None, None)):
            raise RecordError(f"{path}: epoch {index} and its last validation differ")


def _check_epoch(config: Config, epoch: EpochMetrics, losses: list[float | None], path: Path) -> None:
    """Compute the losses of an epoch again from those of its steps."""
    where = f"{path}: epoch {epoch.epoch}"
    if epoch.gradients is None or epoch.gradients < len(losses):
        raise RecordError(f"{where}: {epoch.gradients} gradients in {len(losses)} steps")
    finite = [float(np.float32(loss)) for loss in losses if loss is not None]
    if len(finite) < len(losses):
        if epoch.train_loss is not None or epoch.running_loss is not None:
            raise RecordError(f"{where}: has a loss, although one of its steps has none")
        return
    size, batch_size = config.data.train_size, config.training.batch_size
    last = size - batch_size * (len(losses) - 1)
    mean = (math.fsum(finite[:-1]) * batch_size + finite[-1] * last) / size
    if epoch.train_loss is None or not math.isclose(epoch.train_loss, mean, rel_tol=1e-9):
        raise RecordError(f"{where}: train_loss is {epoch.train_loss}, and the mean over its steps {mean}")
    total = float(np.array(finite, np.float32).cumsum()[-1])
    if epoch.running_loss != (total if math.isfinite(total) else None):
        raise RecordError(f"{where}: running_loss is {epoch.running_loss}, and the sum over its steps {total}")


def _check_evaluation(config: Config, tested: EvalRecord, path: Path) -> None:
    """Compute the accuracies again from the confusion matrix; there is none where the outputs are not finite."""
    values = (tested.test_loss, tested.test_accuracy, tested.expected_calibration_error)
    if tested.status == "diverged" and not tested.confusion:
        if any(each is not None for each in values) or tested.class_accuracy or tested.correct:
            raise RecordError(f"{path}: has metrics, and no confusion matrix")
        return
    n = SPLIT_SIZES[config.data.dataset]["test"]
    hits = [row[index] for index, row in enumerate(tested.confusion)]
    per_class = n // len(CLASS_NAMES)
    if [sum(row) for row in tested.confusion] != [per_class] * len(CLASS_NAMES) or tested.correct_mask is None:
        raise RecordError(f"{path}: not of the {n} images of the test split, {per_class} of each class")
    if tested.test_accuracy != sum(hits) / n:
        raise RecordError(f"{path}: test_accuracy is {tested.test_accuracy}, and {sum(hits)} of {n} images are correct")
    if tested.class_accuracy != [(name, hit / per_class) for name, hit in zip(CLASS_NAMES, hits, strict=True)]:
        raise RecordError(f"{path}: class_accuracy is not that of the confusion matrix")
    loss, error = tested.test_loss, tested.expected_calibration_error
    if loss is None or loss < 0 or error is None or not 0 <= error <= 1:
        raise RecordError(f"{path}: test_loss is {loss}, expected_calibration_error is {error}")
