"""A small project of its own: the repository's files, the sample for data, and a shrunken params.yaml."""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from optlab.environment import ENVIRONMENT_VARIABLES
from optlab.orchestration.fork_server import ForkServer, LocalJob
from optlab.system.processes import PARENT_PID_VARIABLE

TOP = Path(__file__).resolve().parents[1]
SAMPLE = TOP / "tests" / "data" / "cifar10-sample.tar.gz"

LONG = 24  # epochs of 7 steps each: with the rests some seconds, and so a checkpoint
RESTING = """\
import time

import torch


class Resting(torch.optim.Adam):
    def step(self, closure=None):
        if len(self.param_groups[0]["params"]) > 2:  # not while it is tried on two matrices
            time.sleep(0.015)
        return super().step(closure)
"""

PARAMS = """\
model: zilliax
seeds: [0]
data: {dataset: cifar10_sample, train_size: 100, validation_size: 20}
training: {epochs: 2, batch_size: 16, precision: fp32, threads: 2, schedule: {name: constant, warmup_epochs: 0}}
tuning: {trials: 4, halving: 2}
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
            "OMP_WAIT_POLICY": "PASSIVE",  # several tests share the cores: no thread is to wait for another one awake
        }

    def run(self, *command: str, folder: str = ".", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, to its end."""
        own = self.environment | environment
        return subprocess.run(command, cwd=self.top / folder, env=own, capture_output=True, text=True, timeout=600)

    def run_stage(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one stage module without DVC."""
        return self.run_forked(f"pipeline/{name}.py", *arguments, **environment)

    def run_forked(self, *words: str, folder: str = ".", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a stage's module, or `optlab`, as a child of a process that has imported what it needs.

        Where the project's code is not this repository's, or its numerics are decided before the imports, it is a
        process of its own.
        """
        if _can_be_forked(self.top, self.environment | environment):
            return _get_fork_server().call(list(words), self.top / folder, self.environment | environment)
        program = [] if words[0] == "optlab" else [sys.executable]
        return self.run(*program, *words, folder=folder, **environment)

    def repro(self, *words: str, folder: str = ".", **environment: str) -> subprocess.CompletedProcess[str]:
        """`dvc repro`, whose stages are such children, and follow nobody."""
        return self.run("dvc", "repro", *words, folder=folder, **self.get_fork_environment(**environment))

    def get_fork_environment(self, **environment: str) -> dict[str, str]:
        """The environment in which DVC's stages are such children."""
        return _get_fork_server().shim(self.environment | environment)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a file; it must be there."""
        text = (self.top / path).read_text()
        assert old in text
        (self.top / path).write_text(text.replace(old, new))

    def clone(self, target: Path, cached: bool = False) -> "Project":
        """What git has of it, in another place; with `cached`, DVC's cache is this one's."""
        assert self.run("git", "clone", "-q", str(self.top), str(target)).returncode == 0
        if cached:
            (target / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {self.top / '.dvc' / 'cache'}\n")
        return Project(target)

    def copy(self, target: Path) -> "Project":
        """Everything, outputs and stores included, in another place."""
        shutil.copytree(self.top, target, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        return Project(target)


def _can_be_forked(folder: Path, environment: dict[str, str]) -> bool:
    """Whether a process of this repository's code, with torch imported, can become one of that folder's."""
    own, its = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*.py")}
        for top in (TOP / "src" / "optlab", Path(environment["PYTHONPATH"]) / "optlab")
    )
    early = [
        name for name in ENVIRONMENT_VARIABLES if name != "CUBLAS_WORKSPACE_CONFIG"
    ]  # which are read when torch is imported
    same = all(environment.get(name) == os.environ.get(name) for name in early)
    return own == its and same and "numerics" not in (folder / "params.yaml").read_text()


# What the tests' `dvc` and `optlab` find as `python`: it passes a stage's command on, with its output, and waits for
# the status; what cannot be forked, it becomes.
SHIM = """\
#!{python} -ISE
import json, os, socket, sys
if len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
environment = {{name: value for name, value in os.environ.items() if name not in {callers}}}
with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    asked = json.dumps({{"words": sys.argv[1:], "folder": os.getcwd(), "environment": environment}}).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], [1, 2])
    server.sendall(asked)
    answer = server.makefile().readline().strip()
if answer == "not here":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
sys.exit(int(answer))
"""


class Stages(ForkServer):
    """The process that `Project.run_forked` forks; one for each process of tests."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="optlab-tests-"))
        self.PROGRAM = (str(Path(__file__).with_name("fork_stages.py")), str(self._folder / "python"))
        # A test in this process may have set MLflow's address for itself.
        own = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MLFLOW")}
        super().__init__(busy_wait=False)
        os.environ.update(own)
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        place = str(self._folder / "socket")
        callers = ["DVC_STAGE", PARENT_PID_VARIABLE]
        (self._folder / "python").write_text(SHIM.format(python=sys.executable, place=place, callers=callers))
        (self._folder / "python").chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(place)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def shim(self, environment: dict[str, str]) -> dict[str, str]:
        """The environment in which `python` is the shim."""
        return environment | {"PATH": f"{self._folder}{os.pathsep}{environment['PATH']}"}

    def call(self, words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self._do(words, folder, environment, [out.fileno(), err.fileno()])
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def _do(self, words: list[str], folder: Path, environment: dict[str, str], output: list[int]) -> int:
        job = LocalJob(words[0], None)
        assert self._send(job, words, folder, [], environment, output)
        status = job.result()
        assert not job.reason, job.reason
        return status

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._pass_on, args=[connection], daemon=True).start()

    def _pass_on(self, connection: socket.socket) -> None:
        with connection:
            size, output, _, _ = socket.recv_fds(connection, 8, 2)
            asked = json.loads(connection.makefile("rb").read(int.from_bytes(size, "big")))
            folder, environment = Path(asked["folder"]), asked["environment"]
            answer = "not here"
            if _can_be_forked(folder, environment):
                status = self._do(asked["words"], folder, environment, output)
                answer = str(status if status >= 0 else 128 - status)
            for descriptor in output:
                os.close(descriptor)
            connection.sendall(f"{answer}\n".encode())


@functools.cache
def _get_fork_server() -> Stages:
    return Stages()


def list_started_stages(result: "subprocess.CompletedProcess[str]") -> set[str]:
    """The stages that DVC said it runs."""
    return set(re.findall(r"Running stage '([^']+)'", result.stdout + result.stderr))


def logged_runs(project: Project) -> dict[str, dict]:
    """What the project's MLflow database has of each training, read without MLflow, which takes seconds to import.

    Not opened read-only: after a kill in the middle of a write, SQLite has to put the database in order first.
    """
    with contextlib.closing(sqlite3.connect(f"file:{project.top / 'mlflow.db'}?mode=rw", uri=True)) as database:
        trainings = "SELECT run_uuid, name, status FROM runs WHERE run_uuid NOT IN (SELECT run_uuid FROM tags "
        trainings += "WHERE key = 'summary')"
        steps = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'step/loss' ORDER BY step"
        return {
            run: {
                "name": name,
                "status": status,
                "tags": dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run])),
                "steps": [step for (step,) in database.execute(steps, [run])],
            }
            for run, name, status in database.execute(trainings).fetchall()
        }


@contextlib.contextmanager
def started(project: Project, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """A process beside the test; it is killed at the end, and what followed it has to end by itself."""
    with _log(project).open("a") as log:
        process = subprocess.Popen(
            command, cwd=project.top, env=project.environment, stdout=log, stderr=log, start_new_session=True, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while (left := processes_below(project.top)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
    assert not left, left


def output(project: Project) -> str:
    """What all that was `started` in it has printed."""
    return _log(project).read_text()


def _log(project: Project) -> Path:
    return project.top.parent / f"{project.top.name}.log"


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
        if name.startswith(("tests/", "studies/")) or "dvc.lock" in name:
            continue
        if name.removeprefix("tutorial/").startswith(("runs/", "reports/", "tuning/")):
            continue
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        if (TOP / name).is_symlink() or (TOP / name).is_file():
            shutil.copy(TOP / name, top / name, follow_symlinks=False)
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
