"""What is to be done, and the one interface of those who do it: here (`cores`), or on a cluster (`cluster`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from optlab.execution.jobs import Job, Show


def keep_all(line: str) -> bool:
    """Shows nothing: every line stays with the job."""
    return False


@dataclass(frozen=True)
class Order:
    """One job.

    Attributes:
        name: what it is called, such as `adam-0`.
        command: its words, or the command line of a stage.
        folder: where it is run, relative to the top.
        place: a name for all that decides what it leaves: where two are equal, the one goes on from what the other has
            left.
        inputs: the files that it reads besides the code and the data, relative to the top.
        outputs: the files that it leaves; one that is not there afterwards is passed over.
        run: the id of the run whose journal it writes; none for a trial.
        environment: what it has besides the environment of who does it.
        show: as for `Job`.
    """

    name: str
    command: list[str] | str
    folder: Path
    place: str
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    run: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    show: Show = keep_all


@dataclass(frozen=True)
class Access:
    """How to use a cluster.

    Attributes:
        address: of Ray.
        num_gpus: the share of a GPU that an order takes; 0 for the CPU.
        shared: a folder that all nodes see, for what an unfinished order goes on from; None for each node's own.
        jobs: how many orders at once; None for as many as it has room for.
    """

    address: str
    num_gpus: float = 0.0
    shared: Path | None = None
    jobs: int | None = None


class Pool(Protocol):
    """Who does orders. Used by one thread, as a context manager that lets go of everything."""

    def ready(self) -> None:
        """Return when orders can be started: before anything is given up for them.

        Raises:
            OptlabError: there is nobody who could do them.
        """

    def machine(self) -> str:
        """A digest of the machines that do the work, as `checked.machine` has it."""

    def has_room(self) -> bool:
        """Whether another order would be begun soon."""

    def start(self, order: Order) -> None:
        """Begin it, or have it wait for its turn."""

    def ended(self) -> Job:
        """The next job that has ended, its outputs in their places; waits for it."""

    def branch(self) -> "Pool":
        """Another pool of the same workers, for another thread; it lasts as long as this one."""

    def stop(self) -> None:
        """Interrupt everything that is at work, and wait for its end."""

    def __enter__(self) -> "Pool": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None: ...
