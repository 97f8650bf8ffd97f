"""The configuration of a training step on random images, whose speed a benchmark measures."""

from typing import Any

from optlab.schema.parameters import Config


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
