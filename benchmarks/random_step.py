"""A training step on random images, whose speed a benchmark measures."""

from collections.abc import Callable
from typing import Any

import torch

from optlab.schema.parameters import Config
from optlab.training import determinism, loop, models, optimizers
from optlab.training.optimizer_factory import TrainingContext


def make_config(model: str, batch_size: int, optimizers: dict[str, dict[str, Any]]) -> Config:
    """Return the configuration of a training of one thread, for steps that need no data.

    Args:
        optimizers: name → entry, as in params.yaml.
    """
    return Config.model_validate({
        "model": model,
        "seeds": [0],
        "data": {"train_size": 45000, "validation_size": 10},
        "training": {"epochs": 1, "batch_size": batch_size, "threads": 1},
        "optimizers": optimizers,
    })  # fmt: skip


def prepare(config: Config, optimizer: str) -> Callable[[], float]:
    """Return a function that trains one batch and returns its loss; one batch has been trained already.

    Args:
        optimizer: name of an entry of the configuration, which has no range.
    """
    device = determinism.configure_torch(config.training)
    model = models.build(config.model, 0).to(device)
    driver = optimizers.build(optimizer, config.get_optimizer(optimizer), TrainingContext.from_config(config, model))
    size = config.training.batch_size
    images = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images, labels = images.to(device, memory_format=torch.channels_last), torch.arange(size, device=device) % 10
    model.train()
    driver.train()

    def step() -> float:
        return loop.train_step(model, driver, images, labels, config.training)

    step()
    return step
