"""Orders done on the nodes of a Ray cluster, seen from the machine that asks (`node` is the other side).

Ray's core tasks, not its tuner: in which order they end decides nothing. An order is done again, at most twice, where
its node died, or Ray's worker on it; what fails by itself is not tried again.
"""

import asyncio
import queue
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from optlab.config.parameters import Config
from optlab.execution.connection import Connection, said
from optlab.execution.delivery import Delivery
from optlab.execution.jobs import Job, stage_words
from optlab.execution.orders import Access, Order
from optlab.system import processes
from optlab.system.errors import BusyError, RunsFailedError, say
from optlab.tracking.link import Link

_AGAIN = 2  # times, at most, that the same order is done again after a death
_AHEAD = 10  # orders that may wait besides twice those at work: a cluster that can grow has to see them


class Cluster:
    """The nodes of a cluster; once it is left, nothing stays on them, unless runs have failed.

    Args:
        folder: of the pipeline.
    """

    def __init__(self, config: Config, folder: Path, access: Access) -> None:
        self._config, self._folder, self._access = config, folder, access
        self._connection: Connection | None = None
        self._branches: list[Cluster] = []
        self._jobs: dict[str, Job] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._tasks: dict[str, Any] = {}  # order → Ray's generator
        self._futures: dict[str, Future[None]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._link: Link | None = None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        if self._connection:
            failed = kind is not None and issubclass(kind, RunsFailedError)  # the next call goes on with what there is
            self._connection.close(cleans=not failed, everything=kind is None)
        if self._link:
            self._link.close()

    def branch(self) -> "Cluster":
        """Another pool of the same nodes, for another thread; it lasts as long as this one."""
        other = Cluster(self._config, self._folder, self._access)
        other._connection, other._stopping = self._ready(), self._stopping
        self._branches.append(other)
        return other

    def ready(self) -> None:
        """Connect, and look at every node; and whether they have the code that there is now.

        Raises:
            ClusterError: there is no cluster, or a node is not like this machine.
            RunsFailedError: the code has been changed since the nodes got it.
        """
        changed = self._ready().changed()
        if changed:
            raise RunsFailedError(f"{', '.join(changed)} changed since the nodes got it: repeat the command")

    def _ready(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._config, self._folder, self._access)
        return self._connection

    def machine(self) -> str:
        """Of the nodes, where they are alike; of them all, where they are not."""
        return self._ready().machine

    def has_room(self) -> bool:
        """Whether another order would be begun soon, or is one that a growing cluster should see."""
        if self._connection is None:
            return True
        if self._access.jobs:
            return len(self._jobs) < self._access.jobs
        return len(self._jobs) < 2 * self._ready().slots() + _AHEAD

    def start(self, order: Order) -> None:
        """Begin it, or have it wait for its turn."""
        loop = self._ready().loop
        job = self._jobs[order.name] = Job(order.name, order.show, self._ended.put)
        words = order.command if isinstance(order.command, list) else stage_words(order.command, order.folder)
        if self._link is None and order.run:
            self._link = Link()
        if words is None:
            job.end(1, f"`{order.command}` is not a stage of this repository's alone: a cluster cannot run it")
            return
        try:
            self._deliveries[order.name] = Delivery(order, job, self._folder, self._link)
        except BusyError as error:
            job.end(1, str(error))
            return
        self._futures[order.name] = asyncio.run_coroutine_threadsafe(self._follow(order, words), loop)

    def ended(self) -> Job:
        """The next job that has ended, its outputs in their places; waits for it."""
        name = self._ended.get()
        self._futures.pop(name, None)
        self._tasks.pop(name, None)
        delivery = self._deliveries.pop(name, None)
        if delivery:
            self._ready().kept[delivery.order.place] = delivery.node
            delivery.close()
        return self._jobs.pop(name)

    def stop(self) -> None:
        """Interrupt everything that is at work, and wait for its end; that of the branches, too."""
        self._stopping.set()
        every = [self, *self._branches]
        for force in (False, True):
            for task in [task for pool in every for task in list(pool._tasks.values())]:
                self._ready().cancel(task, force)
            wait([future for pool in every for future in list(pool._futures.values())], processes.PATIENCE_S)
        for delivery in self._deliveries.values():
            delivery.close()

    async def _follow(self, order: Order, words: list[str]) -> None:
        """Take an order's messages until it has ended, wherever that is."""
        connection, delivery = self._ready(), self._deliveries[order.name]
        job, deaths = delivery.job, 0
        while job.status is None:
            if self._stopping.is_set():
                job.end(130, "interrupted")
                return
            try:
                self._tasks[order.name] = connection.submit(order, words, delivery.inputs())
                async for answer in self._tasks[order.name]:
                    for message in await answer:
                        delivery.take(message)
            except Exception as error:
                deaths += 1
                if self._stopping.is_set():
                    job.end(130, "interrupted")
                elif not connection.is_death(error):
                    connection.cancel(self._tasks.get(order.name), force=False)
                    job.end(1, said(error))
                elif deaths > _AGAIN:
                    job.end(
                        1, f"the node or Ray's worker that did it died {deaths} times, the last time: {said(error)}"
                    )
                else:
                    who = f"{connection.where(delivery.node)} or Ray's worker there"
                    say(f"{order.name}: {who} died: done again ({deaths} of {_AGAIN})")
                continue
            if delivery.refused:
                connection.ban(delivery.node, delivery.refused)
            elif job.status is None:
                job.end(1, "it ended without a word")
