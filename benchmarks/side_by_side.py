"""Six runs with `threads: 1`, one at a time and two side by side: how much sooner are they done?

    python benchmarks/side_by_side.py          # writes benchmarks/SIDE_BY_SIDE.md

Each measurement is a whole `optlab repro` in a clone of its own, data at hand, nothing trained: with all that a user
waits for, from DVC's start to the table. The ratio is taken within a round.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import needs
import torch
from needs import TOP
from ruamel.yaml import YAML
from throughput_report import spread

from optlab.environment import capture_environment, has_native_bf16
from optlab.schema import parameters
from optlab.system import errors, repository

RESULTS = TOP / "benchmarks" / "SIDE_BY_SIDE.md"
SEEDS = [0, 1]  # of three optimizers: six runs


def seconds(precision: str, images: int, jobs: int) -> float:
    """The wall time of one `optlab repro --jobs` of six runs over `images` images, one epoch each."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", TOP, top], check=True)
        shutil.copytree(TOP / repository.DATA, top / repository.DATA)
        yaml = YAML()
        values = yaml.load(top / parameters.PARAMS_FILE)
        values["seeds"] = SEEDS
        values["data"]["train_size"] = images
        values["training"] |= {"epochs": 1, "threads": 1, "precision": precision}
        yaml.dump(values, top / parameters.PARAMS_FILE)
        environment = needs.environment() | {"PYTHONPATH": str(top / "src")}
        subprocess.run([*repository.DVC_COMMAND, "repro", "--quiet", "download"], cwd=top, env=environment, check=True)
        started = time.perf_counter()
        command = ["optlab", "repro", "--jobs", str(jobs)]
        result = subprocess.run(command, cwd=top, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
        elapsed = time.perf_counter() - started
    print(f"{precision}, {images} images, {jobs} jobs: {elapsed:.1f} s", flush=True)
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=45_000, help="images per run")
    arguments = parser.parse_args()
    needs.check(("dvc",), ("git", "optlab"))
    precisions = ["fp32", "bf16"] if has_native_bf16(torch.device("cpu")) else ["fp32"]
    rounds: dict[str, list[tuple[float, float]]] = {precision: [] for precision in precisions}
    for precision in precisions:
        for _ in range(arguments.rounds):
            one, two = (seconds(precision, arguments.images, jobs) for jobs in (1, 2))
            rounds[precision].append((one, two))
            RESULTS.write_text(report(rounds, arguments.images))  # now, so that no later round takes it away
    print(RESULTS.read_text())


def report(rounds: dict[str, list[tuple[float, float]]], images: int) -> str:
    """The table in markdown: of each precision, the seconds of one at a time and of two, round by round.

    The last precision may have fewer rounds than the first, or none.
    """
    facts = capture_environment(torch.device("cpu"))
    counts = " and ".join(dict.fromkeys(str(len(pairs)) for pairs in rounds.values() if pairs))
    lines = [
        "# Side by side",
        "",
        f"{facts.cpu}, {len(os.sched_getaffinity(0))} cores, {facts.onednn_isa}; torch "
        f"{facts.packages['torch']}. Six runs (SGD, Adam, AdamW; two seeds), `threads: 1`, one epoch of "
        f"{images:,} images, from the start of `optlab repro` to its table; n = {counts} rounds, "
        f"median (least – most).",
        "",
        "| precision | one at a time, s | two at a time, s | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for precision, pairs in rounds.items():
        if pairs:
            one, two = zip(*pairs, strict=True)
            ratios = [first / second for first, second in pairs]
            lines.append(f"| {precision} | {spread(one, '.1f')} | {spread(two, '.1f')} | {spread(ratios, '.2f')} |")
    if not rounds.get("bf16"):
        reason = "" if "bf16" in rounds else "This CPU has no bf16 instructions: "
        lines += ["", f"{reason}bf16 was not measured."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run_main(main)
