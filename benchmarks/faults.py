"""Kills and server outages at random moments, on the small sample: what is lost, what is wrong, what is left.

Usage: python benchmarks/faults.py kills|outages [--trials N] [--jobs N] [--seed N]

Each trial has a project of its own and runs `dvc repro` of one training and its evaluation. Prints a line per trial and
a table; exit status 1 if anything was lost or wrong. MLflow's database is read with SQL, not with optlab's code.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import projects
from projects import Project

STAGES = ("train@adam-0", "evaluate@adam-0")
COMMAND = ("dvc", "repro", "--single-item", *STAGES)
OUTPUTS = (
    "models/adam-0.safetensors",
    "runs/adam-0/train.json",
    "runs/adam-0/test.json",
    "runs/adam-0/predictions.csv",
)
UNSTEADY = ("system/", "epoch/images_per_second")  # measured, not computed: another run has others


def base(folder: Path) -> Project:
    """A project with the data in place whose training takes some seconds on one thread."""
    folder.mkdir()
    project = projects.create(folder)
    project.edit("params.yaml", "epochs: 2", "epochs: 100")
    project.edit("params.yaml", "threads: 2", "threads: 1")
    assert project.run("dvc", "repro", "download").returncode == 0
    return project


def start(project: Project, **environment: str) -> "subprocess.Popen[bytes]":
    """The command, as it prints into a file of the project's."""
    with printed_in(project).open("wb") as output:
        return subprocess.Popen(
            COMMAND, cwd=project.top, env=project.environment | environment, start_new_session=True,
            stdout=output, stderr=output,
        )  # fmt: skip


def printed_in(project: Project) -> Path:
    return project.top / ".optlab-output"


def digests(project: Project) -> list[str]:
    paths = [project.top / name for name in OUTPUTS]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing" for path in paths]


def runs_in(database: Path) -> list[str]:
    """The status of every run."""
    with closing(sqlite3.connect(database)) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs")]


def metrics_in(database: Path) -> Counter[tuple[Any, ...]]:
    """(name, step, value, time) of every metric, and how often it is there."""
    with closing(sqlite3.connect(database)) as connection:
        return Counter(
            connection.execute("SELECT key, step, CASE WHEN is_nan THEN 'nan' ELSE value END, timestamp FROM metrics")
        )


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


def reference(project: Project, folder: Path) -> Reference:
    own = project.copy(folder)
    began = time.monotonic()
    child = start(own)
    assert child.wait() == 0, printed_in(own).read_text()
    return Reference(time.monotonic() - began, digests(own), computed(metrics_in(own.top / "mlflow.db")))


def kill_trial(project: Project, wanted: Reference, folder: Path, moment: float, victim: str) -> dict[str, Any]:
    """Kill at a moment, then run the same command to its end.

    victim: `all` (every process at once), `stage` (what DVC started), or `dvc` alone, with the next command at once.
    """
    own = project.copy(folder)
    child = start(own)
    time.sleep(moment)
    finished = child.poll() is not None
    if not finished:
        below = [each for each in projects.processes_below(own.top) if each.pid != child.pid]
        for each in [] if victim == "dvc" else below:
            each.kill()
        if victim != "stage":
            child.kill()
        child.wait()
    again = own.run(*COMMAND)
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
    text = "after the end" if finished else f"{victim} killed"
    return {"text": f"{moment:5.1f} s  {text}{', continued' if resumed else ''}", "faults": faults, "output": printed,
            "kind": "after the end" if finished else f"{victim} killed", "continued": resumed}  # fmt: skip


class Server:
    """An MLflow server of its own, on SQLite, that can be killed, stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self.start()

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [Path(sys.executable).parent / "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.database}",
             "--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self.port)],
            cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        if not wait_until(self.answers, 120):
            raise SystemExit("the MLflow server did not start")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


def wait_until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def outage_trial(project: Project, wanted: Reference, folder: Path, moment: float, kind: str) -> dict[str, Any]:
    """A server that goes away or hangs at a moment; back at once or after the end; then `optlab sync`."""
    own, server = project.copy(folder), Server(folder.with_name(f"{folder.name}-server"))
    try:
        began = time.monotonic()
        child = start(own, MLFLOW_TRACKING_URI=server.uri)
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
        recorded = journalled(own)
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
            "warnings too many": max(0, output.count("warning:") - len(STAGES)),  # one for each stage
            "changed by a second sync": sum(((first - second) + (second - first)).values()),
        }
        return {"text": f"{moment:5.1f} s  {kind}, {seconds / wanted.seconds:.2f} × the time", "faults": faults,
                "output": printed, "kind": kind, "ratio": seconds / wanted.seconds}  # fmt: skip
    finally:
        server.signal(signal.SIGKILL)
        server.process.wait()


def journalled(project: Project) -> Counter[tuple[Any, ...]]:
    """What the journal says MLflow should have, with its times."""
    found: Counter[tuple[Any, ...]] = Counter()
    for path in (project.top / ".optlab" / "journal").glob("*/events.jsonl"):
        for line in path.read_text().splitlines():
            for name, value, when, step in json.loads(line).get("points", ()):
                found[name, step, value, when] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "outages"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trial, kinds, default = {
        "kills": (kill_trial, ("all", "stage", "dvc"), 50),
        "outages": (outage_trial, ("killed", "restarted", "hangs"), 20),
    }[options.what]
    trials, draw = options.trials or default, random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="optlab-faults-") as name:
        folder = Path(name)
        project = base(folder / "base")
        wanted = reference(project, folder / "reference")
        print(f"undisturbed: {wanted.seconds:.1f} s, {sum(wanted.metrics.values())} metrics", flush=True)
        plans = [(number, draw.uniform(0, wanted.seconds), kinds[number % len(kinds)]) for number in range(trials)]

        def one(plan: tuple[int, float, str]) -> dict[str, Any]:
            number, moment, kind = plan
            result = trial(project, wanted, folder / f"trial{number}", moment, kind)
            bad = {key: value for key, value in result["faults"].items() if value}
            print(f"{number + 1:3}  {result['text']}  {bad or 'nothing lost or wrong'}", flush=True)
            if bad:
                print(result["output"], flush=True)
            else:
                shutil.rmtree(folder / f"trial{number}")
            return result

        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(one, plans))
    report(results)


def report(results: list[dict[str, Any]]) -> None:
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
    sys.exit(1 if any(total.values()) else 0)


if __name__ == "__main__":
    main()
