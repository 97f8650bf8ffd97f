"""Images per second of one training on the CPU: the tutorial's loop, Lightning, and optlab, on the same batches.

    python benchmarks/throughput.py            # writes benchmarks/RESULTS.md

Each contender runs in a process of its own, all of them in turn in every round; a ratio is taken within a round,
and the median over the rounds is reported with its extremes. Starting up (imports, reading the data, connecting to
MLflow) is not counted there; the share of logging in whole trainings counts all that MLflow costs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import needs
import torch
from needs import TOP
from throughput_report import BATCH, Figures, report
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from optlab.config import loader
from optlab.data import cifar10
from optlab.environment import capture_environment, has_native_bf16
from optlab.schema import parameters
from optlab.system import errors, repository
from optlab.tracking.callbacks import EventLogWriter, ProgressBar
from optlab.tracking.event_log import EventLog
from optlab.tracking.run_metadata import build_run_metadata
from optlab.tracking.uploader_client import UploaderClient
from optlab.training import determinism, loop, models
from optlab.training.numerics import PORTABLE_VARIABLES
from optlab.training.optimizer_driver import OptimizerDriver
from optlab.training.optimizer_factory import TrainingContext
from optlab.training.optimizers import build

LR = 0.01
WARMUP = 20  # steps that are not timed
RESULTS = TOP / "benchmarks" / "RESULTS.md"


def settings(images: int, precision: str, epochs: int = 1, numerics: str = "fast") -> parameters.Config:
    """The comparison's own params.yaml, with SGD alone and less of the data."""
    values = loader.load(TOP / parameters.PARAMS_FILE).model_dump(by_alias=True)
    values["optimizers"] = {"sgd": {"class": "SGD", "lr": LR}}
    values["data"]["train_size"] = images
    values["training"] |= {"epochs": epochs, "precision": precision, "batch_size": BATCH, "numerics": numerics}
    if epochs == 1:  # against loops that never validate: at the epoch's end, it is after the last step that is timed
        values["training"]["validations_per_epoch"] = 1
    return parameters.Config.model_validate(values)


def tutorial_loader(images: int) -> Iterable[Any]:
    """torchvision's CIFAR10, ToTensor and a DataLoader, over the images that optlab trains on."""
    import torchvision

    split = cifar10.load(TOP / repository.DATA, settings(images, "fp32").data, 0).train

    class InMemory(torchvision.datasets.CIFAR10):  # type: ignore[misc]
        """Its own `__getitem__`, with the arrays filled from the verified files instead of its pickles."""

        def __init__(self) -> None:
            self.data, self.targets = split.images.numpy(), split.labels.tolist()
            self.transform, self.target_transform = torchvision.transforms.ToTensor(), None

    order = cifar10.compute_epoch_order(0, 1, images, shuffle=True).tolist()
    return DataLoader(Subset(InMemory(), order), batch_size=BATCH)


def run_tutorial(images: int, warmup: int = WARMUP) -> dict[str, float]:
    """The tutorial's loop as it is written there."""
    loader, loss = tutorial_loader(images), nn.CrossEntropyLoss()
    network = models.zilliax().to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    running_loss: Any = 0.0
    started, seen = 0.0, 0
    for step, (images_, targets) in enumerate(loader):
        if step == warmup:
            started = time.perf_counter()
        result = loss(network(images_), targets)
        optimizer.zero_grad()
        result.backward()
        optimizer.step()
        running_loss = running_loss + result
        seen += len(targets) if step >= warmup else 0
    return {"rate": seen / (time.perf_counter() - started)}


def run_lightning(images: int) -> dict[str, float]:
    """Lightning's Trainer with its defaults: progress bar, logger, checkpoint."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.loss = models.zilliax(), nn.CrossEntropyLoss()

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.loss(self.network(batch[0]), batch[1])
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=LR)

    class Clock(lightning.Callback):
        started = rate = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == WARMUP:
                self.started = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.rate = (images - WARMUP * BATCH) / (time.perf_counter() - self.started)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, callbacks=[clock])
        trainer.fit(Module(), tutorial_loader(images))
    return {"rate": clock.rate}


class Clock(loop.Callback):
    """Times the steps after the warm-up, as whoever waits for the training sees them."""

    def __init__(self) -> None:
        self.seen, self.started, self.ended = 0, 0.0, 0.0

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        if step == WARMUP - 1:
            self.started = time.perf_counter()
        elif step >= WARMUP:
            self.seen += images
            self.ended = time.perf_counter()


class Timed(loop.Callback):
    """Adds up the wall time spent in another observer."""

    def __init__(self, inner: loop.Callback) -> None:
        self._inner, self.spent = inner, 0.0

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        started = time.perf_counter()
        method(*arguments)
        self.spent += time.perf_counter() - started

    def on_start(self, *arguments: Any) -> None:
        self._call(self._inner.on_start, *arguments)

    def on_step(self, *arguments: Any) -> None:
        self._call(self._inner.on_step, *arguments)

    def on_epoch(self, *arguments: Any) -> None:
        self._call(self._inner.on_epoch, *arguments)

    def on_end(self, *arguments: Any) -> None:
        self._call(self._inner.on_end, *arguments)


def run_optlab(images: int, precision: str, epochs: int = 1, trainings: int = 1,
               numerics: str = "fast") -> dict[str, float]:  # fmt: skip
    """Trainings as the pipeline does them, with progress, event log and MLflow, in a repository of its own.

    `logging`: the time in progress bar and event log, plus the CPU time of the uploader, from its import to its last
    write, over the wall time of the trainings.
    """
    chosen = settings(images, precision, epochs, numerics)
    splits = cifar10.load(TOP / repository.DATA, chosen.data, 0)
    device = determinism.configure_torch(chosen.training)
    spent = elapsed = 0.0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".dvc").mkdir()
        (Path(folder) / ".dvc" / "config").touch()
        os.chdir(folder)
        uploader, opening = (
            UploaderClient(),
            build_run_metadata(chosen, Path(), "sgd", 0, capture_environment(device)),
        )
        if trainings == 1:  # wait until it has started up, for that is counted in whole trainings alone
            ahead = EventLog.create("sgd-0")
            ahead.log_start_or_resume(opening, 0)
            ahead.end("completed")
            uploader.request(push=True)
        for _ in range(trainings):
            log = EventLog.create("sgd-0")
            writer = EventLogWriter(log, opening)
            callbacks = [Timed(ProgressBar(epochs, images)), Timed(writer)]
            clock = Clock()
            started = time.perf_counter()
            loop.train(chosen, "sgd", 0, splits, device, [*callbacks, clock])
            log.end("completed")
            elapsed += time.perf_counter() - started
            spent += sum(each.spent for each in callbacks)
        uploader.close()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.chdir(TOP)
    return {"rate": clock.seen / (clock.ended - clock.started),
            "logging": (spent + used.ru_utime + used.ru_stime) / elapsed}  # fmt: skip


def run_peak(precision: str) -> dict[str, float]:
    """The machine's own matrix product, MKL's or oneDNN's, the best of many: FLOP/s; and the FLOP of one image.

    oneDNN's is asked for as a convolution of 1 × 1.

    2048 × 2048, but 512 × 512 where bf16 is emulated: there a larger one takes a minute.
    """
    from torch.utils.flop_counter import FlopCounterMode

    emulated = precision == "bf16" and not has_native_bf16(torch.device("cpu"))
    size, best = 512 if emulated else 2048, 0.0
    matrix = torch.randn(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    image, kernel = matrix.view(1, size, size // 32, 32), matrix.view(size, size, 1, 1)
    products = (lambda: matrix @ matrix, lambda: functional.conv2d(image, kernel))  # MKL's, oneDNN's
    with torch.inference_mode():
        for _ in range(3 if emulated else 30):
            for product in products:
                started = time.perf_counter()
                product()
                best = max(best, 2 * size**3 / (time.perf_counter() - started))
    model = models.build("zilliax", 0)
    chosen = settings(BATCH * 10, "fp32")
    stepper = build("sgd", chosen.get_optimizer("sgd"), TrainingContext.from_config(chosen, model))
    with FlopCounterMode(display=False) as counter:
        loop.train_step(
            model, stepper, torch.rand(BATCH, 3, 32, 32), torch.zeros(BATCH, dtype=torch.long), chosen.training
        )
    return {"peak": best, "flop": counter.get_total_flops() / BATCH}


# The names of torch's operators begin so; the optimizer's step calls forward and backward.
CLOSURE = "forward and backward"
PARTS = {
    "convolution": ("aten::convolution", "aten::mkldnn_convolution", "aten::_convolution", "aten::conv2d"),
    "pooling": ("aten::max_pool2d",),
    "linear": ("aten::addmm", "aten::mm", "aten::linear", "aten::t"),
    "optimizer": ("Optimizer.",),
    "the rest": (CLOSURE,),
}


class Marked(OptimizerDriver):
    """A stepper whose forward and backward the profiler sees as one operator."""

    def step(self, closure: Callable[[], Any]) -> Any:
        def marked() -> Any:
            with torch.profiler.record_function(CLOSURE):
                return closure()

        return super().step(marked)


def run_step(precision: str) -> dict[str, float]:
    """Where the time of a step goes: the share of each part, forward and backward, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    chosen = settings(BATCH * 10, precision)
    model = models.build("zilliax", 0)
    built = build("sgd", chosen.get_optimizer("sgd"), TrainingContext.from_config(chosen, model))
    stepper = Marked(built.optimizers, built.param_groups, built.create_graph, "closure", ["own"])
    images = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.long)
    for _ in range(WARMUP):
        loop.train_step(model, stepper, images, labels, chosen.training)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(WARMUP):
            loop.train_step(model, stepper, images, labels, chosen.training)
    times = dict.fromkeys(PARTS, 0.0)
    for event in profiled.events():
        times[part_of(event)] += event.self_cpu_time_total
    return {part: spent / sum(times.values()) for part, spent in times.items()}


def part_of(event: Any) -> str:
    """The part of the innermost operator around it which has a name in `PARTS`, or which it is itself."""
    while event is not None:
        for part, names in PARTS.items():
            if event.name.startswith(names):
                return part
        event = event.cpu_parent
    return "the rest"


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "tutorial": lambda arguments: run_tutorial(arguments.images),
    "lightning": lambda arguments: run_lightning(arguments.images),
    "optlab fp32": lambda arguments: run_optlab(arguments.images, "fp32"),
    "optlab portable": lambda arguments: run_optlab(arguments.images, "fp32", numerics="portable"),
    "optlab bf16": lambda arguments: run_optlab(arguments.bf16_images, "bf16"),
    "peak fp32": lambda arguments: run_peak("fp32"),
    "peak bf16": lambda arguments: run_peak("bf16"),
    "step fp32": lambda arguments: run_step("fp32"),
    "step bf16": lambda arguments: run_step("bf16"),
    "default": lambda arguments: run_optlab(45_000, "fp32", epochs=5, trainings=3),
}


def measure(contender: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--contender", contender, "--images", str(arguments.images)]
    command += ["--bf16-images", str(arguments.bf16_images)]
    environment = os.environ | (
        PORTABLE_VARIABLES if contender == "optlab portable" else {}
    )  # read while torch is imported
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        sys.exit(f"{contender} failed:\n{result.stderr}")
    values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    print(contender, {key: f"{value:.4g}" for key, value in values.items()}, flush=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000, help="images per measurement")
    parser.add_argument("--bf16-images", type=int, default=0, help="the same for bf16; fewer where it is emulated")
    parser.add_argument("--contender", choices=CONTENDERS, help="measure this one only, and print JSON")
    arguments = parser.parse_args()
    threads = loader.load(TOP / parameters.PARAMS_FILE).training.threads
    torch.set_num_threads(threads)
    native = has_native_bf16(torch.device("cpu"))
    arguments.bf16_images = arguments.bf16_images or (arguments.images if native else 3_200)
    if arguments.contender:
        print(json.dumps(CONTENDERS[arguments.contender](arguments)))
        return
    needs.check(("dvc", "lightning"))
    fill(Figures(threads, native, arguments.images), arguments)
    print(RESULTS.read_text())


def fill(found: Figures, arguments: argparse.Namespace) -> None:
    """Measure everything; the page is written after every part, so that no later one takes it away."""
    names = [name for name in CONTENDERS if name != "default"]
    for _ in range(arguments.rounds):
        found.rounds.append({name: measure(name, arguments) for name in names})
        RESULTS.write_text(report(found))
    found.default = measure("default", arguments)
    RESULTS.write_text(report(found))


if __name__ == "__main__":
    errors.run_main(main)
