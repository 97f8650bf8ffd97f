"""Costs of the optimizers' own work, as `benchmarks/costs.py` has measured them for some networks."""

import re
from dataclasses import dataclass
from pathlib import Path

from optlab.config import catalog
from optlab.schema.parameters import Config

COSTS_FILE = Path("benchmarks") / "COSTS.md"

_ROW = re.compile(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) % ", re.MULTILINE)


@dataclass(frozen=True)
class StepCost:
    """What an optimizer's own work costs.

    Attributes:
        numbers: count of values stored per weight.
        share: its time for a step over the time for the gradient.
    """

    numbers: float
    share: float


def read_costs(path: Path, config: Config) -> dict[str, StepCost]:
    """Return optimizer → cost of its step on the network, and with the batch size and precision, of a configuration.

    Costs were measured for the class that the catalogue has under a name: an optimizer of another class has none. Empty
    where the file or its section is missing, or was measured with another batch size or precision.
    """
    text = path.read_text("utf-8") if path.is_file() else ""
    section = text.partition(f"\n## {config.model}\n")[2].partition("\n## ")[0]
    if f"batch {config.training.batch_size}, {config.training.precision};" not in section:
        return {}
    classes = {name: spec.class_ for name, spec in config.optimizers.items()}
    ready = {each.name: each.values["class"] for each in catalog.load().entries}
    ready["schedule_free"] = ready["schedule_free_adamw"]  # its name in the study of ten optimizers
    return {
        name: StepCost(float(numbers), float(share) / 100)
        for name, numbers, share in _ROW.findall(section)
        if ready.get(name, classes.get(name)) == classes.get(name)
    }


def compute_time(steps: int, gradients: float, cost: StepCost | None) -> float:
    """Return the time of a number of steps, in times of one gradient.

    Args:
        gradients: computed in each step.
        cost: of the optimizer's own work; None leaves it out.
    """
    return steps * (gradients + (cost.share if cost else 0.0))
