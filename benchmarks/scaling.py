"""What a run on a Ray cluster costs besides its training, and what the machine that asks for it needs.

    python benchmarks/scaling.py [--runs 10 100 1000]          # writes benchmarks/SCALING.md

The cluster's nodes are processes of this machine, with one processor each as far as Ray knows. The runs of the first
table rest for most of their two seconds, so that four at a time do not wait for two cores. Those of the second are as
short as they can be: one epoch of 100 images.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from needs import TOP
from ray.cluster_utils import Cluster

sys.path.insert(0, str(TOP / "tests"))
import projects

from optlab.environment import capture_environment
from optlab.training import determinism

RESULTS = TOP / "benchmarks" / "SCALING.md"
RUNS = 16
OPTIMIZERS = "  sgd: {class: SGD, lr: 0.01}\n  adam: {class: Adam, lr: 0.001}\n"


@contextlib.contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """The address of one with so many nodes that work."""
    nodes = Cluster()
    try:
        nodes.add_node(num_cpus=0, temp_dir=str(folder / "head"), object_store_memory=2**28)
        for number in range(workers):
            own = folder / str(number)
            (own / "tmp").mkdir(parents=True)
            variables = {"TMPDIR": str(own / "tmp"), "OMP_WAIT_POLICY": "PASSIVE"}
            nodes.add_node(num_cpus=1, temp_dir=str(own), env_vars=variables, object_store_memory=2**27)
        yield nodes.address
    finally:
        nodes.shutdown()


def project(folder: Path, optimizer: str, seeds: int, epochs: int) -> projects.Project:
    """One with so many runs of one optimizer in one thread."""
    made = projects.create(folder)
    (folder / "custom" / "resting.py").write_text(projects.RESTING)
    made.edit("params.yaml", OPTIMIZERS, f"  one: {optimizer}\n")
    made.edit("params.yaml", "seeds: [0]", f"seeds: {list(range(seeds))}")
    made.edit("params.yaml", "epochs: 2", f"epochs: {epochs}")
    made.edit("params.yaml", "threads: 2", "threads: 1")
    assert made.run(sys.executable, "pipeline/download.py").returncode == 0
    return made


def repro(made: projects.Project, address: str) -> dict[str, float]:
    """Seconds until the first run began and until the last one had ended, those of a run, and the driver's MiB."""
    began, peak = time.time(), 0
    with projects.started(made, "optlab", "repro", "--cluster", address) as command:
        process = psutil.Process(command.pid)
        while command.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, process.memory_info().rss)
            time.sleep(0.2)
    whole = time.time() - began
    assert command.returncode == 0, projects.output(made)[-2000:]
    starts, ends = [], []
    for path in made.top.glob(".optlab/event_logs/*/events.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        starts.append(next(each["time"] for each in events if each["event"] == "start") / 1000)
        ends.append(next(each["time"] for each in events if each["event"] == "end") / 1000)
    own = sum(end - start for start, end in zip(starts, ends, strict=True)) / len(starts)
    return {
        "first": min(starts) - began,
        "last": max(ends) - min(starts),
        "own": own,
        "mib": peak / 2**20,
        "all": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="*", default=[10, 100, 1000])
    counts = parser.parse_args().runs
    cpu = capture_environment(determinism.torch.device("cpu")).cpu
    text = (
        f"# Runs on a cluster\n\n{cpu}, {psutil.cpu_count()} cores for all nodes and the machine that asks; "
        f"`python benchmarks/scaling.py`, n = 1.\n\n"
        f"| workers | runs | until the first run began, s | from then to the last run's end, s | a training, s | "
        f"beyond it, for each run on its worker, s |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        for workers in (1, 2, 4):
            made = project(here / "project", "{class: resting.Resting, lr: 0.001}", RUNS, 18)
            with cluster(here / "nodes", workers) as address:
                got = repro(made, address)
            beyond = got["last"] * workers / RUNS - got["own"]
            text += (
                f"| {workers} | {RUNS} | {got['first']:.1f} | {got['last']:.1f} | {got['own']:.2f} | {beyond:.2f} |\n"
            )
            shutil.rmtree(here / "project")
            shutil.rmtree(here / "nodes")
            RESULTS.write_text(text)
        text += (
            "\nTwo workers, runs as short as they can be:\n\n| runs | the whole command, s | a run, s | "
            "the highest memory of the process that asks, MiB | dvc.lock, KiB | again, with nothing to do, s |\n"
            "| --- | --- | --- | --- | --- | --- |\n"
        )
        for runs in counts:
            made = project(here / "project", "{class: SGD, lr: 0.01}", runs, 1)
            with cluster(here / "nodes", 2) as address:
                got = repro(made, address)
            began = time.monotonic()
            assert made.run("optlab", "repro").returncode == 0
            row = (
                runs, f"{got['all']:.0f}", f"{got['all'] / runs:.2f}", f"{got['mib']:.0f}",
                f"{(made.top / 'dvc.lock').stat().st_size / 1024:.0f}", f"{time.monotonic() - began:.0f}",
            )  # fmt: skip
            text += f"| {' | '.join(map(str, row))} |\n"
            shutil.rmtree(here / "project")
            shutil.rmtree(here / "nodes")
            RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
