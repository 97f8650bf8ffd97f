"""The training loop: a function of (parameters, data, seed), told to observers as it goes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optlab.config.parameters import Config, run_id
from optlab.data.dataset import Split, Splits, batches, epoch_order, to_input
from optlab.record.contents import Epoch, Status
from optlab.training import models, optimizers, schedules

EVALUATION_BATCH = 500


@dataclass
class Outcome:
    """A finished training.

    Attributes:
        status: `diverged` if a loss, a weight, a buffer or an output was not finite: the training stopped there.
        epochs: one entry per epoch begun.
        step_losses: for each epoch, the float32 loss of every step.
        model: with the weights as they are to be evaluated, on the CPU.
        hyperparameters: those in force, by name, the class's defaults as well.
    """

    status: Status
    model: nn.Module
    epochs: list[Epoch] = field(default_factory=list)
    step_losses: list[list[float]] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What is known before the first step.

    Attributes:
        run: its id.
        steps_per_epoch: the last one of an epoch may see fewer images.
        hyperparameters: as in `Outcome`.
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


class Observer:
    """Is told what happens in a training; does nothing by default, and can change nothing."""

    def on_start(self, start: Start) -> None:
        """Before the first step of this process."""

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        """After a step: `step` counts from 0 over the whole run, `images` are those of this batch."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After an epoch and its validation."""

    def on_end(self, status: Status) -> None:
        """After the last epoch."""


class Saver:
    """Keeps what a killed training goes on from; this one keeps nothing."""

    def restore(self, outcome: Outcome, stepper: optimizers.Stepper) -> bool:
        """Bring model, optimizers and outcome to where they were saved last; False, and no change, if never."""
        return False

    def after_step(self, outcome: Outcome, stepper: optimizers.Stepper) -> None:
        """Perhaps save; the losses of the step are in the outcome already."""


def train(config: Config, name: str, seed: int, splits: Splits, device: torch.device,
          observers: Sequence[Observer] = (), saver: Saver | None = None) -> Outcome:  # fmt: skip
    """Train one optimizer with one seed, from where `saver` has it or from the start: the result is the same.

    Raises:
        ConfigError: the model or the optimizer cannot be built.
    """
    settings, spec, saver = config.training, config.optimizer(name), saver or Saver()
    model = models.build(config.model, seed).to(device)
    stepper = optimizers.build(name, spec, model)
    train_split, validation = splits.train.to(device), splits.validation.to(device)
    steps = math.ceil(len(train_split) / settings.batch_size)
    outcome = Outcome("completed", model, hyperparameters=stepper.hyperparameters())
    finite = _finite_tensors(model)
    saver.restore(outcome, stepper)
    start = _start(run_id(name, seed), outcome, len(train_split), settings.batch_size)
    for observer in observers:
        observer.on_start(start)
    for epoch in range(len(outcome.epochs) + 1, settings.epochs + 1):
        if len(outcome.step_losses) < epoch:
            outcome.step_losses.append([])
        losses = outcome.step_losses[-1]  # of the steps of this epoch that are done
        order = epoch_order(seed, epoch, len(train_split), config.data.shuffle)[len(losses) * settings.batch_size :]
        model.train()
        stepper.train()
        for images, labels in batches(train_split, order, settings.batch_size):
            step = (epoch - 1) * steps + len(losses)
            stepper.scale_lr(schedules.factor(settings.schedule, step, steps, settings.epochs))
            losses.append(train_step(model, stepper, images, labels, settings.precision))
            for observer in observers:
                observer.on_step(epoch, step, losses[-1], len(labels))
            if not math.isfinite(losses[-1]):
                break
            saver.after_step(outcome, stepper)
        stepper.eval()
        outcome.epochs.append(_summary(epoch, losses, stepper.lr, settings.batch_size, train_split, model, validation))
        for observer in observers:
            observer.on_epoch(outcome.epochs[-1])
        if not (_is_whole(outcome.epochs[-1], validation) and finite <= _finite_tensors(model)):
            outcome.status = "diverged"
            break
    for observer in observers:
        observer.on_end(outcome.status)
    model.to("cpu").eval()
    return outcome


def train_step(model: nn.Module, stepper: optimizers.Stepper, images: Tensor, labels: Tensor, precision: str) -> float:
    """One update; returns the loss before it, as float32 gave it."""

    def closure() -> Tensor:
        stepper.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
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


def _summary(epoch: int, losses: list[float], lr: float, batch_size: int, trained: Split, model: nn.Module,
             validation: Split) -> Epoch:  # fmt: skip
    """The epoch's figures, up to the first that is not finite; it and those after it are None."""

    def figures() -> Iterator[float]:
        last = len(trained) - batch_size * (len(losses) - 1)
        yield math.fsum([*losses[:-1], losses[-1] * last / batch_size]) * batch_size / len(trained)
        yield float(torch.tensor(losses, dtype=torch.float32).numpy().cumsum()[-1])
        if len(validation):
            logits = predict(model, validation)
            # A label's loss can be finite beside another class's logit that is not.
            yield from loss_and_accuracy(logits, validation.labels.cpu()) if logits.isfinite().all() else [math.nan]

    names = ("train_loss", "running_loss", "validation_loss", "validation_accuracy")
    return Epoch(epoch=epoch, lr=lr, **dict(zip_longest(names, takewhile(math.isfinite, figures()))))


def _is_whole(epoch: Epoch, validation: Split) -> bool:
    """Whether it has the last of its figures, and so all of them."""
    return (epoch.validation_accuracy if len(validation) else epoch.running_loss) is not None


def _finite_tensors(model: nn.Module) -> set[str]:
    """The names of the weights and buffers that are finite: a mask, say, can have infinities from the start."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name for name, value in tensors if value.isfinite().all()}


def _start(run: str, outcome: Outcome, size: int, batch_size: int) -> Start:
    parameters = sum(value.numel() for value in outcome.model.parameters() if value.requires_grad)
    images = sum(min(len(losses) * batch_size, size) for losses in outcome.step_losses)
    steps = math.ceil(size / batch_size)
    done = sum(len(losses) for losses in outcome.step_losses)
    return Start(run, steps, outcome.hyperparameters, parameters, done, images)
