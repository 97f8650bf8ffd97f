"""Work of the child processes of benchmarks/gpu.py: a training's images a second, and the weights of short ones."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from needs import TOP
from throughput_report import BATCH
from torch import Tensor, nn

from optlab.config import loader
from optlab.data import cifar10
from optlab.schema import parameters
from optlab.system import errors, repository
from optlab.training import determinism, loop, models, optimizers, weights
from optlab.training.optimizer_driver import OptimizerDriver
from optlab.training.optimizer_factory import TrainingContext

PRECISIONS = {"fp32": "fp32, TF32 off", "tf32": "fp32, TF32 on", "bf16": "bf16"}
OPTIMIZERS = {"sgd": {"class": "SGD", "lr": 0.01, "momentum": 0.9}, "adam": {"class": "Adam", "lr": 0.001}}
WARMUP, ROUNDS = 20, 3  # steps that are not timed, at most; rounds of `Task.steps` steps
IMAGES = 200 * BATCH  # of the training split, so that all batches have one size
BITS_STEPS = 100  # at most
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Work of a child process: a `kind` of `WORK`, a precision of `PRECISIONS`, and how and where it is trained."""

    device: str
    steps: int
    kind: str = "rate"
    model: str = "zilliax"
    precision: str = "fp32"
    loop: str = "eager"  # or `compiled`, or `CUDA graph`
    data: str = "on the device"  # or `copied`

    @property
    def title(self) -> str:
        return f"{self.model}, {PRECISIONS[self.precision]}, {self.loop}, data {self.data}"


def make_config(task: Task, precision: str, images: int) -> parameters.Config:
    """Return the settings of params.yaml with one epoch of so many images."""
    values = loader.load(TOP / parameters.PARAMS_FILE).model_dump(by_alias=True)
    values |= {"model": task.model, "optimizers": OPTIMIZERS}
    values["data"] |= {"train_size": images, "validation_size": 10}
    values["training"] |= {"epochs": 1, "batch_size": BATCH, "precision": "bf16" if precision == "bf16" else "fp32"}
    values["training"] |= {"numerics": "fast"}
    return parameters.Config.model_validate(values)


def load_splits(config: parameters.Config) -> cifar10.Splits:
    """Return CIFAR-10's images where the data set is, else generated ones."""
    if (TOP / repository.DATA).is_dir():
        return cifar10.load(TOP / repository.DATA, config.data, 0)
    generator, sizes = torch.Generator().manual_seed(0), (config.data.train_size, config.data.validation_size)
    images = [torch.randint(256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    return cifar10.Splits(*(cifar10.Split(each, torch.arange(len(each)) % parameters.NUM_CLASSES) for each in images))


@contextlib.contextmanager
def set_tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions; restore both flags at the end."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in flags]
    try:
        for each in flags:
            each.allow_tf32 = allowed
        yield
    finally:
        for each, value in zip(flags, before, strict=True):
            each.allow_tf32 = value


def measure_rate(task: Task) -> Iterator[dict[str, Any]]:
    """Yield when the training is warm, then its images a second in each round, then after each further step."""
    config = make_config(task, task.precision, IMAGES)
    device = determinism.configure_torch(config.training)
    model = models.build(task.model, 0).to(device)
    driver = optimizers.build("sgd", config.get_optimizer("sgd"), TrainingContext.from_config(config, model))
    split = load_splits(config).train
    batches = iterate_batches(split if task.data == "copied" else split.to(device), config, device)
    model.train()
    driver.train()
    with set_tf32(task.precision == "tf32"):
        network: Any = torch.compile(model) if task.loop == "compiled" else model
        step: Callable[..., float] = functools.partial(loop.train_step, network, driver, settings=config.training)
        if task.loop == "CUDA graph":
            step = capture_step(functools.partial(take_step, model, driver, settings=config.training), *next(batches))
        time_steps(step, batches, min(WARMUP, task.steps))
        yield {}
        yield {"rates": [BATCH * task.steps / time_steps(step, batches, task.steps) for _ in range(ROUNDS)]}
        while True:
            yield {"seconds": time_steps(step, batches, 1)}


def iterate_batches(split: cifar10.Split, config: parameters.Config, device: torch.device) -> Batches:
    """Yield the batches of endless epochs on the device."""
    for epoch in itertools.count(1):
        for images, labels in cifar10.iterate_epoch_batches(split, config.data, 0, epoch, BATCH, 0):
            yield images.to(device), labels.to(device)


def time_steps(step: Callable[[Tensor, Tensor], float], batches: Batches, count: int) -> float:
    """Return the seconds of so many steps; each ends when its loss is known."""
    began = time.perf_counter()
    for images, labels in itertools.islice(batches, count):
        step(images, labels)
    return time.perf_counter() - began


def take_step(
    model: nn.Module, driver: OptimizerDriver, images: Tensor, labels: Tensor, settings: parameters.TrainingConfig
) -> Tensor:
    """Take the step of `loop.train_step`, whose wait for the loss cannot be captured; return the loss."""

    def closure() -> Tensor:
        driver.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = F.cross_entropy(model(images), labels, label_smoothing=settings.label_smoothing)
        loss.backward()
        return loss

    return driver.step(closure)


def capture_step(step: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> Callable[..., float]:
    """Capture a whole step in a CUDA graph, and return its replay on other images."""
    own_images, own_labels = images.clone(), labels.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what the first steps set up cannot be captured (torch's notes, "CUDA semantics")
        for _ in range(3):
            step(own_images, own_labels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(own_images, own_labels)

    def replay(images: Tensor, labels: Tensor) -> float:
        own_images.copy_(images)
        own_labels.copy_(labels)
        graph.replay()
        return float(loss)

    return replay


def compute_digests(task: Task) -> Iterator[dict[str, Any]]:
    """Yield when ready, then the SHA-256 of the weights of a short training, for each optimizer and precision."""
    images = max(2, min(task.steps, BITS_STEPS)) * BATCH // 10 * 10
    configs = {each: make_config(task, each, images) for each in PRECISIONS}
    device = determinism.configure_torch(configs["fp32"].training)
    splits, digests = load_splits(configs["fp32"]), {}
    yield {}
    for (precision, config), name in itertools.product(configs.items(), OPTIMIZERS):
        with set_tf32(precision == "tf32"):
            model = loop.train(config, name, 0, splits, device).model
        digests[f"{name} in {PRECISIONS[precision]}"] = hashlib.sha256(weights.encode(model, task.model)).hexdigest()
    yield digests


WORK = {"rate": measure_rate, "bits": compute_digests}


def work(task: Task) -> None:
    """Print a JSON line when the task is ready, and its result after a line on stdin.

    Then train on, so that the device stays busy for other processes' measurements, until the parent kills this process
    or exits.
    """
    parent, output = os.getppid(), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        messages = WORK[task.kind](task)
        try:
            print(json.dumps(next(messages)), file=output, flush=True)
            if sys.stdin.readline():
                print(json.dumps(next(messages)), file=output, flush=True)
                while os.getppid() == parent and next(messages, None):
                    pass
        except Exception as error:
            print(json.dumps({"error": describe(error)}), file=output, flush=True)


def describe(error: Exception) -> str:
    """Return an error's type and first line as text for a table."""
    return f"{type(error).__name__}: {errors.summarize_error(error)}"


if __name__ == "__main__":
    work(Task(**json.loads(sys.argv[1])))
