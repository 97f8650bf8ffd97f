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

import torch
from ruamel.yaml import YAML
from throughput import TOP, spread

from optlab.config import parameters
from optlab.system import repository
from optlab.training import conditions

RESULTS = TOP / "benchmarks" / "SIDE_BY_SIDE.md"
SEEDS = [0, 1]  # of three optimizers: six runs


def seconds(precision: str, images: int, jobs: int) -> float:
    """The wall time of one `optlab repro --jobs` of six runs over `images` images, one epoch each."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", TOP, top], check=True)
        shutil.copytree(TOP / repository.DATA, top / repository.DATA)
        yaml = YAML()
        values = yaml.load(top / parameters.PARAMS)
        values["seeds"] = SEEDS
        values["data"]["train_size"] = images
        values["training"] |= {"epochs": 1, "threads": 1, "precision": precision}
        yaml.dump(values, top / parameters.PARAMS)
        environment = os.environ | {"PYTHONPATH": str(top / "src")}
        subprocess.run(["dvc", "repro", "--quiet", "download"], cwd=top, env=environment, check=True)
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
    facts = conditions.current(torch.device("cpu"))
    precisions = ["fp32", "bf16"] if conditions.bf16_is_native(torch.device("cpu")) else ["fp32"]
    lines = [
        "# Side by side",
        "",
        f"{facts['cpu']}, {len(os.sched_getaffinity(0))} cores, {facts['onednn_isa']}; torch "
        f"{facts['packages']['torch']}. Six runs (SGD, Adam, AdamW; two seeds), `threads: 1`, one epoch of "
        f"{arguments.images:,} images, from the start of `optlab repro` to its table; n = {arguments.rounds} rounds, "
        f"median (least – most).",
        "",
        "| precision | one at a time, s | two at a time, s | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for precision in precisions:
        rounds = [[seconds(precision, arguments.images, jobs) for jobs in (1, 2)] for _ in range(arguments.rounds)]
        one, two = zip(*rounds, strict=True)
        ratios = [first / second for first, second in rounds]
        lines.append(f"| {precision} | {spread(one, '.1f')} | {spread(two, '.1f')} | {spread(ratios, '.2f')} |")
    if len(precisions) == 1:
        lines += ["", "This CPU has no bf16 instructions: bf16 was not measured."]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
