"""Costs of the optimizers' own work, as `benchmarks/costs.py` has measured them for some networks."""

import re
from dataclasses import dataclass
from pathlib import Path

COSTS_FILE = Path("benchmarks") / "COSTS.md"

_ROW = re.compile(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) % ", re.MULTILINE)


@dataclass(frozen=True)
class StepCost:
    """What an optimizer's own work costs.

    Attributes:
        numbers: that it keeps for each weight.
        share: its time for a step over the time for the gradient.
    """

    numbers: float
    share: float


def read_costs(path: Path, model: str) -> dict[str, StepCost]:
    """Return optimizer → cost of its step on a network; empty where the file, or its section, is missing."""
    text = path.read_text("utf-8") if path.is_file() else ""
    section = text.partition(f"\n## {model}\n")[2].partition("\n## ")[0]
    return {name: StepCost(float(numbers), float(share) / 100) for name, numbers, share in _ROW.findall(section)}
