"""The process that fills MLflow from the journals, so that no stage has to import it.

    python -m optlab.tracking.sender PID               shared: until that process has ended
    python -m optlab.tracking.sender --connection FD   of one stage alone: until it closes that socket

It is told by lines of JSON. From a stage: {"journal": NAME}, it has grown; {"follow": PID}, do not end before that
process; {"push": true} or {"publish": …}, do it and answer. A connection that ends is a stage that has ended, or was
killed: every journal is looked at then, and before the sender ends itself.
"""

import contextlib
import json
import queue
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from optlab.system import processes
from optlab.tracking import link, pending, replay, server
from optlab.tracking.journal import JOURNALS, Journal
from optlab.tracking.shown import Shown

_LOOK_S = 0.5  # how often to see whether anybody is left
_RETRY_S = 30.0  # after trouble with a store
_START_S = 300.0  # for a sender that is ending

Message = tuple[socket.socket, dict[str, Any] | None]


class Sender:
    """Does what the messages say, one after the other; `inbox` is filled by threads, one for each connection."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._connections: set[socket.socket] = set()
        self._followed: list[psutil.Process] = []
        self._grown: set[str] = set()
        self._all_due = True  # what a kill or an outage has left
        self._settled: dict[str, int] = {}
        self._replays: dict[str, replay.Replay] = {}
        self._not_before = 0.0
        self._warned = False

    def follow(self, pid: int) -> None:
        """Do not end before that process."""
        with contextlib.suppress(psutil.Error):
            self._followed.append(psutil.Process(pid))

    def serve(self, connection: socket.socket) -> None:
        """Take the messages of a connection from now on."""
        self._connections.add(connection)

        def read() -> None:
            with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
                for line in lines:
                    self._inbox.put((connection, json.loads(line)))
            self._inbox.put((connection, None))

        threading.Thread(target=read, daemon=True).start()

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects, until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                self.serve(listener.accept()[0])

    def work(self) -> None:
        """Send what there is, until nobody is left who could write more."""
        while self._connections or self._inbox.qsize() or any(processes.is_alive(each) for each in self._followed):
            try:
                self._take(*self._inbox.get(timeout=_LOOK_S))
            except queue.Empty:
                if time.monotonic() >= self._not_before:
                    self._push()
                continue
            if self._grown and not self._inbox.qsize() and time.monotonic() >= self._not_before:
                self._push_grown()

    def finish(self) -> None:
        """Send the rest; give up at the first trouble."""
        self._all_due = True
        self._push()

    def _take(self, connection: socket.socket, message: dict[str, Any] | None) -> None:
        if message is None:
            self._connections.discard(connection)
            connection.close()
            self._all_due = True
        elif "follow" in message:
            self.follow(message["follow"])
        elif "journal" in message:
            self._grown.add(message["journal"])
        else:
            with contextlib.suppress(OSError):  # it has given up, or was killed
                connection.sendall(json.dumps(self._answer(message)).encode() + b"\n")

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        self._all_due = True
        if not self._push(comparisons="publish" not in question):
            return {"reached": False}
        try:
            if "missing" in question:
                return {"reached": True, "missing": server.missing_runs(question["experiment"], question["missing"])}
            if "publish" in question:
                return {"reached": True, "told": pending.show(Shown.model_validate(question["publish"]))}
        except Exception as error:
            _warn(server.describe(error))
            return {"reached": False}
        return {"reached": True}

    def _push_grown(self) -> None:
        grown, self._grown = self._grown, set()
        for name in grown:
            own = self._replays.setdefault(name, replay.Replay(Journal(JOURNALS / name)))
            if not self._tried(own.push):
                self._grown.add(name)

    def _push(self, comparisons: bool = True) -> bool:
        """Every journal, if that is due, then the comparisons; whether MLflow has all of the journals that it takes."""
        if not self._all_due and not self._grown:
            return True

        def push() -> None:
            for _ in replay.push_all(self._settled):
                pass

        def show() -> None:
            for _ in pending.show_all():
                pass

        self._replays = {}  # a run goes on with a client of its own
        self._all_due, self._grown = not self._tried(push), set()
        if comparisons and not self._all_due:
            self._tried(show)
        return not self._all_due

    def _tried(self, push: Any) -> bool:
        try:
            push()
        except Exception as error:
            self._not_before = time.monotonic() + _RETRY_S
            if not self._warned:
                _warn(f"does not take the runs now ({server.describe(error)}): {link.LATER}")
                self._warned = True
            return False
        return True


def _warn(text: str) -> None:
    """On a line of its own, also where a stage has its progress bar on the same terminal."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        clear = "\x1b[K" if sys.stderr.isatty() else ""
        print(f"\r{clear}warning: MLflow at {server.shown()} {text}", file=sys.stderr, flush=True)


def _shared(pid: int) -> None:
    """Be the one sender, or tell the one that there is whom to follow."""
    place = link.place()
    place.parent.mkdir(exist_ok=True)
    lock, deadline = FileLock(place.with_suffix(".lock")), time.monotonic() + _START_S
    while True:
        try:
            with lock.acquire(timeout=0):
                return _alone(place, pid)
        except Timeout:
            connection = link.connect()
            if connection:
                with connection:
                    connection.sendall(json.dumps({"follow": pid}).encode() + b"\n")
                return None
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def _alone(place: Path, pid: int) -> None:
    sender = Sender()
    sender.follow(pid)
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(OSError):  # a file system without sockets: the others wait for the lock
        listener.bind(str(place))
        listener.listen()
        threading.Thread(target=sender.listen, args=[listener], daemon=True).start()
    sender.work()
    place.unlink(missing_ok=True)  # from now on, others start their own
    listener.close()
    sender.work()  # who was connected by then
    sender.finish()


def main(words: list[str]) -> None:
    """Entry point; the working directory is where the store is."""
    if words[0] != "--connection":
        return _shared(int(words[0]))
    sender = Sender()
    sender.serve(socket.socket(fileno=int(words[1])))
    sender.work()
    return sender.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
