"""The process that fills MLflow from the journals, so that no stage has to import it.

    python -m optlab.tracking.uploader_daemon PID               shared: until that process has ended
    python -m optlab.tracking.uploader_daemon --connection FD   of one stage alone: until it closes that socket

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
from optlab.tracking import comparison_view, log_uploader, mlflow_store, uploader_client
from optlab.tracking.comparison_view import ComparisonView
from optlab.tracking.event_log import LOG_FOLDER, EventLog

_POLL_INTERVAL_S = 0.5  # how often to see whether anybody is left
_RETRY_DELAY_S = 30.0  # after trouble with a store
_TAKEOVER_TIMEOUT_S = 300.0  # for a sender that is ending

ClientMessage = tuple[socket.socket, dict[str, Any] | None]


class UploaderDaemon:
    """Does what the messages say, one after the other; `inbox` is filled by threads, one for each connection."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[ClientMessage] = queue.SimpleQueue()
        self._connections: set[socket.socket] = set()
        self._parents: list[psutil.Process] = []
        self._grown_logs: set[str] = set()
        self._full_push_due = True  # what a kill or an outage has left
        self._done_sizes: dict[str, int] = {}
        self._uploaders: dict[str, log_uploader.LogUploader] = {}
        self._retry_at = 0.0
        self._warned = False

    def add_parent(self, pid: int) -> None:
        """Do not end before that process."""
        with contextlib.suppress(psutil.Error):
            self._parents.append(psutil.Process(pid))

    def serve(self, connection: socket.socket) -> None:
        """Take the messages of a connection from now on."""
        self._connections.add(connection)

        def receive_messages() -> None:
            with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
                for line in lines:
                    self._inbox.put((connection, json.loads(line)))
            self._inbox.put((connection, None))

        threading.Thread(target=receive_messages, daemon=True).start()

    def accept_connections(self, listener: socket.socket) -> None:
        """Serve whoever connects, until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                self.serve(listener.accept()[0])

    def run(self) -> None:
        """Send what there is, until nobody is left who could write more."""
        while self._connections or self._inbox.qsize() or any(processes.is_alive(each) for each in self._parents):
            try:
                self._handle_message(*self._inbox.get(timeout=_POLL_INTERVAL_S))
            except queue.Empty:
                if time.monotonic() >= self._retry_at:
                    self._push_all()
                continue
            if self._grown_logs and not self._inbox.qsize() and time.monotonic() >= self._retry_at:
                self._push_grown_logs()

    def push_rest(self) -> None:
        """Send the rest; give up at the first trouble."""
        self._full_push_due = True
        self._push_all()

    def _handle_message(self, connection: socket.socket, message: dict[str, Any] | None) -> None:
        if message is None:
            self._connections.discard(connection)
            connection.close()
            self._full_push_due = True
        elif "follow" in message:
            self.add_parent(message["follow"])
        elif "journal" in message:
            self._grown_logs.add(message["journal"])
        else:
            with contextlib.suppress(OSError):  # it has given up, or was killed
                connection.sendall(json.dumps(self._handle_request(message)).encode() + b"\n")

    def _handle_request(self, request: dict[str, Any]) -> dict[str, Any]:
        self._full_push_due = True
        if not self._push_all(comparisons="publish" not in request):
            return {"reached": False}
        try:
            if "missing" in request:
                return {
                    "reached": True,
                    "missing": mlflow_store.find_missing_runs(request["experiment"], request["missing"]),
                }
            if "publish" in request:
                return {
                    "reached": True,
                    "told": comparison_view.update_view(ComparisonView.model_validate(request["publish"])),
                }
        except Exception as error:
            _warn(mlflow_store.describe_error(error))
            return {"reached": False}
        return {"reached": True}

    def _push_grown_logs(self) -> None:
        grown, self._grown_logs = self._grown_logs, set()
        for name in grown:
            uploader = self._uploaders.setdefault(name, log_uploader.LogUploader(EventLog(LOG_FOLDER / name)))
            if not self._try_push(uploader.push):
                self._grown_logs.add(name)

    def _push_all(self, comparisons: bool = True) -> bool:
        """Every journal, if that is due, then the comparisons; whether MLflow has all of the journals that it takes."""
        if not self._full_push_due and not self._grown_logs:
            return True

        def push_logs() -> None:
            for _ in log_uploader.push_all(self._done_sizes):
                pass

        def update_views() -> None:
            for _ in comparison_view.update_outdated_views():
                pass

        self._uploaders = {}  # a run goes on with a client of its own
        self._full_push_due, self._grown_logs = not self._try_push(push_logs), set()
        if comparisons and not self._full_push_due:
            self._try_push(update_views)
        return not self._full_push_due

    def _try_push(self, push: Any) -> bool:
        try:
            push()
        except Exception as error:
            self._retry_at = time.monotonic() + _RETRY_DELAY_S
            if not self._warned:
                _warn(
                    f"does not take the runs now ({mlflow_store.describe_error(error)}): "
                    f"{uploader_client.UPLOAD_LATER_HINT}"
                )
                self._warned = True
            return False
        return True


def _warn(text: str) -> None:
    """On a line of its own, also where a stage has its progress bar on the same terminal."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        clear = "\x1b[K" if sys.stderr.isatty() else ""
        print(f"\r{clear}warning: MLflow at {mlflow_store.get_redacted_uri()} {text}", file=sys.stderr, flush=True)


def _run_shared_daemon(pid: int) -> None:
    """Be the one sender, or tell the one that there is whom to follow."""
    socket_path = uploader_client.get_socket_path()
    socket_path.parent.mkdir(exist_ok=True)
    lock, deadline = FileLock(socket_path.with_suffix(".lock")), time.monotonic() + _TAKEOVER_TIMEOUT_S
    while True:
        try:
            with lock.acquire(timeout=0):
                return _serve_socket(socket_path, pid)
        except Timeout:
            connection = uploader_client.connect_to_shared()
            if connection:
                with connection:
                    connection.sendall(json.dumps({"follow": pid}).encode() + b"\n")
                return None
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def _serve_socket(socket_path: Path, pid: int) -> None:
    daemon = UploaderDaemon()
    daemon.add_parent(pid)
    socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(OSError):  # a file system without sockets: the others wait for the lock
        listener.bind(str(socket_path))
        listener.listen()
        threading.Thread(target=daemon.accept_connections, args=[listener], daemon=True).start()
    daemon.run()
    socket_path.unlink(missing_ok=True)  # from now on, others start their own
    listener.close()
    daemon.run()  # who was connected by then
    daemon.push_rest()


def main(arguments: list[str]) -> None:
    """Entry point; the working directory is where the store is."""
    if arguments[0] != "--connection":
        return _run_shared_daemon(int(arguments[0]))
    daemon = UploaderDaemon()
    daemon.serve(socket.socket(fileno=int(arguments[1])))
    daemon.run()
    return daemon.push_rest()


if __name__ == "__main__":
    main(sys.argv[1:])
