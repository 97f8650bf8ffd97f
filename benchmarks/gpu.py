"""Measure training on a CUDA device: images a second, equal bits, trainings at once, a whole comparison.

    python benchmarks/gpu.py [--minutes 8]                    # writes benchmarks/GPU.md
    python benchmarks/gpu.py --device cpu [--output FILE]     # a dry run of the same code, without a device

Each measurement has processes of its own, and sets TF32 in them. The most useful comes first. The page is written after
each; at the deadline, the current one is stopped, and the page says what was left out.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_tasks
import needs
import torch
from gpu_tasks import BITS_STEPS, PRECISIONS, ROUNDS, WARMUP, Task, describe
from needs import TOP
from ruamel.yaml import YAML
from throughput_report import BATCH, spread

from optlab.environment import capture_environment
from optlab.schema import parameters
from optlab.system import errors, files, processes, repository
from optlab.training import models

RESULTS = TOP / "benchmarks" / "GPU.md"
DRY_RUN = Path(tempfile.gettempdir()) / "optlab-gpu-dry-run.md"
COUNTS = (1, 2, 4, 8, 16, 32)  # trainings at once
NEIGHBOURS = 3  # trainings beside the one whose weights are compared
SEEDS = list(range(8))  # of the whole comparison
LIMIT = 100.0  # seconds for a measurement
NOTES = f"""\
TF32 is set for matrix products (`torch.backends.cuda.matmul`) and convolutions (`torch.backends.cudnn`) alike;
everything else is as in a run, deterministic algorithms included. Each step waits for its loss. *compiled*: the
network, by `torch.compile`. *CUDA graph*: a whole step is captured once and replayed, its learning rate with it.
*copied*: each batch is made on the CPU and copied as float32. Trainings at once are processes; the medians of their
rates are added up. The weights after `--steps` steps, {BITS_STEPS} at most, are compared by SHA-256.
"""


class MeasurementError(Exception):
    """Failure of a measurement; its text stands in the table."""


class Child:
    """A process with a task."""

    def __init__(self, task: Task) -> None:
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read when the process has ended)
        self.process = subprocess.Popen(
            [sys.executable, gpu_tasks.__file__, json.dumps(dataclasses.asdict(task))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, start_new_session=True,
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if task.device == "cpu" else {}),
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            MeasurementError: the task failed, or the process has ended.
        """
        if line := self.process.stdout.readline():
            message = json.loads(line)
            if "error" in message:
                raise MeasurementError(message["error"])
            return message
        status = self.process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().strip().rpartition("\n")[2]
        raise MeasurementError("it was killed" if status == -signal.SIGKILL else f"exit status {status}: {last}")

    def begin(self) -> None:
        """Let the task begin."""
        with contextlib.suppress(BrokenPipeError):  # the process has ended; `read` says why
            print(file=self.process.stdin, flush=True)

    def kill(self) -> None:
        """Kill the process and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def run_together(tasks: Sequence[Task], deadline: float) -> Iterator[list[dict[str, Any]]]:
    """Begin tasks when all are ready, and yield their results; the processes stay busy inside the context.

    Raises:
        MeasurementError: a task failed, or was not done at the deadline, a time of `time.monotonic`.
    """
    children: list[Child] = []
    limit, overdue = deadline - time.monotonic(), threading.Event()

    def stop() -> None:
        overdue.set()
        for child in children:
            child.kill()

    timer = threading.Timer(limit, stop)
    try:
        children.extend(Child(task) for task in tasks)
        timer.start()
        for child in children:
            child.read()
        for child in children:
            child.begin()
        yield [child.read() for child in children]
    except MeasurementError as error:
        raise MeasurementError(f"not done after {limit:.0f} s") if overdue.is_set() else error from None
    finally:
        timer.cancel()
        stop()
        for child in children:
            child.process.communicate()


def report_rate(task: Task, count: int, deadline: float) -> str:
    """Return the images a second of so many trainings at once."""
    with run_together([task] * count, deadline) as results:
        if count == 1:
            return f"{spread(results[0]['rates'], ',.0f')} images/s"
        return f"{sum(statistics.median(each['rates']) for each in results):,.0f} images/s in all"


def compare_weights(task: Task, neighbours: int, deadline: float) -> str:
    """Compare the weights from two processes; the second runs beside other trainings."""
    with run_together([task], deadline) as (first,):
        pass
    others = run_together([dataclasses.replace(task, kind="rate")] * neighbours, deadline)
    with others, run_together([task], deadline) as (second,):
        different = [name for name in first if first[name] != second[name]]
    return f"different: {'; '.join(different)}" if different else f"equal: {'; '.join(first)}"


def time_comparison(deadline: float) -> str:
    """Time `optlab repro` of the optimizers of params.yaml at `SEEDS` in a clone without a record."""
    with tempfile.TemporaryDirectory() as folder:
        top, log = Path(folder) / "clone", Path(folder) / "log"
        subprocess.run(["git", "clone", "--quiet", TOP, top], check=True)
        shutil.copytree(TOP / repository.DATA, top / repository.DATA)
        (top / "dvc.lock").unlink()
        yaml = YAML()
        values = yaml.load(top / parameters.PARAMS_FILE)
        values["seeds"] = SEEDS
        yaml.dump(values, top / parameters.PARAMS_FILE)
        own = {key: value for key, value in needs.environment().items() if not key.startswith(("MLFLOW_", "OPTLAB_"))}
        command, began = [sys.executable, "-m", "optlab", "repro"], time.monotonic()
        with log.open("wb") as output, subprocess.Popen(
            command, cwd=top, env=own | {"PYTHONPATH": str(top / "src")}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                status = process.wait(deadline - began)
            except subprocess.TimeoutExpired:
                raise MeasurementError(f"not done after {deadline - began:.0f} s") from None
            finally:
                processes.stop([process])
        if status:
            raise MeasurementError(log.read_text().strip().rpartition("\n")[2])
        return f"{(time.monotonic() - began) / 60:.1f} minutes"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the table: `measure` gets the deadline and returns the text; an `obstacle` leaves it out."""

    title: str
    measure: Callable[[float], str]
    obstacle: str = ""
    limit: float = LIMIT


def plan(device: str, steps: int) -> list[Measurement]:
    """List the measurements, the most useful first."""
    base, loops = Task(device, steps), ("eager", "CUDA graph", "compiled")

    def plan_rate(**changes: str) -> Measurement:
        task = dataclasses.replace(base, **changes)
        obstacle = "the CPU has no CUDA graphs" if device == "cpu" and task.loop == "CUDA graph" else ""
        if task.model not in models.MODELS:
            obstacle = f"optlab has no network `{task.model}`"
        return Measurement(task.title, functools.partial(report_rate, task, 1), obstacle)

    found = [plan_rate(loop=each, precision=precision) for each in loops for precision in PRECISIONS]
    found += [plan_rate(data="copied", precision=precision) for precision in PRECISIONS]
    bits = dataclasses.replace(base, kind="bits")
    for title, neighbours in (("", 0), (f" beside {NEIGHBOURS} other trainings", NEIGHBOURS)):
        measure = functools.partial(compare_weights, bits, neighbours)
        found.append(Measurement(f"weights of zilliax in a second process{title}", measure))
    for count in COUNTS[: 2 if device == "cpu" else None]:
        found.append(Measurement(f"{base.title}, {count} at once", functools.partial(report_rate, base, count)))
    found += [plan_rate(model=model) for model in ("conv6", "resnet18", "fast")]
    title = f"`optlab repro`, three optimizers at {len(SEEDS)} seeds, from its start to the verdicts"
    obstacle = "" if (TOP / repository.DATA).is_dir() else f"the data set is not in {repository.DATA}"
    obstacle = "it needs a GPU" if device == "cpu" else obstacle
    found.append(Measurement(title, time_comparison, obstacle, limit=float("inf")))
    return found + [
        plan_rate(data="copied", loop=each, precision=precision) for each in loops[1:] for precision in PRECISIONS
    ]


def measure_all(measurements: Sequence[Measurement], deadline: float, write: Callable[[dict[str, str]], None]) -> None:
    """Measure one after the other until the deadline; `write` gets the text of every title after each."""
    texts = {each.title: f"left out: {each.obstacle}" if each.obstacle else "not measured" for each in measurements}
    write(texts)
    for each in measurements:
        if each.obstacle:
            continue
        now = time.monotonic()
        try:
            texts[each.title] = (
                each.measure(min(deadline, now + each.limit)) if now < deadline else "left out: time limit reached"
            )
        except Exception as error:
            texts[each.title] = f"failed: {error if isinstance(error, MeasurementError) else describe(error)}"
        write(texts)
        print(f"{each.title}: {texts[each.title]}", flush=True)


def render(arguments: argparse.Namespace, device: str, texts: dict[str, str]) -> str:
    """Return the page in Markdown."""
    cpu = arguments.device == "cpu"
    images = "CIFAR-10's images" if (TOP / repository.DATA).is_dir() else "generated images"
    lines = [
        "# GPU",
        "",
        *(["A dry run on the CPU: none of these figures is a GPU's.", ""] if cpu else []),
        f"{device}; torch {torch.__version__}, Python {platform.python_version()}. `python benchmarks/gpu.py` with "
        f"`--minutes {arguments.minutes:g} --steps {arguments.steps}`: {ROUNDS} rounds of so many timed steps, after "
        f"at most {WARMUP} warm-up steps, median (least – most). Batches of {BATCH}, {images}, SGD with momentum.",
        "",
        "| measurement | result |",
        "| --- | --- |",
        *(f"| {title} | {' '.join(text.split()).replace('|', '/')[:300]} |" for title, text in texts.items()),
        "",
        " ".join(NOTES.splitlines()),
    ]
    return "\n".join(lines) + "\n"


def describe_device(device: str) -> str:
    """Return the device's name, with its driver and CUDA's version.

    Raises:
        OptlabError: there is no CUDA device.
    """
    if device == "cpu":
        return f"{capture_environment(torch.device('cpu')).cpu}, {os.cpu_count()} cores"
    if not torch.cuda.is_available():
        raise errors.OptlabError("there is no CUDA device: `--device cpu` is a dry run without one")
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    return f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores; driver {driver}, CUDA {torch.version.cuda}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--steps", type=int, default=500, help="steps of each of three rounds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="default: benchmarks/GPU.md; for the CPU a temporary file")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    device = describe_device(arguments.device)
    output = (arguments.output or (DRY_RUN if arguments.device == "cpu" else RESULTS)).resolve()
    if arguments.device == "cpu" and output == RESULTS:
        parser.error("a dry run does not write GPU.md, which has a GPU's figures")

    def write(texts: dict[str, str]) -> None:
        files.write_atomic(output, render(arguments, device, texts).encode())

    with processes.interrupt_on_sigterm():  # so that no child outlives this process
        measure_all(plan(arguments.device, arguments.steps), deadline, write)
    print(f"written to {output}")


if __name__ == "__main__":
    errors.run_main(main)
