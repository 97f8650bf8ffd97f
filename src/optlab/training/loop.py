"""The training loop: a function of (parameters, data, seed) that calls callbacks and a checkpointer."""

import math
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optlab.data.cifar10 import Split, Splits, convert_to_input, iterate_epoch_batches
from optlab.records import EpochMetrics, Status, ValidationMetrics
from optlab.schema.optimizer import Schedule
from optlab.schema.parameters import Config, TrainingConfig, format_run_id
from optlab.system.errors import ResourceError, StepError, summarize_error
from optlab.training import guards, models, optimizers, schedules
from optlab.training.models import EVALUATION_BATCH_SIZE
from optlab.training.optimizer_driver import OptimizerDriver
from optlab.training.optimizer_factory import TrainingContext


@dataclass
class TrainResult:
    """State of a training, and its result at the end.

    Attributes:
        status: `diverged` if a loss, weight, buffer or output was not finite; the training ends there.
        model: on the CPU in the end, with the weights that are to be evaluated.
        epochs: one entry per epoch that was begun.
        validations: one entry per validation, those at the ends of epochs included.
        step_losses: for each epoch, the float32 loss of every step.
        gradients: for each epoch, the number of computed gradients.
        hyperparameters: by name, with the class's defaults.
    """

    status: Status
    model: nn.Module
    epochs: list[EpochMetrics] = field(default_factory=list)
    validations: list[ValidationMetrics] = field(default_factory=list)
    step_losses: list[list[float]] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainStart:
    """Facts about a training before the first step of this process.

    Attributes:
        run: id of the run.
        hyperparameters: as in `TrainResult`.
        n_parameters: number of the model's trainable scalars.
        steps_done: steps of earlier, interrupted processes.
        images_done: images of those steps.
        descriptions: sentences about the parameters of each class, if there are several.
    """

    run: str
    steps_per_epoch: int
    hyperparameters: dict[str, Any]
    n_parameters: int
    steps_done: int
    images_done: int
    descriptions: list[str] = field(default_factory=list)


class Callback:
    """Observer of a training; the methods do nothing by default."""

    def on_start(self, start: TrainStart) -> None:
        """Called before the first step of this process."""

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        """Called after a step: `step` counts from 0 over the whole run, `images` is the size of its batch."""

    def on_validation(self, validation: ValidationMetrics) -> None:
        """Called after each validation, also at the end of an epoch."""

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Called after an epoch and its validation."""

    def on_end(self, status: Status) -> None:
        """Called after the last epoch."""


class Checkpointer:
    """Storage of a training's state, to resume it after a kill; this one stores nothing."""

    def restore(self, result: TrainResult, driver: OptimizerDriver) -> bool:
        """Restore model, optimizers and result from the last checkpoint; return whether there is one."""
        return False

    def on_step_end(self, result: TrainResult, driver: OptimizerDriver) -> None:
        """Called after each step, whose loss is in `result` already; saves if it is time."""


def train(config: Config, name: str, seed: int, splits: Splits, device: torch.device,
          callbacks: Sequence[Callback] = (), checkpointer: Checkpointer | None = None) -> TrainResult:  # fmt: skip
    """Train one optimizer with one seed, from the last checkpoint if there is one; the result is the same.

    Raises:
        ConfigError: the model or the optimizer cannot be built.
        StepError: the model or the optimizer fails in a step.
        ResourceError: memory, disk or GPU fail.
    """
    torch_settings = guards.read_torch_settings()
    model = models.build(config.model, seed)
    models.initialize_from_images(config.model, model, splits.train.images)
    model.to(device)
    driver = optimizers.build(name, config.get_optimizer(name), TrainingContext.from_config(config, model))
    result = TrainResult("completed", model, hyperparameters=driver.get_hyperparameters())
    device_splits = Splits(splits.train.to(device), splits.validation.to(device))
    schedule, checkpointer = config.get_schedule(name), checkpointer or Checkpointer()
    trainer = _Trainer(config, schedule, seed, device_splits, driver, result, callbacks, checkpointer, torch_settings)
    finite_names = _find_finite_tensors(model)
    checkpointer.restore(result, driver)
    start = _make_train_start(format_run_id(name, seed), result, config, driver.describe())
    for callback in callbacks:
        callback.on_start(start)
    for epoch in range(len(result.epochs) + 1, config.training.epochs + 1):
        trainer.run_epoch(epoch)
        result.epochs.append(trainer.summarize_epoch(epoch))
        for callback in callbacks:
            callback.on_epoch(result.epochs[-1])
        if not (
            _has_all_metrics(result.epochs[-1], len(device_splits.validation) > 0)
            and finite_names <= _find_finite_tensors(model)
        ):
            result.status = "diverged"
            break
    for callback in callbacks:
        callback.on_end(result.status)
    driver.eval()  # without a validation split, this is the first call
    model.to("cpu").eval()
    return result


@dataclass(frozen=True)
class _Trainer:
    """Runs epochs, and adds their results to `result`."""

    config: Config
    schedule: Schedule
    seed: int
    splits: Splits
    driver: OptimizerDriver
    result: TrainResult
    callbacks: Sequence[Callback]
    checkpointer: Checkpointer
    torch_settings: dict[str, Any]

    def run_epoch(self, epoch: int) -> None:
        """Run the remaining steps of an epoch, up to the first whose loss is not finite."""
        settings, train_split, result = self.config.training, self.splits.train, self.result
        if len(result.step_losses) < epoch:
            result.step_losses.append([])
            result.gradients.append(0)
        losses = result.step_losses[-1]
        steps = self.config.steps_per_epoch
        validation_points = (
            compute_validation_steps(settings.validations_per_epoch, steps) if len(self.splits.validation) else set()
        )
        batches = iterate_epoch_batches(
            train_split, self.config.data, self.seed, epoch, settings.batch_size, len(losses)
        )
        self._set_train_mode()
        for images, labels in batches:
            step = (epoch - 1) * steps + len(losses)
            self.driver.scale_lr(schedules.compute_lr_factor(self.schedule, step, steps, settings.epochs))
            losses.append(self._run_step(images, labels, step))
            result.gradients[-1] += self.driver.gradients
            for callback in self.callbacks:
                callback.on_step(epoch, step, losses[-1], len(labels))
            if not math.isfinite(losses[-1]):
                break
            if len(losses) in validation_points:
                self._validate()
                self._set_train_mode()
            self.checkpointer.on_step_end(result, self.driver)

    def _run_step(self, images: Tensor, labels: Tensor, step: int) -> float:
        try:
            with guards.guard_resources(f"step {step}"):
                loss = train_step(self.result.model, self.driver, images, labels, self.config.training)
            if change := guards.restore_torch_settings(self.torch_settings):
                raise StepError(f"step {step} {change}")
            return loss
        except (StepError, ResourceError):
            raise
        except Exception as error:  # whatever a foreign class raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise StepError(
                f"step {step} fails: {type(error).__name__}: {summarize_error(error)} ({last.filename}, line "
                f"{last.lineno})"
            ) from error

    def summarize_epoch(self, epoch: int) -> EpochMetrics:
        """Return the epoch's metrics, with those of the validation at its end."""
        losses = self.result.step_losses[-1]
        validation = self._validate() if len(self.splits.validation) and math.isfinite(losses[-1]) else None
        batch_size = self.config.training.batch_size
        metrics = _compute_metrics(losses, batch_size, len(self.splits.train), validation)
        return EpochMetrics(epoch=epoch, lr=self.driver.lr, gradients=self.result.gradients[-1], **metrics)

    def _set_train_mode(self) -> None:
        self.result.model.train()
        self.driver.train()

    def _validate(self) -> ValidationMetrics:
        self.driver.eval()
        steps_done = sum(len(losses) for losses in self.result.step_losses)
        self.result.validations.append(validate(steps_done, self.result.model, self.splits.validation))
        for callback in self.callbacks:
            callback.on_validation(self.result.validations[-1])
        return self.result.validations[-1]


def train_step(
    model: nn.Module, driver: OptimizerDriver, images: Tensor, labels: Tensor, settings: TrainingConfig
) -> float:
    """Take one step; return the float32 loss before it."""

    @torch.enable_grad()
    def closure() -> Tensor:  # some classes call it without recording of gradients
        driver.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = F.cross_entropy(model(images), labels, label_smoothing=settings.label_smoothing)
        loss.backward(create_graph=driver.create_graph)
        return loss

    return float(driver.step(closure))


@torch.inference_mode()
def predict(model: nn.Module, split: Split) -> Tensor:
    """Return fp32 logits of shape (n, 10) on the CPU; puts the model into evaluation mode."""
    model.eval()
    return torch.cat(
        [model(convert_to_input(images)).float().cpu() for images in split.images.split(EVALUATION_BATCH_SIZE)]
    )


def compute_loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean cross entropy in nats, and the fraction of images whose largest logit is the label's."""
    loss = F.cross_entropy(logits.double(), labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def compute_validation_steps(count: int, steps: int) -> set[int]:
    """Return the steps of an epoch after which there is a validation, besides the one at its end.

    Args:
        count: number of validations per epoch, at equal distances.
        steps: number of steps per epoch.
    """
    return {round(number * steps / count) for number in range(1, count)} - {0, steps}


def validate(steps_done: int, model: nn.Module, split: Split) -> ValidationMetrics:
    """Return the metrics of the validation split; None each if a logit is not finite."""
    logits = predict(model, split)
    loss, accuracy = compute_loss_and_accuracy(logits, split.labels.cpu())
    # A label's loss can be finite beside another class's logit that is not.
    if not (logits.isfinite().all() and math.isfinite(loss)):
        return ValidationMetrics(step=steps_done, loss=None, accuracy=None)
    return ValidationMetrics(step=steps_done, loss=loss, accuracy=accuracy)


def _compute_metrics(
    losses: list[float], batch_size: int, size: int, validation: ValidationMetrics | None
) -> dict[str, Any]:
    """Return an epoch's metrics; the first that is not finite, and all after it, are None."""

    def yield_metrics() -> Iterator[float | None]:
        last = size - batch_size * (len(losses) - 1)
        yield math.fsum([*losses[:-1], losses[-1] * last / batch_size]) * batch_size / size
        yield float(torch.tensor(losses, dtype=torch.float32).numpy().cumsum()[-1])
        if validation is not None:
            yield from (validation.loss, validation.accuracy)

    names = ("train_loss", "running_loss", "validation_loss", "validation_accuracy")
    return dict(
        zip_longest(names, takewhile(lambda figure: figure is not None and math.isfinite(figure), yield_metrics()))
    )


def _has_all_metrics(epoch: EpochMetrics, has_validation: bool) -> bool:
    """Return whether the last metric, and so every one, is finite."""
    return (epoch.validation_accuracy if has_validation else epoch.running_loss) is not None


def _find_finite_tensors(model: nn.Module) -> set[str]:
    """Return the names of finite weights and buffers: a mask, for one, may have infinities from the start."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name for name, value in tensors if value.isfinite().all()}


def _make_train_start(run: str, result: TrainResult, config: Config, descriptions: list[str]) -> TrainStart:
    n_parameters = sum(value.numel() for value in result.model.parameters() if value.requires_grad)
    size, batch_size = config.data.train_size, config.training.batch_size
    images = sum(min(len(losses) * batch_size, size) for losses in result.step_losses)
    steps_done = sum(len(losses) for losses in result.step_losses)
    return TrainStart(
        run, config.steps_per_epoch, result.hyperparameters, n_parameters, steps_done, images, descriptions
    )
