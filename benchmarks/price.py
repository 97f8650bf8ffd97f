"""Test accuracy, arithmetic and minutes of a run, for the best optimizer of each network's study.

    python benchmarks/price.py [--rounds 5]    # writes benchmarks/PRICE.md

The accuracies are those of the record. FLOP are counted in the forward and backward pass of one batch. The speed is
that of two trainings at once, of one thread each, as `optlab repro` runs them on two cores; the networks take turns in
every round.
"""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from needs import TOP
from torch.utils.flop_counter import FlopCounterMode

from optlab.analysis import comparison
from optlab.analysis.verdicts import format_mean
from optlab.config import loader
from optlab.environment import capture_environment
from optlab.preflight import step_time
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.training import models

RESULTS = TOP / "benchmarks" / "PRICE.md"
STUDIES = ("optimizers", "conv6", "airbench")
JOBS, SECONDS = 2, 10.0  # trainings at once, and the length of a measurement
# Of github.com/KellerJordan/cifar10-airbench: its README's accuracies and PFLOP, both with test-time augmentation.
PUBLISHED = (("Nesterov", "94.01 %", 0.36), ("Muon", "94.01 %", 0.29))
PUBLISHED_NETWORK = "fast"  # whose speed gives their minutes


class Entry(NamedTuple):
    """The best optimizer of one study."""

    config: Config
    optimizer: str
    accuracy: str
    mirrored_accuracy: str
    flop_per_image: float

    @property
    def images(self) -> int:
        """Images of one run, over all epochs."""
        return self.config.training.epochs * self.config.data.train_size


def load_entry(study: str) -> Entry:
    """Read a study's record and count its network's arithmetic."""
    folder = TOP / "studies" / study
    config = loader.load(folder / PARAMS_FILE)
    best = comparison.collect(config, folder).rows[0]
    assert best.test_accuracy is not None
    training = config.training.model_copy(update={"threads": 1, "numerics": "fast"})
    spec = config.get_optimizer(best.optimizer).replace_ranges({})
    config = config.model_copy(update={"training": training, "optimizers": {best.optimizer: spec}})
    accuracy = format_mean(best.test_accuracy, "test_accuracy")
    mirrored = best.mirrored_test_accuracy
    mirrored_accuracy = format_mean(mirrored, "mirrored_test_accuracy") if mirrored else "–"
    return Entry(config, best.optimizer, accuracy, mirrored_accuracy, count_flop(config.model))


def count_flop(model: str) -> float:
    """Return the floating-point operations of one image, forward and backward."""
    network, size = models.build(model, 0).train(), 8
    images, labels = torch.rand(size, 3, 32, 32), torch.arange(size) % 10
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(images), labels).backward()
    return counter.get_total_flops() / size


def train_for(entry: Entry) -> float:
    """Train on random images for `SECONDS`; return images a second."""
    step = step_time.prepare_step(entry.config, entry.optimizer)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    return steps * entry.config.training.batch_size / (time.perf_counter() - began)


def measure(entries: list[Entry], rounds: int) -> list[list[float]]:
    """Return for each entry the images a second of `JOBS` trainings at once, in each round."""
    with ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(count_flop, ["zilliax"] * JOBS))  # both processes have imported torch
        speeds = [[sum(pool.map(train_for, [entry] * JOBS)) for entry in entries] for _ in range(rounds)]
    return [list(own) for own in zip(*speeds, strict=True)]


def report(entries: list[Entry], speeds: list[list[float]]) -> str:
    """Return the text of PRICE.md.

    Args:
        speeds: of each entry, the images a second in each round.
    """
    cpu = capture_environment(torch.device("cpu")).cpu
    lines = [
        "| network | optimizer | test accuracy | mirrored | epochs | PFLOP a run | minutes a run, two cores |",
        "| --- " * 7 + "|",
    ]
    for entry, own in zip(entries, speeds, strict=True):
        minutes = sorted(entry.images / speed / 60 for speed in own)
        lines.append(
            f"| {entry.config.model} | {entry.optimizer} | {entry.accuracy} | {entry.mirrored_accuracy} | "
            f"{entry.config.training.epochs} | {entry.images * entry.flop_per_image / 1e15:.4f} | "
            f"{statistics.median(minutes):.1f} ({minutes[0]:.1f} – {minutes[-1]:.1f}) |"
        )
    flop_per_second = statistics.median(
        speed * entry.flop_per_image
        for entry, own in zip(entries, speeds, strict=True)
        for speed in own
        if entry.config.model == PUBLISHED_NETWORK
    )
    for name, accuracy, pflop in PUBLISHED:
        minutes = pflop * 1e15 / flop_per_second / 60
        lines.append(
            f"| airbench94, published | {name} | – | {accuracy} | – | {pflop} | about {minutes:.0f} (computed) |"
        )
    return (
        "# Accuracy, arithmetic and training time\n\n"
        + "\n".join(lines)
        + f"\n\n{cpu}; fp32, `numerics: fast`. Each row is the best optimizer of the network's study, whose runs "
        f"may have `numerics: portable`; ± is half the width of the 95 % interval. {JOBS} runs train at once, of one "
        f"thread each: minutes are the time for all, divided by {JOBS}; median and range of {len(speeds[0])} rounds of "
        f"{SECONDS:g} seconds, without validation and evaluation. FLOP are those of the forward and backward pass, and "
        "leave out the optimizer's own. The mirrored accuracy is that of the mean over each test image and its mirror "
        "image; the published ones also average over shifted images. Their minutes are "
        f"computed for {flop_per_second / 1e9:.0f} GFLOP/s, the speed of the network `{PUBLISHED_NETWORK}` here.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    entries = [load_entry(study) for study in STUDIES if (TOP / "studies" / study).is_dir()]
    text = report(entries, measure(entries, parser.parse_args().rounds))
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
