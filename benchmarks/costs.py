"""What each optimizer's own work costs on the studies' networks: numbers kept for each weight, and time a step.

    python benchmarks/costs.py [STUDY ...] [--rounds N]     # writes benchmarks/COSTS.md, or some of its sections

Each in turn in every round: the forward and backward pass over one batch, and the optimizer's work with the gradients
that are there. The share is taken within a round; the median over the rounds is reported, with its quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from needs import TOP

from optlab.config.loader import load
from optlab.environment import capture_environment
from optlab.schema.parameters import Config
from optlab.training import determinism
from optlab.training.loop import train_step
from optlab.training.models import build as network
from optlab.training.optimizer_driver import OptimizerDriver, flatten_wrappers
from optlab.training.optimizer_factory import TrainingContext
from optlab.training.optimizers import build

RESULTS = TOP / "benchmarks" / "COSTS.md"
STUDIES = ("optimizers", "conv6")  # one for each network
MORE = {"adagrad": {"class": "Adagrad", "lr": 0.01}}  # explained in docs/optimizers.md, and not in a study
STEPS = 30  # of each optimizer in each round


def settings(study: str) -> Config:
    """Return a study's settings on one thread, with each optimizer at its authors' values.

    Those of the records of the ranking, which has that study's network, are added to the first study's.
    """
    values = load(TOP / "studies" / study / "params.yaml").model_dump(by_alias=True)
    values["training"]["threads"] = 1
    if study == STUDIES[0]:
        values["optimizers"] |= MORE
        for path in sorted((TOP / "ranking").glob("*/params.yaml")):
            values["optimizers"] |= load(path).model_dump(by_alias=True)["optimizers"]
    for entry in values["optimizers"].values():
        entry |= entry.pop("default", None) or {}
    return Config.model_validate(values)


def kept(stepper: OptimizerDriver) -> int:
    """How many numbers its states have."""
    states = [state for each in stepper.optimizers for own in flatten_wrappers(each) for state in own.state.values()]
    return sum(value.numel() for state in states for value in state.values() if isinstance(value, torch.Tensor))


def seconds(work: Callable[[], Any], steps: int) -> float:
    """The mean over the steps."""
    began = time.perf_counter()
    for _ in range(steps):
        work()
    return (time.perf_counter() - began) / steps


class Contender:
    """One optimizer with a network of its own, after one step."""

    def __init__(self, name: str, config: Config) -> None:
        self.model, self.config = network(config.model, 0), config
        self.stepper = build(name, config.get_optimizer(name), TrainingContext.from_config(config, self.model))
        self.images = torch.randn(config.training.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(config.training.batch_size) % 10
        self.stepper.train()
        train_step(self.model, self.stepper, self.images, self.labels, config.training)
        weights = sum(value.numel() for value in self.model.parameters())
        self.numbers = kept(self.stepper) / weights

    def passes(self) -> None:
        self.model.zero_grad()
        torch.nn.functional.cross_entropy(self.model(self.images), self.labels).backward()

    def share(self, steps: int) -> float:
        """The step's time over that of both passes."""
        self.passes()
        loss = torch.zeros(())
        return seconds(lambda: self.stepper.step(lambda: loss), steps) / seconds(self.passes, steps)


def measure(config: Config, rounds: int, steps: int = STEPS) -> str:
    """Measure a network; return its section of COSTS.md."""
    device = determinism.configure_torch(config.training)
    contenders = {name: Contender(name, config) for name in config.optimizers}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            shares[name].append(contender.share(steps))
    lines = []
    for name, own in sorted(shares.items(), key=lambda each: statistics.median(each[1])):
        low, middle, high = (100 * value for value in statistics.quantiles(own, n=4))
        lines.append(f"| {name} | {contenders[name].numbers:.1f} | {middle:.1f} % ({low:.1f} – {high:.1f}) |\n")
    return (
        f"## {config.model}\n\n{capture_environment(device).cpu}, 1 thread, "
        f"batch {config.training.batch_size}, {config.training.precision}; {rounds} rounds of {steps} "
        "steps, median and quartiles.\n\n"
        "| optimizer | numbers kept for each weight | its own time, as a share of the time for the gradient |\n"
        "| --- | --- | --- |\n" + "".join(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", default=STUDIES, metavar="STUDY", help="such as conv6")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    title, *old = RESULTS.read_text().split("\n## ")
    sections = {text.partition("\n")[0]: f"## {text.rstrip()}\n" for text in old}
    for study in given.studies:
        config = settings(study)
        sections[config.model] = measure(config, given.rounds)
        RESULTS.write_text("\n\n".join([title.strip(), *(text.rstrip() for text in sections.values())]) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
