"""What a node says of an order, put where the order's own process would have put it: lines, journals, files."""

import contextlib
import hashlib
from pathlib import Path

from optlab.execution.jobs import Job
from optlab.execution.node import Message
from optlab.execution.orders import Order
from optlab.system import files, locks
from optlab.system.errors import StorageError
from optlab.tracking import journal, notes
from optlab.tracking.journal import JOURNALS, Journal
from optlab.tracking.link import Link


class Delivery:
    """Of one order; while it is at work, this process holds the lock of its run. Made and closed by one thread.

    Args:
        folder: of the pipeline.
        link: is told of journals that have grown.

    Attributes:
        order: as given.
        job: as given; it has ended once its node has said so.
        node: the id of the node that it was begun on last; empty before.
        refused: why that node is not to be used; empty where it is.

    Raises:
        BusyError: another process is at work on that run.
    """

    def __init__(self, order: Order, job: Job, folder: Path, link: Link | None) -> None:
        self.order, self.job, self._link = order, job, link
        self.node = self.refused = ""
        self._lines: dict[str, int] = {}  # journal → how many are here
        self._held = contextlib.ExitStack()
        if order.run:
            self._held.enter_context(locks.holding(notes.lock_name(folder, order.run), locks.PATIENCE_S))

    def close(self) -> None:
        """It has ended."""
        self._held.close()

    def inputs(self) -> dict[Path, bytes]:
        """Path → bytes of what travels with it: what it reads, and the journal that it may go on with."""
        found = {
            path: path.read_bytes()
            for each in self.order.inputs
            for path in (each.rglob("*") if each.is_dir() else [each])
            if path.is_file()
        }
        for begun in self._journals(found):
            lines = begun.lines()
            self._lines[begun.folder.name] = len(lines)
            found[JOURNALS / begun.folder.name / begun.path.name] = b"".join(line + b"\n" for line in lines)
        return found

    def _journals(self, inputs: dict[Path, bytes]) -> list[Journal]:
        """The one of the weights that are evaluated, or those of the run that a training may go on with."""
        run = self.order.run
        if not run:
            return []
        for path, content in inputs.items():
            if path.suffix == ".safetensors":
                found = journal.find(run, hashlib.sha256(content).hexdigest())
                return [found] if found else []
        return [each for each in journal.all_journals() if each.run == run and not each.evaluated]

    def take(self, message: Message) -> None:
        """Do what a message says.

        Raises:
            StorageError: something cannot be written, or did not arrive whole.
        """
        if "node" in message:
            self.node, self.refused = message["node"], message["refused"]
        elif "line" in message:
            self.job.hear(message["line"])
        elif "journal" in message:
            self._grow(message["journal"], message["after"], message["lines"])
        elif "file" in message:
            self._file(message)
        else:
            self.job.told = message["told"]
            self.job.end(message["end"])

    def _grow(self, name: str, after: int, lines: list[bytes]) -> None:
        own = Journal(journal.journals() / name)
        known = self._lines.setdefault(name, len(own.lines()))
        if after > known:
            raise StorageError(f"journal {name}: {after - known} lines were lost on the way: repeat the command")
        new = lines[known - after :]
        try:
            own.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(own.folder, error) from None
        own.extend(new)
        self._lines[name] = known + len(new)
        if self._link:
            self._link.wake(name)

    def _file(self, message: Message) -> None:
        path = Path(message["file"])
        content = message["content"] if "content" in message else Path(message["same"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != message["sha256"]:
            raise StorageError(f"{path}: did not arrive whole: repeat the command")
        files.write(path, content)
