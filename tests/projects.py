"""A small project of its own: the repository's files, the sample for data, and a shrunken params.yaml."""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from optlab.environment import ENVIRONMENT_VARIABLES
from optlab.orchestration.fork_server import ForkServer, LocalJob
from optlab.system.processes import PARENT_PID_VARIABLE

TOP = Path(__file__).resolve().parents[1]
SAMPLE = TOP / "tests" / "data" / "cifar10-sample.tar.gz"

LONG = 12  # epochs of 7 steps each: with the rests some seconds, and so a checkpoint
RESTING = """\
import os
import time

import torch


class Resting(torch.optim.Adam):
    def step(self, closure=None):
        if len(self.param_groups[0]["params"]) > 2:  # not while it is tried on two matrices
            time.sleep(float(os.environ.get("REST_S", 0.03)))
        return super().step(closure)
"""

UNUSED = ("tests/", "studies/", "docs/", "benchmarks/")  # by the tests' projects

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

        MLflow puts its address into the environment of the process that calls it, which a test may have been, and
        `repro.run_pipeline` the id of that process, which a forked stage would miss among its ancestors.
        """
        foreign = ("MLFLOW", "DVC", "OPTLAB")
        own = {key: each for key, each in os.environ.items() if not key.startswith(foreign) or key == STAGES_VARIABLE}
        return own | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.top / "src"),
            "CIFAR10_ARCHIVE": str(SAMPLE),
            "OMP_WAIT_POLICY": "PASSIVE",  # several tests share the cores: no thread is to wait for another one awake
        }

    def run(self, *command: str, folder: str = ".", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, to its end; `dvc` is a child of a process that has imported it."""
        own = self.environment | environment
        if command[0] == "dvc" and (result := _fork(command, self.top / folder, own)):
            return result
        return subprocess.run(command, cwd=self.top / folder, env=own, capture_output=True, text=True, timeout=600)

    def run_stage(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one stage module without DVC."""
        return self.run_forked(f"pipeline/{name}.py", *arguments, **environment)

    def run_forked(
        self, *words: str, folder: str = ".", forced: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a stage's module, or `optlab`, as a child of a process that has imported what it needs.

        Where the project's code is not this repository's, or its numerics are decided before the imports, it is a
        process of its own; unless it is `forced`: then this repository's code runs, and what it starts may differ.
        """
        if result := _fork(words, self.top / folder, self.environment | environment, forced):
            return result
        program = [] if words[0] == "optlab" else [sys.executable]
        return self.run(*program, *words, folder=folder, **environment)

    def repro(self, *words: str, folder: str = ".", **environment: str) -> subprocess.CompletedProcess[str]:
        """`dvc repro`, whose stages are such children, and follow nobody."""
        return self.run("dvc", "repro", *words, folder=folder, **self.get_fork_environment(**environment))

    def get_fork_environment(self, **environment: str) -> dict[str, str]:
        """The environment in which DVC's stages are such children."""
        own = self.environment | environment
        return own | {"PATH": f"{_get_stages_folder()}{os.pathsep}{own['PATH']}"}

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
        """Everything, outputs and stores included, in another place, once nothing more is written to MLflow."""
        deadline = time.monotonic() + 60
        while any(each.pid != os.getpid() for each in processes_below(self.top)) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.copytree(self.top, target, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        return Project(target)


def _read_sources(top: Path) -> dict[Path, bytes]:
    """Relative path → content."""
    return {path.relative_to(top): _read_source(path, _stamp(path)) for path in top.rglob("*.py")}


def _stamp(path: Path) -> tuple[int, int, int]:
    known = path.stat()
    return known.st_ino, known.st_size, known.st_mtime_ns


@functools.cache
def _read_source(path: Path, stamp: tuple[int, int, int]) -> bytes:
    return path.read_bytes()


def _can_be_forked(folder: Path, environment: dict[str, str]) -> bool:
    """Whether a process of this repository's code, with torch imported, can become one of that folder's."""
    own, its = (_read_sources(top) for top in (TOP / "src" / "optlab", Path(environment["PYTHONPATH"]) / "optlab"))
    early = [
        name for name in ENVIRONMENT_VARIABLES if name != "CUBLAS_WORKSPACE_CONFIG"
    ]  # which are read when torch is imported
    same = all(environment.get(name) == os.environ.get(name) for name in early)
    return own == its and same and "numerics" not in (folder / "params.yaml").read_text()


# What the tests' `dvc` and `optlab` find as `python`: it passes a stage's command on, with its output, and waits for
# the status; what cannot be forked, it becomes, and the module that a test names as UNFORKED.
SHIM = """\
#!{python} -ISE
import json, os, socket, sys
if len(sys.argv) < 2 or not sys.argv[1].endswith(".py") or sys.argv[1] == os.environ.get("UNFORKED"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
environment = {{name: value for name, value in os.environ.items() if name not in {callers}}}
with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    asked = json.dumps({{"words": sys.argv[1:], "folder": os.getcwd(), "environment": environment}}).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], [1, 2])
    server.sendall(asked)
    status = json.loads(server.makefile().readline())
if status is None:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
sys.exit(status if isinstance(status, str) or status >= 0 else 128 - status)
"""
STAGES_VARIABLE = "OPTLAB_TESTS_STAGES"  # the folder of its socket


class Stages(ForkServer):
    """The process that `Project.run_forked` forks; one for all processes of tests, which ask for jobs at a socket."""

    def __init__(self, folder: Path) -> None:
        self.PROGRAM = (str(Path(__file__).with_name("fork_stages.py")), str(folder / "python"))
        # A test in this process may have set MLflow's address for itself; the others are what a job may not find set.
        others = ("COLUMNS", "LINES", "CI", "NO_COLOR")
        own = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MLFLOW") or name in others}
        super().__init__(busy_wait=False)
        os.environ.update(own)

    def do(
        self, words: list[str], folder: Path, environment: dict[str, str], output: list[int],
        tell: Callable[[int], object] = lambda pid: None,
    ) -> int | str:  # fmt: skip
        """Run a job to its end, and tell its process id; return its status, or why it was not run."""
        job = LocalJob(words[0], None)
        if not self._send(job, words, folder, [], environment, output):
            return "the process that is forked has ended"
        while not job.pid and not job.done():
            time.sleep(0.002)
        tell(job.pid)
        status = job.result()
        return job.reason or status


def serve_stages() -> None:
    """Answer at a socket, with a process of stages that is started when it is first needed.

    The processes that this one starts find the socket in their environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="optlab-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    callers, place = ["DVC_STAGE", PARENT_PID_VARIABLE], str(folder / "socket")
    (folder / "python").write_text(SHIM.format(python=sys.executable, place=place, callers=callers))
    (folder / "python").chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(100)
    os.environ[STAGES_VARIABLE] = str(folder)
    threading.Thread(target=_serve, args=[listener, folder], daemon=True).start()


def _serve(listener: socket.socket, folder: Path) -> None:
    stages = None
    while True:
        connection, _ = listener.accept()
        stages = stages or Stages(folder)
        threading.Thread(target=_answer, args=[connection, stages], daemon=True).start()


def _answer(connection: socket.socket, stages: Stages) -> None:
    with connection:
        size, output, _, _ = socket.recv_fds(connection, 8, 2)
        asked = json.loads(connection.makefile("rb").read(int.from_bytes(size, "big")))
        words, folder, environment = asked["words"], Path(asked["folder"]), asked["environment"]
        status: int | str | None = None
        forced = asked.get("forced") or words[0] == "dvc" or words[0].endswith("serve_mlflow.py")
        if forced or _can_be_forked(folder, environment):
            tell = [lambda pid: connection.sendall(f"{pid}\n".encode())] if asked.get("tell_pid") else []
            status = stages.do(words, folder, environment, output, *tell)
        for descriptor in output:
            os.close(descriptor)
        connection.sendall(f"{json.dumps(status)}\n".encode())


def _get_stages_folder() -> Path:
    if STAGES_VARIABLE not in os.environ:
        serve_stages()
    return Path(os.environ[STAGES_VARIABLE])


def ask_stages(
    words: Sequence[str], folder: Path, environment: dict[str, str], output: list[int], **options: bool
) -> socket.socket:
    """Ask for a job with that output; what comes back is for `read_status`."""
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(600)
    server.connect(str(_get_stages_folder() / "socket"))
    asked = json.dumps({"words": words, "folder": str(folder), "environment": environment} | options).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], output)
    server.sendall(asked)
    return server


def read_status(server: socket.socket) -> int | None:
    """Wait for the end of a job; return its status, or None where it cannot be forked."""
    with server:
        status = json.loads(server.makefile().readline())
    assert not isinstance(status, str), status
    return status


def _fork(
    words: Sequence[str], folder: Path, environment: dict[str, str], forced: bool = False
) -> "subprocess.CompletedProcess[str] | None":
    """Run a job to its end; None where it cannot be forked."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        status = read_status(ask_stages(words, folder, environment, [out.fileno(), err.fileno()], forced=forced))
        for file in (out, err):
            file.seek(0)
        return None if status is None else subprocess.CompletedProcess(words, status, out.read(), err.read())


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


class ForkedProcess:
    """What `subprocess.Popen` is for another one, for a process that the tests' fork server has forked."""

    def __init__(self, server: socket.socket) -> None:
        self._server, self._status = server, Future[int]()
        self._lines = server.makefile()
        self.pid = int(self._lines.readline())
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._server:
            self._status.set_result(json.loads(self._lines.readline()))

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._status.result() if self._status.done() else None

    def wait(self, timeout: float | None = None) -> int:
        return self._status.result(timeout)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def started(
    project: Project, *command: str, forked: bool = False, **environment: str
) -> Iterator["subprocess.Popen[str] | ForkedProcess"]:
    """A process beside the test; it is killed at the end, and what followed it has to end by itself.

    With `forked`, it is a child of a process that has imported what it needs.
    """
    process: subprocess.Popen[str] | ForkedProcess
    own = project.environment | environment
    with _log(project).open("a") as log:
        if forked:
            output = [log.fileno(), log.fileno()]
            process = ForkedProcess(ask_stages(command, project.top, own, output, tell_pid=True))
        else:
            process = subprocess.Popen(
                command, cwd=project.top, env=own, stdout=log, stderr=log, start_new_session=True,
                text=True,
            )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        deadline = time.monotonic() + 240
        while (left := processes_below(project.top)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
    assert not left, left


def output(project: Project) -> str:
    """What all that was `started` in it has printed."""
    return _log(project).read_text()


def _log(project: Project) -> Path:
    return project.top.parent / f"{project.top.name}.log"


def until(process: "subprocess.Popen[str] | ForkedProcess", reached: Callable[[], object]) -> None:
    """Wait for it, as long as the process is at work."""
    deadline = time.monotonic() + 400
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
    for pid in psutil.pids():
        try:  # psutil.Process.cwd() takes ten times as long
            place = Path(f"/proc/{pid}/cwd").readlink() if Path("/proc").is_dir() else psutil.Process(pid).cwd()
            if Path(place).is_relative_to(folder) and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
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
        if (name.startswith(UNUSED) and name != "benchmarks/COSTS.md") or "dvc.lock" in name:
            continue
        if name.startswith("ranking/") and name.count("/") > 1:  # a record
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
        ["git", "config", "merge.optlab-lock.driver", "false"],  # else the first `optlab` says that it adds the drivers
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "start"],
    ):
        assert project.run(*command).returncode == 0
    return project
