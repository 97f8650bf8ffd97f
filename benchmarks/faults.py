"""Kills and server outages at random moments, on the small sample: what is lost, what is wrong, what is left.

Usage: python benchmarks/faults.py kills|outages [--trials N] [--jobs N] [--seed N]
       python benchmarks/faults.py checkpoints    (what they cost; the whole data set must be there)

Each trial has a project of its own and runs one training and its evaluation, every other one by `dvc repro`, the rest
by `optlab repro`. Prints a line per trial and
a table; exit status 1 if anything was lost or wrong. MLflow's database is read with SQL, not with optlab's code.
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import projects
from projects import Project
from servers import Server, metrics_in, read_logged_metrics, runs_in, wait_until

COMMANDS = {
    "dvc": ("dvc", "repro", "--single-item", "train@adam-0", "evaluate@adam-0"),
    "optlab": ("optlab", "repro", "--jobs", "1"),
}
OUTPUTS = (
    "models/adam-0.safetensors",
    "runs/adam-0/train.json",
    "runs/adam-0/test.json",
    "runs/adam-0/predictions.csv",
)
UNSTEADY = ("system/", "training/images_per_second")  # measured, not computed: another run has others


def base(folder: Path) -> Project:
    """A project with the data in place whose training takes some seconds on one thread."""
    folder.mkdir()
    project = projects.create(folder)
    project.edit("params.yaml", "epochs: 2", "epochs: 12")
    project.edit("params.yaml", "threads: 2", "threads: 1")
    project.edit("params.yaml", "  sgd: {class: SGD, lr: 0.01}\n", "")
    assert project.run("dvc", "repro", "download").returncode == 0
    return project


def start(project: Project, way: str, **environment: str) -> "subprocess.Popen[bytes]":
    """The command, as it prints into a file of the project's."""
    with printed_in(project).open("wb") as output:
        return subprocess.Popen(
            COMMANDS[way], cwd=project.top, env=project.environment | environment, start_new_session=True,
            stdout=output, stderr=output,
        )  # fmt: skip


def printed_in(project: Project) -> Path:
    return project.top / ".optlab-output"


def digests(project: Project) -> list[str]:
    paths = [project.top / name for name in OUTPUTS]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing" for path in paths]


def computed(metrics: Counter[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
    """(name, step, value) of those that a repetition must have again."""
    found: Counter[tuple[Any, ...]] = Counter()
    for (name, step, value, _), count in metrics.items():
        if not name.startswith(UNSTEADY):
            found[name, step, value] += count
    return found


@dataclass
class Reference:
    """A run that nothing happened to."""

    seconds: float
    digests: list[str]
    metrics: Counter[tuple[Any, ...]]


def reference(project: Project, folder: Path, way: str) -> Reference:
    own = project.copy(folder)
    began = time.monotonic()
    child = start(own, way)
    assert child.wait() == 0, printed_in(own).read_text()
    return Reference(time.monotonic() - began, digests(own), computed(metrics_in(own.top / "mlflow.db")))


def kill_trial(
    project: Project, wanted: Reference, folder: Path, moment: float, victim: str, way: str
) -> dict[str, Any]:
    """Kill at a moment, then run the same command to its end.

    victim: `all` (every process at once), `started` (what the command has started), or the `command` alone, with the
    next one at once.
    """
    own = project.copy(folder)
    child = start(own, way)
    time.sleep(moment)
    finished = child.poll() is not None
    if not finished:
        below = [each for each in projects.processes_below(own.top) if each.pid != child.pid]
        for each in [] if victim == "command" else below:
            each.kill()
        if victim != "started":
            child.kill()
        child.wait()
    again = own.run(*COMMANDS[way])
    wait_until(lambda: not projects.processes_below(own.top), 30)
    left = projects.processes_below(own.top)
    printed = again.stdout + again.stderr + printed_in(own).read_text()
    metrics, statuses = computed(metrics_in(own.top / "mlflow.db")), runs_in(own.top / "mlflow.db")
    faults = {
        "failed": int(again.returncode != 0),
        "wrong bytes": sum(a != b for a, b in zip(digests(own), wanted.digests, strict=True)),
        "lost metrics": sum((wanted.metrics - metrics).values()),
        "doubled metrics": sum((metrics - wanted.metrics).values()),
        "runs too many": len(statuses) - 1,
        "not FINISHED": sum(status != "FINISHED" for status in statuses),
        "tracebacks": printed.count("Traceback"),
        "processes left": len(left),
        "checkpoints left": len(list((own.top / ".optlab" / "checkpoints").rglob("*.safetensors"))),
    }
    for each in left:
        each.kill()
    resumed = "continues after step" in again.stdout
    text = f"{way}, after the end" if finished else f"{way}, {victim} killed"
    return {"text": f"{moment:5.1f} s  {text}{', continued' if resumed else ''}", "faults": faults, "output": printed,
            "kind": text, "continued": resumed}  # fmt: skip


def outage_trial(
    project: Project, wanted: Reference, folder: Path, moment: float, kind: str, way: str
) -> dict[str, Any]:
    """A server that goes away or hangs at a moment; back at once or after the end; then `optlab sync`."""
    own, server = project.copy(folder), Server(folder.with_name(f"{folder.name}-server"))
    try:
        began = time.monotonic()
        child = start(own, way, MLFLOW_TRACKING_URI=server.uri)
        time.sleep(moment)
        server.signal(signal.SIGSTOP if kind == "hangs" else signal.SIGKILL)
        if kind == "restarted":
            server.process.wait()
            server.start()
        child.wait()
        output = printed_in(own).read_text()
        seconds = time.monotonic() - began
        if kind == "hangs":
            server.signal(signal.SIGCONT)
        elif kind == "killed":
            server.process.wait()
            server.start()
        syncs = [own.run("optlab", "sync", MLFLOW_TRACKING_URI=server.uri)]
        first = metrics_in(server.database)
        syncs.append(own.run("optlab", "sync", MLFLOW_TRACKING_URI=server.uri))
        second = metrics_in(server.database)
        recorded = read_logged_metrics(own)
        printed = output + "".join(each.stdout + each.stderr for each in syncs)
        statuses = runs_in(server.database)
        faults = {
            "failed": sum(status != 0 for status in (child.returncode, *(each.returncode for each in syncs))),
            "wrong bytes": sum(a != b for a, b in zip(digests(own), wanted.digests, strict=True)),
            "lost metrics": sum((recorded - second).values()) + sum((wanted.metrics - computed(second)).values()),
            "doubled metrics": sum((second - recorded).values()) + sum((computed(second) - wanted.metrics).values()),
            "runs too many": len(statuses) - 1,
            "not FINISHED": sum(status != "FINISHED" for status in statuses),
            "tracebacks": printed.count("Traceback"),
            "warnings too many": max(0, output.count("warning:") - 2),  # of what sends, and of who shows the comparison
            "changed by a second sync": sum(((first - second) + (second - first)).values()),
        }
        return {"text": f"{moment:5.1f} s  {way}, {kind}, {seconds / wanted.seconds:.2f} × the time", "faults": faults,
                "output": printed, "kind": f"{way}, {kind}", "ratio": seconds / wanted.seconds}  # fmt: skip
    finally:
        server.signal(signal.SIGKILL)
        server.process.wait()


def checkpoint_cost() -> None:
    """The share of a training's time that goes into checkpoints, for a small network and a large one."""
    from optlab.config import loader
    from optlab.data import cifar10
    from optlab.schema import parameters
    from optlab.system import repository
    from optlab.training import checkpoint, determinism, loop

    class Timed(checkpoint.FileCheckpointer):
        times: list[float]

        def save(self, outcome: Any, stepper: Any) -> None:
            began = time.monotonic()
            super().save(outcome, stepper)
            self.times.append(time.monotonic() - began)

    repository.enter_root()
    Path(".optlab").mkdir(exist_ok=True)
    device = determinism.configure_torch(loader.load().training)
    for model, images, epochs in (("zilliax", 45000, 5), ("resnet18", 2560, 1)):
        settings = loader.load().model_dump(by_alias=True) | {"model": model}
        settings["data"] |= {"train_size": images, "validation_size": 100}
        settings["training"] |= {"epochs": epochs}
        parsed = parameters.Config.model_validate(settings)
        splits = cifar10.load(repository.DATA, parsed.data, 0)
        with tempfile.TemporaryDirectory(dir=".optlab") as folder:
            saver = Timed(Path(folder) / "run" / "key", lambda: None)
            saver.times = []
            began = time.monotonic()
            loop.train(parsed, "adam", 0, splits, device, [], saver)
            seconds = time.monotonic() - began
            size = max((path.stat().st_size for path in Path(folder).rglob("*.safetensors")), default=0)
        print(
            f"{model}, Adam: {len(saver.times)} checkpoints of {size / 1e6:.1f} MB in {seconds:.1f} s, "
            f"{sum(saver.times) / seconds:.2%} of the time, median {sorted(saver.times)[len(saver.times) // 2]:.3f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "outages", "checkpoints"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "checkpoints":
        checkpoint_cost()
        return
    trial, kinds, default = {
        "kills": (kill_trial, ("all", "started", "command"), 50),
        "outages": (outage_trial, ("killed", "restarted", "hangs"), 20),
    }[options.what]
    trials, draw = options.trials or default, random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="optlab-faults-") as name:
        folder = Path(name)
        project = base(folder / "base")
        wanted = {way: reference(project, folder / f"reference-{way}", way) for way in COMMANDS}
        for way, each in wanted.items():
            print(f"{way}, undisturbed: {each.seconds:.1f} s, {sum(each.metrics.values())} metrics", flush=True)
        results: list[dict[str, Any]] = []
        plans = [(number, draw.random(), kinds[number // 2 % len(kinds)]) for number in range(trials)]

        def one(plan: tuple[int, float, str]) -> None:
            number, moment, kind = plan
            way = list(COMMANDS)[number % 2]
            mine = wanted[way]
            result = trial(project, mine, folder / f"trial{number}", moment * mine.seconds, kind, way)
            results.append(result)
            bad = {key: value for key, value in result["faults"].items() if value}
            print(f"{number + 1:3}  {result['text']}  {bad or 'nothing lost or wrong'}", flush=True)
            if bad:
                print(result["output"], flush=True)
            else:
                shutil.rmtree(folder / f"trial{number}")

        try:
            with ThreadPoolExecutor(options.jobs) as pool:
                list(pool.map(one, plans))
        finally:  # what was tried is counted, though one trial could not be held
            if results:
                report(results)
    sys.exit(any(any(result["faults"].values()) for result in results))


def report(results: list[dict[str, Any]]) -> None:
    """Print the table over all trials."""
    counts = Counter(result["kind"] for result in results)
    print(f"\nn = {len(results)}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    if "continued" in results[0]:
        print(f"continued from a checkpoint: {sum(result['continued'] for result in results)}")
    else:
        ratios = sorted(result["ratio"] for result in results)
        print(f"time, as a ratio to an undisturbed run: {ratios[0]:.2f} – {ratios[-1]:.2f}")
    total = {name: sum(result["faults"][name] for result in results) for name in results[0]["faults"]}
    print(
        "\n| "
        + " | ".join(total)
        + " |\n|"
        + " --- |" * len(total)
        + "\n| "
        + " | ".join(map(str, total.values()))
        + " |"
    )


if __name__ == "__main__":
    main()
