"""The training loop: a function of (parameters, data, seed), told to observers as it goes."""

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
    """A finished training.

    Attributes:
        status: `diverged` if a loss, a weight, a buffer or an output was not finite: the training stopped there.
        epochs: one entry per epoch begun.
        validations: one entry each time; at the end of an epoch its figures are those of the epoch.
        step_losses: for each epoch, the float32 loss of every step.
        gradients: for each epoch, how many were computed.
        model: with the weights as they are to be evaluated, on the CPU.
        hyperparameters: those in force, by name, the class's defaults as well.
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
    """What is known before the first step.

    Attributes:
        run: its id.
        steps_per_epoch: the last one of an epoch may see fewer images.
        hyperparameters: as in `TrainResult`.
        descriptions: sentences about which parameters each class has, where there are several.
        n_parameters: how many trainable numbers the model has.
        steps_done: steps that an earlier, interrupted process has done.
        images_done: the images of those steps.
    """

    run: str
    steps_per_epoch: int
    hyperparameters: dict[str, Any]
    n_parameters: int
    steps_done: int
    images_done: int
    descriptions: list[str] = field(default_factory=list)


class Callback:
    """Is told what happens in a training; does nothing by default, and can change nothing."""

    def on_start(self, start: TrainStart) -> None:
        """Before the first step of this process."""

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        """After a step: `step` counts from 0 over the whole run, `images` are those of this batch."""

    def on_validation(self, validation: ValidationMetrics) -> None:
        """After each, also at the end of an epoch."""

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """After an epoch and its validation."""

    def on_end(self, status: Status) -> None:
        """After the last epoch."""


class Checkpointer:
    """Keeps what a killed training goes on from; this one keeps nothing."""

    def restore(self, result: TrainResult, driver: OptimizerDriver) -> bool:
        """Bring model, optimizers and outcome to where they were saved last; False, and no change, if never."""
        return False

    def on_step_end(self, result: TrainResult, driver: OptimizerDriver) -> None:
        """Perhaps save; the losses of the step are in the outcome already."""


def train(config: Config, name: str, seed: int, splits: Splits, device: torch.device,
          callbacks: Sequence[Callback] = (), checkpointer: Checkpointer | None = None) -> TrainResult:  # fmt: skip
    """Train one optimizer with one seed, from where `checkpointer` has it or from the start: the result is the same.

    Raises:
        ConfigError: the model or the optimizer cannot be built.
        StepError: the model or the optimizer fails in a step.
        LackError: the machine does: there is no memory, no room on the disk, a GPU does not answer.
    """
    torch_settings = guards.read_torch_settings()
    model = models.build(config.model, seed).to(device)
    driver = optimizers.build(name, config.get_optimizer(name), TrainingContext.from_config(config, model))
    result = TrainResult("completed", model, hyperparameters=driver.get_hyperparameters())
    device_splits = Splits(splits.train.to(device), splits.validation.to(device))
    trainer = _Trainer(
        config,
        config.get_schedule(name),
        seed,
        device_splits,
        driver,
        result,
        callbacks,
        checkpointer or Checkpointer(),
        torch_settings,
    )
    finite_names = _find_finite_tensors(model)
    trainer.checkpointer.restore(result, driver)
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
    driver.eval()  # without a validation split, nobody has asked for that yet
    model.to("cpu").eval()
    return result


@dataclass(frozen=True)
class _Trainer:
    """A training under way; how far it is, is in the outcome."""

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
        """Those of the epoch that are not done yet, up to the first whose loss is not finite."""
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
        """The epoch's figures, with those of the validation at its end."""
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
    """One update; returns the loss before it, as float32 gave it."""

    @torch.enable_grad()
    def closure() -> Tensor:  # some call it while torch records nothing
        driver.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = F.cross_entropy(model(images), labels, label_smoothing=settings.label_smoothing)
        loss.backward(create_graph=driver.create_graph)
        return loss

    return float(driver.step(closure))


@torch.inference_mode()
def predict(model: nn.Module, split: Split) -> Tensor:
    """Logits in fp32, shape (n, 10), on the CPU; the model is put into evaluation mode."""
    model.eval()
    return torch.cat(
        [model(convert_to_input(images)).float().cpu() for images in split.images.split(EVALUATION_BATCH_SIZE)]
    )


def compute_loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross entropy in nats, and the fraction whose largest logit is the label's."""
    loss = F.cross_entropy(logits.double(), labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def compute_validation_steps(count: int, steps: int) -> set[int]:
    """After how many of an epoch's steps there is a validation, besides the one at its end.

    Args:
        count: of the epoch's validations, at equal distances.
        steps: of the epoch.
    """
    return {round(number * steps / count) for number in range(1, count)} - {0, steps}


def validate(steps_done: int, model: nn.Module, split: Split) -> ValidationMetrics:
    """The validation split's figures, after so many steps."""
    logits = predict(model, split)
    loss, accuracy = compute_loss_and_accuracy(logits, split.labels.cpu())
    # A label's loss can be finite beside another class's logit that is not.
    if not (logits.isfinite().all() and math.isfinite(loss)):
        return ValidationMetrics(step=steps_done, loss=None, accuracy=None)
    return ValidationMetrics(step=steps_done, loss=loss, accuracy=accuracy)


def _compute_metrics(
    losses: list[float], batch_size: int, size: int, validation: ValidationMetrics | None
) -> dict[str, Any]:
    """An epoch's, up to the first that is not finite; it and those after it are None."""

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
    """Whether it has the last of its figures, and so all of them."""
    return (epoch.validation_accuracy if has_validation else epoch.running_loss) is not None


def _find_finite_tensors(model: nn.Module) -> set[str]:
    """The names of the weights and buffers that are finite: a mask, say, can have infinities from the start."""
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
