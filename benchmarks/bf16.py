"""Whether bf16 costs accuracy: one optimizer of params.yaml, trained in fp32 and in bf16 with the same seeds.

    python benchmarks/bf16.py [--seeds 35] [--jobs 2]    # trains what bf16_runs.jsonl lacks, and writes BF16.md

A run is added to benchmarks/bf16_runs.jsonl as soon as it ends, so that an interrupted benchmark continues. At the
end, it measures the speed of both; nothing else should use the cores then.
"""

import argparse
import functools
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import numpy as np
import torch
from needs import TOP

from optlab.analysis.mean_ci import ALPHA, compute_mean_ci
from optlab.analysis.pair_tests import Look, compare_means
from optlab.config import loader
from optlab.data import cifar10
from optlab.environment import capture_environment, has_native_bf16
from optlab.orchestration import attempts
from optlab.preflight import step_time
from optlab.schema.parameters import Config, format_count
from optlab.system import repository
from optlab.training import determinism, loop

RUNS, RESULTS = TOP / "benchmarks" / "bf16_runs.jsonl", TOP / "benchmarks" / "BF16.md"
OPTIMIZER = "adam"
PRECISIONS = ("fp32", "bf16")
MARGIN = 0.0025  # of accuracy: a smaller difference counts as none
IMAGES = 10_000  # in the test split; an accuracy is a share of them
ROUNDS, STEPS = 9, 100  # of the measurement of speed


@functools.cache
def load_config(precision: str) -> Config:
    """Return the settings of params.yaml with a precision, on one thread."""
    config = loader.load(TOP / "params.yaml")
    training = config.training.model_copy(update={"precision": precision, "threads": 1})
    return config.model_copy(update={"training": training})


def train_run(precision: str, seed: int) -> dict[str, Any]:
    """Train and test once; return the line of the file of runs."""
    config, folder = load_config(precision), TOP / repository.DATA
    device = determinism.configure_torch(config.training)
    result = loop.train(config, OPTIMIZER, seed, cifar10.load(folder, config.data, seed), device)
    test = cifar10.load_test_split(folder, config.data)
    _, accuracy = loop.compute_loss_and_accuracy(loop.predict(result.model, test), test.labels)
    cpu = capture_environment(device).cpu
    return {
        "precision": precision, "seed": seed, "test_accuracy": accuracy, "status": result.status, "cpu": cpu,
        "settings": compute_digest(precision),
    }  # fmt: skip


@functools.cache
def compute_digest(precision: str) -> str:
    """Return a digest of the settings of params.yaml that decide a run."""
    return attempts.compute_digest(load_config(precision), OPTIMIZER, {})


def read_runs() -> list[dict[str, Any]]:
    """Return the lines of the file whose runs have the present settings and this CPU."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    cpu = capture_environment(torch.device("cpu")).cpu
    return [each for each in lines if each["cpu"] == cpu and each.get("settings") == compute_digest(each["precision"])]


def train_missing(seeds: int, jobs: int) -> None:
    """Train the runs that the file lacks, and add each to it."""
    known = {(run["precision"], run["seed"]) for run in read_runs()}
    missing = [(name, seed) for seed in range(seeds) for name in PRECISIONS if (name, seed) not in known]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        pending = [pool.submit(train_run, *each) for each in missing]
        for number, future in enumerate(as_completed(pending), start=1):
            line = future.result()
            with RUNS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{number}/{len(missing)}  {line['precision']}  seed {line['seed']}  {line['test_accuracy']:.2%}")
            sys.stdout.flush()


def measure_seconds(precision: str) -> float:
    """Return the seconds of `STEPS` training steps."""
    step = step_time.prepare_step(load_config(precision), OPTIMIZER)
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return time.perf_counter() - began


def compare(runs: list[dict[str, Any]]) -> tuple[Look, np.ndarray]:
    """Return the difference bf16 − fp32, and the accuracies, shape (2, n), of the seeds that both have."""
    values = {(run["precision"], run["seed"]): run["test_accuracy"] for run in runs if run["status"] == "completed"}
    seeds = sorted(seed for name, seed in values if name == "fp32" and ("bf16", seed) in values)
    table = np.array([[values[name, seed] for seed in seeds] for name in PRECISIONS])
    return compare_means(table[1], table[0], 2 * ALPHA, resolution=1 / IMAGES), table


def report(ratios: list[float]) -> str:
    """Return the text of BF16.md.

    Args:
        ratios: for each round, seconds in fp32 over seconds in bf16.
    """
    runs = read_runs()
    look, table = compare(runs)
    half = float(look.compute_half_width(2 * ALPHA))
    low, high = float(look.difference) - half, float(look.difference) + half
    verdict = "equivalent" if low > -MARGIN and high < MARGIN else "not shown to be equivalent"
    config = load_config("fp32")
    means = zip(PRECISIONS, (compute_mean_ci(list(row)) for row in table), strict=True)
    lower, median, upper = statistics.quantiles(ratios, n=4)
    diverged = sum(run["status"] != "completed" for run in runs)
    return (
        "# bf16 against fp32\n\n"
        f"**On {config.model}, the test accuracy in bf16 is {verdict} to that in fp32, within {100 * MARGIN:g} "
        f"points.** Two one-sided t tests, {'paired by seed' if look.is_paired else 'Welch'}: the difference is "
        f"{100 * float(look.difference):.3f} points, its 90 % interval {100 * low:.3f} to {100 * high:.3f}.\n\n"
        "| precision | n | mean test accuracy | standard deviation |\n| --- | --- | --- | --- |\n"
        + "".join(
            f"| {name} | {mean.n} | {100 * mean.mean:.2f} ± {100 * (mean.half_width or 0):.2f} % | "
            f"{100 * (mean.sd or 0):.2f} points |\n"
            for name, mean in means
        )
        + f"\n{OPTIMIZER} of params.yaml, {config.training.epochs} epochs, batches of {config.training.batch_size}, "
        f"one thread; {format_count(diverged, 'run')} diverged. A seed counts only if both of its runs completed. "
        f"Correlation of the two test accuracies over the seeds: {float(look.correlation):.2f}; ± is half the width of "
        f"the 95 % interval. CPU: {', '.join(sorted({run['cpu'] for run in runs}))}. bf16 is "
        "torch's autocast: the weights and the optimizer's step stay in fp32.\n\n"
        f"A training step in bf16 is {median:.2f} times as fast ({lower:.2f} – {upper:.2f}; median and quartiles of "
        f"{len(ratios)} rounds of {STEPS} steps, each in both precisions).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=35)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    given = parser.parse_args()
    if not has_native_bf16(torch.device("cpu")):
        sys.exit("error: this CPU has no bf16 instructions (AVX-512 BF16 or AMX): bf16 would be emulated, and slow")
    train_missing(given.seeds, given.jobs)
    text = report([measure_seconds("fp32") / measure_seconds("bf16") for _ in range(ROUNDS)])
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
