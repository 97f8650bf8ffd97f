"""Executors of jobs: the interface, and the one that runs jobs on this machine, each on cores of its own.

Jobs are futures, to be waited for with `concurrent.futures.wait`. The interface differs from
`concurrent.futures.Executor` in two points. A caller submits at most `max_workers` jobs at a time, because a
stage's outputs are removed before it is submitted, which must not happen long before it starts. And `stop`
interrupts running jobs, which `Future.cancel` and `shutdown` do not.
"""

import itertools
import os
import tempfile
import threading
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from optlab.orchestration import preflight_cache
from optlab.orchestration.fork_server import ForkServer, Job, LineHandler, LocalJob
from optlab.schema.parameters import Config
from optlab.system import processes
from optlab.system.errors import RunsFailedError

JOBS_VARIABLE = "OPTLAB_JOBS"  # max_workers for a stage that has trials


def keep_line(line: str) -> bool:
    """Leave every line with its job, as `on_line` of a `JobSpec`."""
    return False


@dataclass(frozen=True)
class JobSpec:
    """One job to be submitted.

    Attributes:
        name: such as `adam-0`; unique among the jobs that run.
        command: argument vector, or the command line of a stage.
        folder: working directory, relative to the top of the repository.
        workspace_key: a name for all that decides its outputs; a job resumes from what an equal one has left.
        inputs: files that it reads besides the code and the data, relative to the top.
        outputs: files that it writes, relative to the top; a missing one is skipped.
        run_id: the run whose event log it writes; empty for a trial.
        environment: additional variables.
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
    on_line: LineHandler = keep_line


@dataclass(frozen=True)
class ClusterOptions:
    """How to use a cluster.

    Attributes:
        address: Ray's address.
        num_gpus: share of a GPU for each job; 0 for the CPU.
        shared_folder: a folder that all nodes see, for the jobs' workspaces; None for each node's temporary folder.
        max_jobs: number of jobs at a time; None for as many as the cluster has room for.
    """

    address: str
    num_gpus: float = 0.0
    shared_folder: Path | None = None
    max_jobs: int | None = None


class Executor(Protocol):
    """Runs jobs; a context manager."""

    @property
    def max_workers(self) -> int:
        """Number of jobs that a caller may have at a time; it can change."""

    def wait_ready(self) -> None:
        """Return when jobs can be submitted; to be called before outputs are removed.

        Raises:
            OptlabError: nothing can run them.
        """

    def get_machine_digest(self) -> str:
        """Return the digest of the machines that run the jobs, as `preflight_cache.compute_machine_digest` does."""

    def submit(self, job_spec: JobSpec) -> Job:
        """Start a job, wait until it can start, or queue it; once it is done, its outputs are in their places.

        Raises:
            RunsFailedError: the executor was stopped.
        """

    def stop(self) -> None:
        """Interrupt all jobs, and wait for their end."""

    def __enter__(self) -> "Executor": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None: ...


class LocalExecutor:
    """Runs jobs on the cores of this machine; several threads may submit them.

    Args:
        jobs: number of jobs at a time.
        busy_wait: as for `ForkServer`.
        fork_server: default: one that is started with the first job, and ends with the executor.
    """

    def __init__(self, jobs: int, busy_wait: bool, fork_server: ForkServer | None = None) -> None:
        self._cores, self._busy_wait = split_cores(jobs), busy_wait
        self._jobs: dict[int, LocalJob] = {}  # index of its cores → job, perhaps done
        self._fork_server, self._owns_fork_server = fork_server, fork_server is None
        self._error_folder, self._numbers = tempfile.TemporaryDirectory(prefix="optlab-"), itertools.count()
        self._submitting, self._is_stopped = threading.Lock(), False

    @classmethod
    def from_config(cls, config: Config, jobs: int | None = None,
                    fork_server: ForkServer | None = None) -> "LocalExecutor":  # fmt: skip
        """Return an executor of trainings; by default, of as many as OPTLAB_JOBS says or the cores have room for."""
        jobs = count_jobs(config, jobs)
        return cls(jobs, can_busy_wait(config, jobs), fork_server)

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *ending: object) -> None:
        self._error_folder.cleanup()
        if self._owns_fork_server and self._fork_server:
            self._fork_server.__exit__(*ending)

    @property
    def max_workers(self) -> int:
        """Number of jobs at a time."""
        return len(self._cores)

    def wait_ready(self) -> None:
        """Return at once: this machine is always ready."""

    def get_machine_digest(self) -> str:
        """Return `preflight_cache.compute_machine_digest`."""
        return preflight_cache.compute_machine_digest()

    def submit(self, job_spec: JobSpec) -> LocalJob:
        """Start a job on free cores; wait until there are some.

        Raises:
            RunsFailedError: the executor was stopped.
        """
        with self._submitting:
            if self._fork_server is None:
                self._fork_server = ForkServer(self._busy_wait)
            index = self._wait_for_slot()
            if self._is_stopped:
                raise RunsFailedError(f"{job_spec.name} was not started: the command was stopped")
            self._jobs[index] = self._fork_server.start(
                job_spec.name,
                job_spec.command,
                job_spec.folder,
                sorted(self._cores[index]),
                job_spec.environment,
                job_spec.on_line,
                Path(self._error_folder.name) / str(next(self._numbers)),
            )
            return self._jobs[index]

    def _wait_for_slot(self) -> int:
        """Return the index of free cores, once there are some."""
        while True:
            free = [each for each in range(len(self._cores)) if each not in self._jobs or self._jobs[each].done()]
            if free:
                return free[0]
            wait_first(self._jobs.values())

    def stop(self) -> None:
        """Interrupt every job, wait for its end, and start no further one."""
        self._is_stopped = True
        processes.stop([job for job in list(self._jobs.values()) if not job.done()])
        with self._submitting:  # one more may have been started meanwhile
            processes.stop([job for job in list(self._jobs.values()) if not job.done()])


def wait_or_stop(job: LocalJob) -> int:
    """Wait for a job, and return its exit status; if this process is interrupted, stop the job first."""
    try:
        return job.result()
    except BaseException:
        processes.stop([job])
        raise


def wait_first(jobs: Collection[Job], timeout_s: float | None = None) -> list[Job]:
    """Wait until a job is done, or the time is over; returns the jobs that are done."""
    wait(jobs, timeout_s, FIRST_COMPLETED)
    return [job for job in jobs if job.done()]


def count_jobs(config: Config, jobs: int | None = None) -> int:
    """Return the number of trainings at a time: as asked for, by OPTLAB_JOBS, or that the cores have room for."""
    from_environment = os.environ.get(JOBS_VARIABLE, "")
    asked_for = jobs or (int(from_environment) if from_environment.isdecimal() else 0)
    return asked_for or max(1, len(list_cores()) // config.training.threads)


def can_busy_wait(config: Config, jobs: int) -> bool:
    """Return whether each thread of a training has a core, so that threads may wait for each other without sleeping."""
    return all(config.training.threads <= len(cores) for cores in split_cores(jobs))


def list_cores() -> list[int]:
    """Return the cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def split_cores(jobs: int) -> list[set[int]]:
    """Return the cores of each job: an equal share of those this process may use, at least one."""
    cores = list_cores()
    share = max(1, len(cores) // jobs)
    return [{cores[(job * share + each) % len(cores)] for each in range(share)} for job in range(jobs)]
