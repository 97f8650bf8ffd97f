"""Process that sends event logs to MLflow as they grow.

    python -m optlab.tracking.uploader_daemon PID [FD]          shared: until that process has ended, from when on
                                                                warnings go to FD instead of stderr
    python -m optlab.tracking.uploader_daemon --connection FD   of one stage: until it closes that connection

Twice a second the daemon compares the sizes of the logs with those that it has sent. It examines all logs, and ends
those of dead runs, at its start, when a stage connects, ends or is killed, and before it ends itself.

Messages are JSON: {"add_parent": PID} asks it not to end before that process. The others are requests with an answer,
before which all logs are sent: {"push": true}; {"find_missing": RUNS, "experiment": NAME}; and
{"update_comparison": EXPERIMENT}, which shows the comparison in that experiment's file.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil
from filelock import FileLock, Timeout

from optlab.system import processes
from optlab.system.errors import StorageError, print_stderr
from optlab.tracking import comparison_view, event_log, mlflow_store, uploader, uploader_client
from optlab.tracking.event_log import EventLog, SyncState

_POLL_INTERVAL_S = 0.5
_RETRY_DELAY_S = 30.0  # after an error of the store
_TAKEOVER_TIMEOUT_S = 300.0  # for a daemon that is ending


class UploaderDaemon:
    """Sends logs, and answers requests, in one thread."""

    def __init__(self) -> None:
        self._connections: set[Connection] = set()
        self._parents: set[psutil.Process] = set()
        self._sizes: dict[str, int] = {}  # log → size when it was sent last
        self._full_push_due = True  # a kill or an outage may have left something
        self._done_sizes: dict[str, int] = {}
        self._uploaders: dict[str, uploader.LogUploader] = {}
        self._retry_at = 0.0
        self._warned = False

    def add_parent(self, pid: int) -> None:
        """Do not end before that process."""
        with contextlib.suppress(psutil.Error):
            self._parents.add(psutil.Process(pid))

    def add_connection(self, connection: Connection) -> None:
        """Handle the messages of a connection, and do not end before it."""
        self._connections.add(connection)

    def run(self, listener: socket.socket | None = None) -> None:
        """Send what there is until no connection and no parent is left."""
        while True:
            is_needed = bool(self._connections) or any(map(processes.is_alive, self._parents))
            sources: list[Connection | socket.socket] = [*self._connections, *([listener] if listener else [])]
            ready = wait(sources, _POLL_INTERVAL_S if is_needed else 0)
            if not ready and not is_needed:
                return
            for source in ready:
                if isinstance(source, Connection):
                    self._receive(source)
                elif listener:
                    self.add_connection(Connection(listener.accept()[0].detach()))
            if time.monotonic() >= self._retry_at:
                self.push_changes()

    def push_changes(self) -> None:
        """Send the logs that have grown, or everything if that is due."""
        if self._full_push_due:
            self._push_all()
            return
        for name, size in event_log.measure_logs().items():
            if size == self._sizes.get(name):
                continue
            log = EventLog(event_log.get_log_folder() / name)
            store = SyncState.read(log.folder).store
            # The daemon of another store sends that log; two would each send it again from its beginning.
            if not store or mlflow_store.is_at_current_address(store):
                log_uploader = self._uploaders.setdefault(name, uploader.LogUploader(log))
                if not self._try_push(log_uploader.push):
                    return
            self._sizes[name] = size

    def push_rest(self) -> None:
        """Send everything; give up at the first error."""
        self._full_push_due = True
        self._push_all()

    def _receive(self, connection: Connection) -> None:
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError, ValueError):  # the stage has ended, or was killed
            self._connections.discard(connection)
            connection.close()
            self._full_push_due = True
            return
        if "add_parent" in message:
            self.add_parent(message["add_parent"])
            self._full_push_due = True
            return
        answer = self._answer(message)
        with contextlib.suppress(OSError):  # the stage has given up, or was killed
            connection.send_bytes(json.dumps(answer).encode())

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return {"reached": whether MLflow has done it} and the result under "missing" or "message"."""
        experiment = request.get("update_comparison")
        self._full_push_due = True
        if not self._push_all(update_views=experiment is None):
            return {"reached": False}
        try:
            if "find_missing" in request:
                missing = mlflow_store.find_missing_runs(request["experiment"], request["find_missing"])
                return {"reached": True, "missing": missing}
            if experiment is not None:
                return {"reached": True, "message": comparison_view.update_saved_view(experiment)}
        except Exception as error:
            _warn(mlflow_store.describe_error(error))
            return {"reached": False}
        return {"reached": True}

    def _push_all(self, update_views: bool = True) -> bool:
        """Send every log, then the comparisons; return whether MLflow has everything that it takes of the logs."""
        self._sizes = event_log.measure_logs()
        self._uploaders = {}  # a run continues with a client of its own
        self._full_push_due = not self._try_push(lambda: list(uploader.push_all(self._done_sizes)))
        if update_views and not self._full_push_due:
            self._try_push(lambda: list(comparison_view.update_outdated_views()))
        return not self._full_push_due

    def _try_push(self, push: Callable[[], Any]) -> bool:
        try:
            push()
        except StorageError as error:  # of one log, such as another user's: the others were sent
            if not self._warned:
                print_stderr(f"warning: {error}")
                self._warned = True
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
    """Print a warning on a line of its own, also where a stage has its progress bar on the same terminal."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        clear = "\x1b[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"\r{clear}warning: MLflow at {mlflow_store.get_redacted_uri()} {text}\n")  # in one write
        sys.stderr.flush()


def _run_shared_daemon(pid: int, late_stderr: int | None) -> None:
    """Be the one shared daemon, or tell the running one to last as long as that process."""
    socket_path = uploader_client.get_socket_path()
    socket_path.parent.mkdir(exist_ok=True)
    lock, deadline = FileLock(socket_path.with_suffix(".lock")), time.monotonic() + _TAKEOVER_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with lock.acquire(timeout=0):
                return _serve_socket(pid, late_stderr)
        except Timeout:
            connection = uploader_client.connect(str(pid))
            if connection:
                return connection.close()
        time.sleep(0.1)
    return None


def _serve_socket(pid: int, late_stderr: int | None) -> None:
    daemon, socket_path = UploaderDaemon(), uploader_client.get_socket_path()
    daemon.add_parent(pid)
    socket_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        is_listening = False
        with contextlib.suppress(OSError):  # a file system without sockets: later daemons wait for the lock
            listener.bind(str(socket_path))
            listener.listen()
            is_listening = True
        daemon.run(listener if is_listening else None)
        if late_stderr is not None:
            os.dup2(late_stderr, 2)
        socket_path.unlink(missing_ok=True)  # from now on, stages start a daemon of their own
        daemon.run(listener if is_listening else None)  # for those that have connected by then
    daemon.push_rest()


def main(arguments: list[str]) -> None:
    """Run the daemon; the working directory is where the store is."""
    if arguments[0] != "--connection":
        return _run_shared_daemon(int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else None)
    daemon = UploaderDaemon()
    daemon.add_connection(Connection(int(arguments[1])))
    daemon.run()
    return daemon.push_rest()


if __name__ == "__main__":
    main(sys.argv[1:])
