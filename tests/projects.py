"""A small project of its own: the repository's files, the sample for data, and a shrunken params.yaml."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]
SAMPLE = TOP / "tests" / "data" / "cifar10-sample.tar.gz"

PARAMS = """\
model: zilliax
seeds: [0]
data: {dataset: cifar10_sample, train_size: 400, validation_size: 100}
training: {epochs: 2, batch_size: 64, precision: fp32, threads: 2, schedule: {name: constant, warmup_epochs: 0}}
optimizers:
  sgd: {class: SGD, lr: 0.01}
  adam: {class: Adam, lr: 0.001}
"""


@dataclass(frozen=True)
class Project:
    """A git and DVC repository in a temporary folder."""

    top: Path

    @property
    def environment(self) -> dict[str, str]:
        """That repository's own code, the sample, and nothing of the caller's MLflow settings.

        MLflow puts its address into the environment of the process that calls it, which a test may have been.
        """
        own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DVC"))}
        return own | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.top / "src"),
            "CIFAR10_ARCHIVE": str(SAMPLE),
        }

    def run(self, *command: str, folder: str = ".", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, to its end."""
        own = self.environment | environment
        return subprocess.run(command, cwd=self.top / folder, env=own, capture_output=True, text=True, timeout=600)

    def stage(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one stage module without DVC."""
        return self.run(sys.executable, f"pipeline/{name}.py", *arguments, **environment)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a file; it must be there."""
        text = (self.top / path).read_text()
        assert old in text
        (self.top / path).write_text(text.replace(old, new))

    def copy(self, target: Path) -> "Project":
        """Everything, outputs and stores included, in another place."""
        shutil.copytree(self.top, target, symlinks=True)
        return Project(target)


def logged_runs(project: Project) -> dict[str, dict]:
    """What the project's MLflow database has of each run, read without MLflow, which takes seconds to import.

    Not opened read-only: after a kill in the middle of a write, SQLite has to put the database in order first.
    """
    with contextlib.closing(sqlite3.connect(f"file:{project.top / 'mlflow.db'}?mode=rw", uri=True)) as database:
        steps = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'step/loss' ORDER BY step"
        return {
            run: {
                "name": name,
                "status": status,
                "tags": dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run])),
                "steps": [step for (step,) in database.execute(steps, [run])],
            }
            for run, name, status in database.execute("SELECT run_uuid, name, status FROM runs").fetchall()
        }


@contextlib.contextmanager
def started(project: Project, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """A process beside the test; it is killed at the end, with all that follows it."""
    with (project.top.parent / f"{project.top.name}.log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=project.top, env=project.environment, stdout=log, stderr=log, start_new_session=True, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while processes_below(project.top) and time.monotonic() < deadline:
            time.sleep(0.1)


def until(process: "subprocess.Popen[str]", reached: Callable[[], object]) -> None:
    """Wait for it, as long as the process is at work."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"it ended, with exit status {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(project: Project, run: str = "adam-0") -> list[Path]:
    """The checkpoints of a run that are whole."""
    return list(project.top.glob(f".optlab/checkpoints/optlab-{run}/*/*/[0-9]*.safetensors"))


def processes_below(folder: Path) -> list[psutil.Process]:
    """The processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def commit(project: Project, message: str) -> None:
    """All that git does not ignore."""
    for words in (["add", "-A"], ["commit", "-qm", message]):
        result = project.run("git", *words)
        assert result.returncode == 0, result.stderr


def lock_of(project: Project) -> dict[str, dict]:
    """The stages of its dvc.lock."""
    return YAML(typ="safe").load(project.top / "dvc.lock")["stages"]


def create(top: Path) -> Project:
    """The tracked and new files of this repository in a new one, without its record."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=TOP, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        if name.startswith(("runs/", "reports/", "tests/", "tutorial/runs", "tutorial/reports")) or "dvc.lock" in name:
            continue
        if (TOP / name).is_file():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, top / name)
    (top / "params.yaml").write_text(PARAMS)
    project = Project(top)
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@example.org"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "start"],
    ):
        assert project.run(*command).returncode == 0
    return project
