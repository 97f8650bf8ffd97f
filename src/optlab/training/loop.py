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

from optlab.config.entries import Schedule
from optlab.config.parameters import Config, Training, run_id
from optlab.data.dataset import Split, Splits, epoch_batches, to_input
from optlab.record.contents import Epoch, Status, Validation
from optlab.system.errors import LackError, StepError, one_line
from optlab.training import faults, models, optimizers, process_settings, schedules
from optlab.training.construction import Context
from optlab.training.models import EVALUATION_BATCH
from optlab.training.stepping import Stepper


@dataclass
class Outcome:
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
    epochs: list[Epoch] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    step_losses: list[list[float]] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What is known before the first step.

    Attributes:
        run: its id.
        steps_per_epoch: the last one of an epoch may see fewer images.
        hyperparameters: as in `Outcome`.
        described: sentences about which parameters each class has, where there are several.
        parameters: how many trainable numbers the model has.
        steps_done: steps that an earlier, interrupted process has done.
        images_done: the images of those steps.
    """

    run: str
    steps_per_epoch: int
    hyperparameters: dict[str, Any]
    parameters: int
    steps_done: int
    images_done: int
    described: list[str] = field(default_factory=list)


class Observer:
    """Is told what happens in a training; does nothing by default, and can change nothing."""

    def on_start(self, start: Start) -> None:
        """Before the first step of this process."""

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        """After a step: `step` counts from 0 over the whole run, `images` are those of this batch."""

    def on_validation(self, validation: Validation) -> None:
        """After each, also at the end of an epoch."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After an epoch and its validation."""

    def on_end(self, status: Status) -> None:
        """After the last epoch."""


class Saver:
    """Keeps what a killed training goes on from; this one keeps nothing."""

    def restore(self, outcome: Outcome, stepper: Stepper) -> bool:
        """Bring model, optimizers and outcome to where they were saved last; False, and no change, if never."""
        return False

    def after_step(self, outcome: Outcome, stepper: Stepper) -> None:
        """Perhaps save; the losses of the step are in the outcome already."""


def train(config: Config, name: str, seed: int, splits: Splits, device: torch.device,
          observers: Sequence[Observer] = (), saver: Saver | None = None) -> Outcome:  # fmt: skip
    """Train one optimizer with one seed, from where `saver` has it or from the start: the result is the same.

    Raises:
        ConfigError: the model or the optimizer cannot be built.
        StepError: the model or the optimizer fails in a step.
        LackError: the machine does: there is no memory, no room on the disk, a GPU does not answer.
    """
    before = process_settings.current()
    model = models.build(config.model, seed).to(device)
    stepper = optimizers.build(name, config.optimizer(name), Context.of(config, model))
    outcome = Outcome("completed", model, hyperparameters=stepper.hyperparameters())
    own = Splits(splits.train.to(device), splits.validation.to(device))
    training = _Training(
        config, config.schedule(name), seed, own, stepper, outcome, observers, saver or Saver(), before
    )
    finite = _finite_tensors(model)
    training.saver.restore(outcome, stepper)
    start = _start(run_id(name, seed), outcome, config, stepper.described())
    for observer in observers:
        observer.on_start(start)
    for epoch in range(len(outcome.epochs) + 1, config.training.epochs + 1):
        training.steps_of(epoch)
        outcome.epochs.append(training.summary_of(epoch))
        for observer in observers:
            observer.on_epoch(outcome.epochs[-1])
        if not (_is_whole(outcome.epochs[-1], len(own.validation) > 0) and finite <= _finite_tensors(model)):
            outcome.status = "diverged"
            break
    for observer in observers:
        observer.on_end(outcome.status)
    stepper.eval()  # without a validation split, nobody has asked for that yet
    model.to("cpu").eval()
    return outcome


@dataclass(frozen=True)
class _Training:
    """A training under way; how far it is, is in the outcome."""

    config: Config
    schedule: Schedule
    seed: int
    splits: Splits
    stepper: Stepper
    outcome: Outcome
    observers: Sequence[Observer]
    saver: Saver
    process: dict[str, Any]

    def steps_of(self, epoch: int) -> None:
        """Those of the epoch that are not done yet, up to the first whose loss is not finite."""
        settings, train_split, outcome = self.config.training, self.splits.train, self.outcome
        if len(outcome.step_losses) < epoch:
            outcome.step_losses.append([])
            outcome.gradients.append(0)
        losses = outcome.step_losses[-1]
        steps = self.config.steps_per_epoch
        between = validation_steps(settings.validations_per_epoch, steps) if len(self.splits.validation) else set()
        left = epoch_batches(train_split, self.config.data, self.seed, epoch, settings.batch_size, len(losses))
        self._train_mode()
        for images, labels in left:
            step = (epoch - 1) * steps + len(losses)
            self.stepper.scale_lr(schedules.factor(self.schedule, step, steps, settings.epochs))
            losses.append(self._step(images, labels, step))
            outcome.gradients[-1] += self.stepper.gradients
            for observer in self.observers:
                observer.on_step(epoch, step, losses[-1], len(labels))
            if not math.isfinite(losses[-1]):
                break
            if len(losses) in between:
                self._validate()
                self._train_mode()
            self.saver.after_step(outcome, self.stepper)

    def _step(self, images: Tensor, labels: Tensor, step: int) -> float:
        try:
            loss = train_step(self.outcome.model, self.stepper, images, labels, self.config.training)
            if said := process_settings.restore(self.process):
                raise StepError(f"step {step} {said}")
            return loss
        except StepError:
            raise
        except Exception as error:  # whatever a foreign class raises
            if lack := faults.lack(error):
                raise LackError(f"step {step} {lack}") from error
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise StepError(
                f"step {step} fails: {type(error).__name__}: {one_line(error)} ({last.filename}, line {last.lineno})"
            ) from error

    def summary_of(self, epoch: int) -> Epoch:
        """The epoch's figures, with those of the validation at its end."""
        losses = self.outcome.step_losses[-1]
        validated = self._validate() if len(self.splits.validation) and math.isfinite(losses[-1]) else None
        batch_size = self.config.training.batch_size
        figures = _figures(losses, batch_size, len(self.splits.train), validated)
        return Epoch(epoch=epoch, lr=self.stepper.lr, gradients=self.outcome.gradients[-1], **figures)

    def _train_mode(self) -> None:
        self.outcome.model.train()
        self.stepper.train()

    def _validate(self) -> Validation:
        self.stepper.eval()
        done = sum(len(losses) for losses in self.outcome.step_losses)
        self.outcome.validations.append(look(done, self.outcome.model, self.splits.validation))
        for observer in self.observers:
            observer.on_validation(self.outcome.validations[-1])
        return self.outcome.validations[-1]


def train_step(model: nn.Module, stepper: Stepper, images: Tensor, labels: Tensor, settings: Training) -> float:
    """One update; returns the loss before it, as float32 gave it."""

    @torch.enable_grad()
    def closure() -> Tensor:  # some call it while torch records nothing
        stepper.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = F.cross_entropy(model(images), labels, label_smoothing=settings.label_smoothing)
        loss.backward(create_graph=stepper.create_graph)
        return loss

    return float(stepper.step(closure))


@torch.inference_mode()
def predict(model: nn.Module, split: Split) -> Tensor:
    """Logits in fp32, shape (n, 10), on the CPU; the model is put into evaluation mode."""
    model.eval()
    return torch.cat([model(to_input(images)).float().cpu() for images in split.images.split(EVALUATION_BATCH)])


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross entropy in nats, and the fraction whose largest logit is the label's."""
    loss = F.cross_entropy(logits.double(), labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def validation_steps(count: int, steps: int) -> set[int]:
    """After how many of an epoch's steps there is a validation, besides the one at its end.

    Args:
        count: of the epoch's validations, at equal distances.
        steps: of the epoch.
    """
    return {round(number * steps / count) for number in range(1, count)} - {0, steps}


def look(done: int, model: nn.Module, split: Split) -> Validation:
    """The validation split's figures, after so many steps."""
    logits = predict(model, split)
    loss, accuracy = loss_and_accuracy(logits, split.labels.cpu())
    # A label's loss can be finite beside another class's logit that is not.
    if not (logits.isfinite().all() and math.isfinite(loss)):
        return Validation(step=done, loss=None, accuracy=None)
    return Validation(step=done, loss=loss, accuracy=accuracy)


def _figures(losses: list[float], batch_size: int, size: int, validated: Validation | None) -> dict[str, Any]:
    """An epoch's, up to the first that is not finite; it and those after it are None."""

    def figures() -> Iterator[float | None]:
        last = size - batch_size * (len(losses) - 1)
        yield math.fsum([*losses[:-1], losses[-1] * last / batch_size]) * batch_size / size
        yield float(torch.tensor(losses, dtype=torch.float32).numpy().cumsum()[-1])
        if validated is not None:
            yield from (validated.loss, validated.accuracy)

    names = ("train_loss", "running_loss", "validation_loss", "validation_accuracy")
    return dict(zip_longest(names, takewhile(lambda figure: figure is not None and math.isfinite(figure), figures())))


def _is_whole(epoch: Epoch, validated: bool) -> bool:
    """Whether it has the last of its figures, and so all of them."""
    return (epoch.validation_accuracy if validated else epoch.running_loss) is not None


def _finite_tensors(model: nn.Module) -> set[str]:
    """The names of the weights and buffers that are finite: a mask, say, can have infinities from the start."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name for name, value in tensors if value.isfinite().all()}


def _start(run: str, outcome: Outcome, config: Config, described: list[str]) -> Start:
    parameters = sum(value.numel() for value in outcome.model.parameters() if value.requires_grad)
    size, batch_size = config.data.train_size, config.training.batch_size
    images = sum(min(len(losses) * batch_size, size) for losses in outcome.step_losses)
    done = sum(len(losses) for losses in outcome.step_losses)
    return Start(run, config.steps_per_epoch, outcome.hyperparameters, parameters, done, images, described)
