"""Check of a model: a training step and an evaluation, at the sizes of batches that occur."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optlab.schema.parameters import NUM_CLASSES, DataConfig, TrainingConfig
from optlab.system.errors import ConfigError, ResourceError, summarize_error
from optlab.training import guards
from optlab.training.models import (
    EVALUATION_BATCH_SIZE,
    INITIALIZATION_IMAGES,
    MODELS,
    build,
    initialize_from_images,
)

_MAX_BATCH_SIZE = 2048  # images: more would take minutes, and are tried with two


def check(name: str, model: nn.Module, data: DataConfig, training: TrainingConfig) -> None:
    """Refuse a model that cannot be trained; built-in ones train at any batch size.

    Raises:
        ConfigError: a step or an evaluation fails, or would train nothing; the message says what to do.
        ResourceError: the machine lacks memory.
    """
    _check_parameters(name, model)
    with guards.guard_torch_settings(f"model: {name}"):
        _check_logits(name, model.eval(), torch.zeros(2, 3, 32, 32))
    model.train()
    if name not in MODELS:
        _check_batch_sizes(name, data, training)


def find_output_weight(name: str) -> str:
    """Return the name of the weight of a model's output layer: the last parameter of two dimensions or more.

    Raises:
        ConfigError: the model cannot be built, or has no such parameter.
        ResourceError: the machine lacks memory.
    """
    parameters = build(name, seed=0).named_parameters()
    found = [key for key, value in parameters if not is_lazy(value) and value.ndim >= 2]
    if not found:
        raise ConfigError(
            f"model {name} has no weight with two or more dimensions, so its output layer cannot be found"
        )
    return found[-1]


@functools.cache  # several optimizers share it
def _check_batch_sizes(name: str, data: DataConfig, training: TrainingConfig) -> None:
    model = build(name, seed=0).train()
    with guards.guard_torch_settings(f"model: {name}"):
        count = min(data.train_size, INITIALIZATION_IMAGES)
        initialize_from_images(name, model, torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8))
        last = data.train_size % training.batch_size
        for size in dict.fromkeys((training.batch_size, last or training.batch_size)):
            remedy = (
                f": choose another training.batch_size, for {data.train_size} images leave {last} for the last step"
                if size == last else ""
            )  # fmt: skip
            _check_step(name, model, size if size <= _MAX_BATCH_SIZE else 2, training, remedy)
        model.eval()
        validation_sizes = {
            min(EVALUATION_BATCH_SIZE, data.validation_size),
            data.validation_size % EVALUATION_BATCH_SIZE,
        }
        for size in validation_sizes - {0}:
            _check_logits(name, model, torch.zeros(size, 3, 32, 32))


def _check_parameters(name: str, model: nn.Module) -> None:
    everything = [*model.named_parameters(), *model.named_buffers()]
    lazy = next((key for key, value in everything if is_lazy(value)), None)
    if lazy:
        raise ConfigError(
            f"params.yaml: model: {name}: {lazy} has no shape before the first batch: give the lazy layer its sizes"
        )
    if not any(value.requires_grad and value.numel() for value in model.parameters()):
        raise ConfigError(f"params.yaml: model: {name}: it has no parameter that could be trained")


@torch.inference_mode()
def _check_logits(name: str, model: nn.Module, images: Tensor) -> None:
    try:
        with guards.guard_resources(f"params.yaml: model: {name}"):
            shape: Any = _describe_shape(model(images))
    except ResourceError:
        raise
    except Exception as error:  # whatever a foreign module raises
        shape = f"{type(error).__name__}: {summarize_error(error)}"
    if shape != (len(images), NUM_CLASSES):
        many = "two" if len(images) == 2 else str(len(images))
        raise ConfigError(
            f"params.yaml: model: {name}: for {many} images of shape (3, 32, 32) it must return logits of shape "
            f"({len(images)}, {NUM_CLASSES}), not {shape}"
        )


def _describe_shape(logits: Any) -> Any:
    return tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"


def _check_step(name: str, model: nn.Module, size: int, training: TrainingConfig, remedy: str) -> None:
    where = f"params.yaml: model: {name}: in a training step of {size} image{'s' if size > 1 else ''}"
    images = torch.rand(size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(size) % NUM_CLASSES
    try:
        with guards.guard_resources(f"params.yaml: model: {name}"):
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                logits = model(images)
                shape = _describe_shape(logits)
                if shape != (size, NUM_CLASSES):
                    raise ConfigError(
                        f"{where} it must return logits of shape ({size}, {NUM_CLASSES}), not {shape}{remedy}"
                    )
                loss = F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
            if loss.requires_grad:
                loss.backward()
    except (ConfigError, ResourceError):
        raise
    except Exception as error:  # whatever a foreign module raises
        raise ConfigError(f"{where} it fails: {type(error).__name__}: {summarize_error(error)}{remedy}") from None
    if all(value.grad is None for value in model.parameters()):
        raise ConfigError(f"{where} no gradient reaches its parameters: leave its output attached to them")
    model.zero_grad()
