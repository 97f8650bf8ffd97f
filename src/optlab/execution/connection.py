"""A connection to a Ray cluster, whose nodes have all been looked at."""

import asyncio
import contextlib
import functools
import hashlib
import logging
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from optlab.config.parameters import Config
from optlab.execution import checked, luggage, node, place
from optlab.execution.orders import Access, Order
from optlab.system.errors import ClusterError, one_line, say
from optlab.system.wording import counted

_KNOCK_S = 10.0
_CLEAN_S = 30.0
_IRRELEVANT = ("mlflow", "dvc")  # on a node, which talks to neither


class Connection:
    """Of one working tree's pipeline; its end is `close`.

    Args:
        folder: of the pipeline.

    Attributes:
        changed: tells which files are not as the nodes have got them.
        machine: a digest of the nodes that there were: their own where they are alike, else of them all.
        kept: place → id of the node that has it.
        loop: of a thread of its own, in which the orders' messages are waited for.

    Raises:
        ClusterError: there is no cluster, or a node is not like this machine.
    """

    def __init__(self, config: Config, folder: Path, access: Access) -> None:
        self._config, self._access = config, access
        tree = hashlib.sha256(f"{socket.gethostname()} {Path.cwd()}".encode()).hexdigest()[:12]
        self._site = place.Site(tree, access.shared)
        found = checked.known(config)
        packages = [*found.conditions.packages, "optlab"] if found else ["torch", "optlab"]
        self._expected = node.versions([name for name in packages if name not in _IRRELEVANT])
        self._banned: set[str] = set()  # node ids
        self._ray = self._connect(folder)
        self._look()
        self._provenance = luggage.provenance(config)
        self._data = self._ray.put(luggage.data())
        self._tell()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="cluster", daemon=True).start()

    def _connect(self, folder: Path) -> Any:
        try:
            import ray
        except ImportError:
            raise ClusterError("Ray is not installed: `pip install -c constraints.txt -e '.[ray]'`") from None
        address = self._access.address
        _knock(address)
        before = signal.getsignal(signal.SIGTERM)
        with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
            package = Path(temporary) / "code.zip"
            packed = luggage.pack(self._config, folder, package)
            environment = {"working_dir": str(package), "env_vars": luggage.variables(self._config)}
            try:
                ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # of many kinds
                raise ClusterError(f"{address}: no Ray cluster answers there ({said(error)})") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has set its own, which would end this process at once
        _quiet()
        self.changed = functools.partial(luggage.changed, self._config, folder, packed)
        return ray

    def _look(self) -> None:
        names = {each["NodeID"]: _name(each) for each in self._alive()}
        try:
            asked = self._ask_each(node.look, self._expected, self._site)
            found = {number: self._ray.get(answer) for number, answer in asked.items()}
        except Exception as error:
            self._ray.shutdown()
            raise ClusterError(f"a node cannot run optlab: {said(error)}") from None
        refused = [f"node {names[number]}: {each.differences}" for number, each in found.items() if each.differences]
        if refused:
            self._ray.shutdown()
            raise ClusterError(f"{'; '.join(refused)}: install the same there, or take it out of the cluster")
        self.kept = {place: number for number, each in found.items() for place in each.places}
        self.kept |= {place: number for number, each in found.items() for place, ended in each.places.items() if ended}
        every = sorted({each.machine for each in found.values()})
        self.machine = every[0] if len(every) == 1 else hashlib.sha256("".join(every).encode()).hexdigest()[:32]

    def _tell(self) -> None:
        """Say what there is; where no node has room for an order, Ray waits for one, and says nothing."""
        alive, wanted = self._alive(), {"CPU": float(self._config.training.threads), "GPU": self._access.num_gpus}
        nodes = counted(len(alive), "node")
        print(f"{self._access.address}: {nodes}, room for {self.slots():.0f} at a time", flush=True)
        if not any(all(each["Resources"].get(name, 0.0) >= count for name, count in wanted.items()) for each in alive):
            asked = " and ".join(f"{count:g} {name}" for name, count in wanted.items() if count)
            say(f"warning: no node of the cluster has {asked}: all wait until one joins that has")

    def close(self, cleans: bool, everything: bool) -> None:
        """Let go of it; with `cleans`, nothing stays on the nodes, and with `everything`, nor in the shared folder."""
        for answer in self._ask_each(node.clean, self._site, everything).values() if cleans else ():
            with contextlib.suppress(Exception):  # what cannot be reached cannot be cleaned
                self._ray.get(answer, timeout=_CLEAN_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._ray.shutdown()

    def slots(self) -> float:
        """How many orders the nodes that there are have room for."""
        have, gpus = self._ray.cluster_resources(), self._access.num_gpus
        room = float(have.get("CPU", 0.0)) / self._config.training.threads
        return min(room, have.get("GPU", 0.0) / gpus) if gpus else room

    def submit(self, order: Order, words: list[str], files: dict[Path, bytes]) -> Any:
        """Have an order done somewhere; returns Ray's generator of lists of messages."""
        environment = self._provenance | dict(order.environment)
        task = place.Task(words, order.folder, order.place, environment, files, order.outputs)
        options: dict[str, Any] = {}
        kept = None if self._site.shared else self.kept.get(order.place)
        if kept and kept in {each["NodeID"] for each in self._alive()}:
            options["scheduling_strategy"] = _at(kept, soft=True)
        elif self._banned:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._banned))})"}
        remote = self._ray.remote(node.work).options(
            name=order.name, num_cpus=self._config.training.threads, num_gpus=self._access.num_gpus, max_retries=0,
            num_returns="streaming", **options,
        )  # fmt: skip
        return remote.remote(task, self._expected, self._site, self._data)

    def cancel(self, task: Any, force: bool) -> None:
        """Interrupt it, or with `force` kill Ray's worker."""
        with contextlib.suppress(Exception):  # it has ended
            self._ray.cancel(task, force=force)

    def is_death(self, error: Exception) -> bool:
        """Whether a node or Ray's worker on it has died, which is no doing of the order's."""
        from ray import exceptions as known

        return isinstance(
            error,
            known.WorkerCrashedError | known.NodeDiedError | known.ObjectLostError | known.OutOfMemoryError,
        )  # fmt: skip

    def ban(self, number: str, why: str) -> None:
        """Use a node no more that has joined since the others were looked at, and is not like them."""
        if number not in self._banned:
            say(f"warning: {self.where(number)}: {why}: nothing is done there")
        self._banned.add(number)

    def where(self, number: str) -> str:
        """A node in words."""
        return next((f"node {_name(each)}" for each in self._ray.nodes() if each["NodeID"] == number), "its node")

    def _alive(self) -> list[dict[str, Any]]:
        return [each for each in self._ray.nodes() if each["Alive"]]

    def _ask_each(self, function: Any, *arguments: Any) -> dict[str, Any]:
        """Node id → Ray's reference to what a function will say there."""
        remote = self._ray.remote(function)
        return {
            each["NodeID"]: remote.options(num_cpus=0, scheduling_strategy=_at(each["NodeID"], soft=False)).remote(
                *arguments
            )
            for each in self._alive()
        }


def said(error: Exception) -> str:
    """In one line; of what a task has raised, its own words and not Ray's frame."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {one_line(cause)}"[:300] if cause else one_line(error)[:300]


def _knock(address: str) -> None:
    """Whether anybody is there: Ray itself would ask for minutes."""
    if address.startswith("ray://"):
        raise ClusterError(f"{address}: Ray's client cannot do this: run the command on a machine of the cluster")
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
        except (OSError, ValueError) as error:
            raise ClusterError(f"{address}: no Ray cluster answers there ({one_line(error)})") from None


def _at(number: str, soft: bool) -> Any:
    """A strategy of Ray's: on that node; with `soft`, elsewhere if it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(number, soft=soft)


def _name(described: dict[str, Any]) -> str:
    """As whoever has started the node calls it, or its host does."""
    address, named = described["NodeManagerAddress"], described.get("NodeName")
    return f"{named if named and named != address else described['NodeManagerHostname']} ({address})"


def _quiet() -> None:
    """Ray prints on a driver's standard output what its raylets say as they die, log lines and all."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *words, **options: None
