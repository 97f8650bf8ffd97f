"""Time of a training step on random images, and the part of it that bf16 saves on this machine."""

import statistics
import time
from collections.abc import Callable

import torch

from optlab.schema.parameters import Config
from optlab.training import determinism, loop, models, optimizers
from optlab.training.optimizer_factory import TrainingContext

_MEASURED_S = 2.0
_MIN_ROUNDS = 3
_MAX_BATCH_SIZE = 256  # images


def prepare_step(config: Config, name: str) -> Callable[[], float]:
    """Return a function that trains one batch of random images and returns its loss; one batch is trained already.

    Args:
        name: of an entry of the configuration, which has no range.
    """
    device = determinism.configure_torch(config.training)
    model = models.build(config.model, 0).to(device)
    driver = optimizers.build(name, config.get_optimizer(name), TrainingContext.from_config(config, model))
    size = config.training.batch_size
    images = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images, labels = images.to(device, memory_format=torch.channels_last), torch.arange(size, device=device) % 10
    model.train()
    driver.train()

    def step() -> float:
        return loop.train_step(model, driver, images, labels, config.training)

    step()
    return step


def measure_bf16_saving(config: Config) -> float:
    """Return the part of the time of a step that bf16 saves over fp32; 0 if a step fails.

    The steps are the first optimizer's, with batches of at most 256 images. Both precisions take turns.
    """
    name, spec = next(iter(config.optimizers.items()))
    entries = {name: next(iter(spec.generate_extremes())) if spec.ranges else spec}
    batch_size = min(config.training.batch_size, _MAX_BATCH_SIZE)
    seconds = list[list[float]]()
    try:
        steps = []
        for precision in ("fp32", "bf16"):
            training = config.training.model_copy(update={"precision": precision, "batch_size": batch_size})
            updates = {"training": training, "optimizers": entries}
            steps.append(prepare_step(config.model_copy(update=updates), name))
        began = time.perf_counter()
        while len(seconds) < _MIN_ROUNDS or time.perf_counter() - began < _MEASURED_S:
            seconds.append([_measure_seconds(step) for step in steps])
    except (Exception, SystemExit):  # a foreign model or class may fail in bf16, or after its first step
        return 0.0
    fp32, bf16 = (statistics.median(each) for each in zip(*seconds, strict=True))
    return 1 - bf16 / fp32


def _measure_seconds(step: Callable[[], float]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
