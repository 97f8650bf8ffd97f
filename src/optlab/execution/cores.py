"""Orders done here, each on cores of its own, as children of a process that has imported what they need."""

import os
import queue
import tempfile
from pathlib import Path

from optlab.config.parameters import Config
from optlab.execution import checked
from optlab.execution.jobs import Child, Job, Warm
from optlab.execution.orders import Order
from optlab.system import processes
from optlab.system.errors import REASON_VARIABLE


class Cores:
    """The cores of this machine.

    Args:
        jobs: how many orders at once.
        spinning: whether the threads of a training may wait for each other without sleeping.
        warm: where the children are forked; default: one of its own, once there is something to do.
    """

    def __init__(self, jobs: int, spinning: bool, warm: Warm | None = None) -> None:
        self._free, self._spinning = cores_for(jobs), spinning
        self._warm, self._own = warm, warm is None
        self._reasons = tempfile.TemporaryDirectory(prefix="optlab-")
        self._working: dict[str, tuple[Child, set[int]]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> "Cores":
        return self

    def __exit__(self, *ending: object) -> None:
        self._reasons.cleanup()
        if self._own and self._warm:
            self._warm.__exit__(*ending)

    def ready(self) -> None:
        """They are."""

    def branch(self) -> "Cores":
        """There is one for all, and so one thread."""
        return self

    def machine(self) -> str:
        """As `checked.machine` has it."""
        return checked.machine()

    def has_room(self) -> bool:
        """Whether cores are free."""
        return bool(self._free)

    def start(self, order: Order) -> None:
        """Begin it; there must be room."""
        if self._warm is None:
            self._warm = Warm(self._spinning)
        cores = self._free.pop(0)
        environment = {REASON_VARIABLE: str(self._reason(order.name))} | order.environment
        job = self._warm.start(
            order.name, order.command, order.folder, sorted(cores), environment, order.show, self._ended.put
        )
        self._working[order.name] = (job, cores)

    def ended(self) -> Job:
        """The next job that has ended; waits for it."""
        name = self._ended.get()
        job, cores = self._working.pop(name)
        self._free.append(cores)
        reason = self._reason(name)
        if job.status and reason.exists():
            job.told = reason.read_text("utf-8")
        reason.unlink(missing_ok=True)
        return job

    def stop(self) -> None:
        """Interrupt every child, and wait for its end."""
        processes.stop([job for job, _ in self._working.values()])

    def _reason(self, name: str) -> Path:
        """Where a job leaves why it failed."""
        return Path(self._reasons.name) / name


def at_once(config: Config) -> int:
    """How many trainings the cores have room for, at least one."""
    return max(1, len(available_cores()) // config.training.threads)


def spins(config: Config, jobs: int) -> bool:
    """Whether a training's threads each have a core, so that they may wait for each other without sleeping."""
    return all(config.training.threads <= len(cores) for cores in cores_for(jobs))


def available_cores() -> list[int]:
    """The cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores_for(jobs: int) -> list[set[int]]:
    """The cores of each job: an equal share of those this process may use, at least one."""
    cores = available_cores()
    share = max(1, len(cores) // jobs)
    return [{cores[(job * share + each) % len(cores)] for each in range(share)} for job in range(jobs)]
