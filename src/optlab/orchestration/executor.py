"""What is to be done, and the one interface of those who do it: here (`cores`), or on a cluster (`cluster`).

Orders done here, each on cores of its own, as children of a process that has imported what they need.
"""

import os
import queue
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from optlab.orchestration import preflight_cache
from optlab.orchestration.jobs import ForkServer, Job, LineHandler, LocalJob
from optlab.schema.parameters import Config
from optlab.system import processes
from optlab.system.errors import ERROR_FILE_VARIABLE


def ignore_line(line: str) -> bool:
    """Shows nothing: every line stays with the job."""
    return False


@dataclass(frozen=True)
class JobSpec:
    """One job.

    Attributes:
        name: what it is called, such as `adam-0`.
        command: its words, or the command line of a stage.
        folder: where it is run, relative to the top.
        workspace_key: a name for all that decides what it leaves: where two are equal, the one goes on from what the
            other has left.
        inputs: the files that it reads besides the code and the data, relative to the top.
        outputs: the files that it leaves; one that is not there afterwards is passed over.
        run_id: the id of the run whose event log it writes; none for a trial.
        environment: what it has besides the environment of who does it.
        on_line: as for `Job`.
    """

    name: str
    command: list[str] | str
    folder: Path
    workspace_key: str
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    run_id: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    on_line: LineHandler = ignore_line


@dataclass(frozen=True)
class ClusterOptions:
    """How to use a cluster.

    Attributes:
        address: of Ray.
        num_gpus: the share of a GPU that an order takes; 0 for the CPU.
        shared_folder: a folder that all nodes see, for what an unfinished order goes on from; None for each node's own.
        max_jobs: how many orders at once; None for as many as it has room for.
    """

    address: str
    num_gpus: float = 0.0
    shared_folder: Path | None = None
    max_jobs: int | None = None


class Executor(Protocol):
    """Who does orders. Used by one thread, as a context manager that lets go of everything."""

    def wait_ready(self) -> None:
        """Return when orders can be started: before anything is given up for them.

        Raises:
            OptlabError: there is nobody who could do them.
        """

    def get_machine_digest(self) -> str:
        """A digest of the machines that do the work, as `preflight_cache.compute_machine_digest` has it."""

    def has_room(self) -> bool:
        """Whether another order would be begun soon."""

    def submit(self, job_spec: JobSpec) -> None:
        """Begin it, or have it wait for its turn."""

    def wait_any(self) -> Job:
        """The next job that has ended, its outputs in their places; waits for it."""

    def create_child(self) -> "Executor":
        """Another pool of the same workers, for another thread; it lasts as long as this one."""

    def stop(self) -> None:
        """Interrupt everything that is at work, and wait for its end."""

    def __enter__(self) -> "Executor": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None: ...


class LocalExecutor:
    """The cores of this machine.

    Args:
        jobs: how many orders at once.
        spinning: whether the threads of a training may wait for each other without sleeping.
        warm: where the children are forked; default: one of its own, once there is something to do.
    """

    def __init__(self, jobs: int, busy_wait: bool, fork_server: ForkServer | None = None) -> None:
        self._free_cores, self._busy_wait = split_cores(jobs), busy_wait
        self._fork_server, self._owns_fork_server = fork_server, fork_server is None
        self._error_folder = tempfile.TemporaryDirectory(prefix="optlab-")
        self._running: dict[str, tuple[LocalJob, set[int]]] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *ending: object) -> None:
        self._error_folder.cleanup()
        if self._owns_fork_server and self._fork_server:
            self._fork_server.__exit__(*ending)

    def wait_ready(self) -> None:
        """They are."""

    def create_child(self) -> "LocalExecutor":
        """There is one for all, and so one thread."""
        return self

    def get_machine_digest(self) -> str:
        """As `preflight_cache.compute_machine_digest` has it."""
        return preflight_cache.compute_machine_digest()

    def has_room(self) -> bool:
        """Whether cores are free."""
        return bool(self._free_cores)

    def submit(self, job_spec: JobSpec) -> None:
        """Begin it; there must be room."""
        if self._fork_server is None:
            self._fork_server = ForkServer(self._busy_wait)
        cores = self._free_cores.pop(0)
        environment = {ERROR_FILE_VARIABLE: str(self._get_error_file(job_spec.name))} | job_spec.environment
        job = self._fork_server.start(
            job_spec.name,
            job_spec.command,
            job_spec.folder,
            sorted(cores),
            environment,
            job_spec.on_line,
            self._finished.put,
        )
        self._running[job_spec.name] = (job, cores)

    def wait_any(self) -> Job:
        """The next job that has ended; waits for it."""
        name = self._finished.get()
        job, cores = self._running.pop(name)
        self._free_cores.append(cores)
        error_file = self._get_error_file(name)
        if job.status and error_file.exists():
            job.error_message = error_file.read_text("utf-8")
        error_file.unlink(missing_ok=True)
        return job

    def stop(self) -> None:
        """Interrupt every child, and wait for its end."""
        processes.stop([job for job, _ in self._running.values()])

    def _get_error_file(self, name: str) -> Path:
        """Where a job leaves why it failed."""
        return Path(self._error_folder.name) / name


def count_slots(config: Config) -> int:
    """How many trainings the cores have room for, at least one."""
    return max(1, len(list_cores()) // config.training.threads)


def can_busy_wait(config: Config, jobs: int) -> bool:
    """Whether a training's threads each have a core, so that they may wait for each other without sleeping."""
    return all(config.training.threads <= len(cores) for cores in split_cores(jobs))


def list_cores() -> list[int]:
    """The cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def split_cores(jobs: int) -> list[set[int]]:
    """The cores of each job: an equal share of those this process may use, at least one."""
    cores = list_cores()
    share = max(1, len(cores) // jobs)
    return [{cores[(job * share + each) % len(cores)] for each in range(share)} for job in range(jobs)]
