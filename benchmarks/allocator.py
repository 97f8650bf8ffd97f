"""What training gains where malloc keeps freed memory: step time, page faults and peak memory, as ratios in one run.

    python benchmarks/allocator.py [--rounds 5]    # writes benchmarks/ALLOCATOR.md

Two trainings of one thread each run at once, as `optlab repro` runs them on two cores. Each measurement has processes
of its own, because the setting holds for a whole process; in every round, both settings take turns on each network.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import random_step
import torch
from needs import TOP

from optlab.environment import capture_environment
from optlab.preflight import step_time
from optlab.system import processes

RESULTS = TOP / "benchmarks" / "ALLOCATOR.md"
BATCH_SIZES = {"zilliax": 64, "conv6": 128, "fast": 125}
OPTIMIZERS = {"adamw": {"class": "AdamW", "lr": 0.001}}
JOBS, SECONDS, WARMUP_STEPS = 2, 8.0, 3


class Speed(NamedTuple):
    """One measurement: seconds and page faults of a step, and the process's peak memory in bytes."""

    step_s: float
    faults: float
    peak: int


def train(model: str, keeps: bool) -> Speed:
    """Train on random images for `SECONDS`."""
    if not keeps:
        processes._keep_freed_memory = lambda: None
    step = step_time.prepare_step(random_step.make_config(model, BATCH_SIZES[model], OPTIMIZERS), "adamw")
    for _ in range(WARMUP_STEPS):
        step()
    faults, began, steps = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    seconds, usage = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return Speed(seconds / steps, (usage.ru_minflt - faults) / steps, usage.ru_maxrss * 1024)


def measure(model: str, keeps: bool) -> Speed:
    """Return the medians of `JOBS` trainings at once."""
    with ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(train, [model] * JOBS, [keeps] * JOBS))
    return Speed(*(statistics.median(values) for values in zip(*found, strict=True)))


def describe_row(model: str, rounds: list[dict[bool, Speed]]) -> str:
    """Return a line of the table."""
    gains = sorted(1 - each[True].step_s / each[False].step_s for each in rounds)

    def median(keeps: bool, field: str) -> float:
        return statistics.median(getattr(each[keeps], field) for each in rounds)

    cells = [
        model, str(BATCH_SIZES[model]), f"{median(False, 'step_s') * 1e3:.0f}", f"{median(True, 'step_s') * 1e3:.0f}",
        f"{statistics.median(gains):.0%} ({gains[0]:.0%} – {gains[-1]:.0%})".replace("(-0%", "(0%").replace("-", "−"),
        *(f"{median(keeps, 'faults'):,.0f}" for keeps in (False, True)),
        *(f"{median(keeps, 'peak') / 2**20:,.0f}" for keeps in (False, True)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(rows: list[str], rounds: int) -> str:
    """Return the text of ALLOCATOR.md."""
    cpu = capture_environment(torch.device("cpu")).cpu
    head = (
        "| network | batch | ms a step, default | ms a step, kept | saved | page faults a step, default | kept | "
        "peak memory in MiB, default | kept |"
    )
    return (
        "# Where malloc keeps freed memory\n\n"
        "By default, glibc's malloc returns much of the memory that a training step frees to the kernel. The next step "
        "gets new pages, and the kernel fills each with zeros first. optlab's trainings on a CPU keep what was "
        "allocated in blocks of up to 32 MiB (`mallopt`, as man 3 mallopt describes it). No result depends on it.\n\n"
        + "\n".join([head, "| --- " * 9 + "|", *rows])
        + f"\n\n{cpu}; fp32, AdamW, random images, `numerics: fast`. {JOBS} trainings at once, of one thread each; "
        f"medians of {rounds} rounds of {SECONDS:g} seconds, and the range of what is saved. "
        "`python benchmarks/allocator.py` writes this page.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    count = parser.parse_args().rounds
    found: dict[str, list[dict[bool, Speed]]] = {model: [] for model in BATCH_SIZES}
    for number in range(count):
        order = (False, True) if number % 2 else (True, False)
        for model, rounds in found.items():
            rounds.append({keeps: measure(model, keeps) for keeps in order})
    text = report([describe_row(model, rounds) for model, rounds in found.items()], count)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
