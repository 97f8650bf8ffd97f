"""The figures of benchmarks/throughput.py, and the page that they make."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from optlab.environment import capture_environment

BATCH = 64  # images
MISSING = "not measured."


@dataclass
class Figures:
    """What was measured so far.

    Attributes:
        threads: how many computed.
        native: the CPU has bf16 instructions.
        images: how many each measurement had.
        rounds: of each complete round, what each contender measured.
        default: the same of whole trainings.
    """

    threads: int
    native: bool
    images: int
    rounds: list[dict[str, Any]] = field(default_factory=list)
    default: dict[str, float] | None = None


def report(found: Figures) -> str:
    """The table in markdown, of at least one round; what is missing is said to be."""
    rounds, default = found.rounds, found.default
    facts = capture_environment(torch.device("cpu"))
    lines = [
        "# Throughput",
        "",
        f"{facts.cpu}, {os.cpu_count()} cores, {facts.cpu_capability}, {found.threads} threads; torch "
        f"{facts.packages['torch']}, Python {facts.python}. `make bench` with {found.images:,} images each, "
        f"n = {len(rounds)} rounds; median (least – most). Batches of {BATCH}, SGD, the tutorial's network; "
        f"portable is fp32 with `numerics: portable`.",
        "",
        "| loop | images/s | over the tutorial's loop | FLOP/s over the matrix-product peak |",
        "| --- | --- | --- | --- |",
    ]
    for name in ("tutorial", "lightning", "optlab fp32", "optlab portable", "optlab bf16"):
        peak = "peak bf16" if "bf16" in name else "peak fp32"
        rates = [each[name]["rate"] for each in rounds]
        ratios = [each[name]["rate"] / each["tutorial"]["rate"] for each in rounds]
        shares = [each[name]["rate"] * each[peak]["flop"] / each[peak]["peak"] for each in rounds]
        emulated = name == "optlab bf16" and not found.native  # emulation has no peak of its own
        share = "–" if emulated else spread(shares, ".0%")
        lines.append(f"| {name} | {spread(rates, '.0f')} | {spread(ratios, '.2f')} | {share} |")
    peaks = {
        name: statistics.median(each[name]["peak"] for each in rounds) / 1e9 for name in ("peak fp32", "peak bf16")
    }
    steps = ["step fp32", "step bf16"]
    costs = [1 - each["optlab portable"]["rate"] / each["optlab fp32"]["rate"] for each in rounds]
    share = f"{default['logging']:.2%} of its time (n = 1), at {default['rate']:.0f} images/s." if default else MISSING
    lines += [
        "",
        f"`numerics: portable` costs {spread(costs, '.0%')} of the speed of `fast`.",
        "",
        f"The machine's own matrix product: {peaks['peak fp32']:.3g} GFLOP/s in fp32, "
        f"{peaks['peak bf16']:.3g} in bf16. One image takes {rounds[0]['peak fp32']['flop'] / 1e6:.1f} MFLOP, forward "
        f"and backward (torch.utils.flop_counter). The product is the better of MKL's and oneDNN's.",
        "",
        "Where the time of a step goes, by torch's profiler:",
        "",
        "| part | " + " | ".join(steps) + " |",
        "| --- |" + " --- |" * len(steps),
        *(
            f"| {part} | " + " | ".join(spread([each[step][part] for each in rounds], ".0%") for step in steps) + " |"
            for part in rounds[0][steps[0]]
        ),
        "",
        f"Logging in three trainings of five epochs (progress, event log, MLflow from its import to its last write): "
        f"{share}",
    ]
    if not found.native:
        lines += ["", "This CPU has no bf16 instructions: bf16 is emulated there, and slower than fp32."]
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], form: str) -> str:
    """median (least – most)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} – {max(values):{form}})"
