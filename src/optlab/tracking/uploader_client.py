"""Client of the process that sends event logs to MLflow (`uploader_daemon`), so that no stage imports MLflow.

Under DVC one daemon serves all stages and lasts as long as `dvc`. A stage that was started by hand, or in a copy of the
repository that will be deleted, starts its own daemon and waits for it at its end. The daemon sees by itself which logs
grow. A connection is for requests that have an answer, and its end tells the daemon that a stage has ended.
"""

import atexit
import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from optlab.system import processes, repository
from optlab.system.errors import print_stderr
from optlab.tracking import event_log, mlflow_store

UPLOADER_PARENT_VARIABLE = "OPTLAB_UPLOADER_PARENT"  # PID of the `optlab` that has started a daemon, or NO_UPLOAD
NO_UPLOAD = "nobody"  # where nothing is to be uploaded

MLFLOW_TIMEOUT_S = 120.0
_PRINT_TIMEOUT_S = 5.0
_STARTUP_TIMEOUT_S = 20.0  # until a new daemon listens, on a busy machine
UPLOAD_LATER_HINT = f"all is in {event_log.LOG_FOLDER}, and the next stage or `optlab sync` sends it"


def get_socket_path() -> Path:
    """Return the shared daemon's socket, relative to the top: one for each value of MLflow's environment variables."""
    mlflow_environment = sorted(item for item in os.environ.items() if item[0].startswith("MLFLOW_"))
    return Path(".optlab") / f"uploader-{hashlib.sha256(json.dumps(mlflow_environment).encode()).hexdigest()[:8]}.sock"


def connect(parent: str) -> Connection | None:
    """Connect to the shared daemon, if there is one, and tell it not to end before the process with that id."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(str(get_socket_path()))
        connection = Connection(client.detach())
        _send(connection, {"add_parent": int(parent)})
        return connection
    return None


def start_daemon(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a daemon where MLflow's store is; Ctrl-C does not reach it, so that it still sends how the runs ended."""
    return subprocess.Popen(
        [sys.executable, "-m", "optlab.tracking.uploader_daemon", *arguments],
        cwd=repository.get_state_root(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


def ensure_daemon(parent: str) -> None:
    """Start the shared daemon, or tell the running one not to end before the process with that id.

    As long as this process lives, it prints the warnings of a daemon that it has started: it knows what progress is
    shown in the terminal.
    """
    connection = connect(parent)
    if connection:
        connection.close()
        return
    read_end, write_end = os.pipe()
    terminal = os.dup(2)
    start_daemon(parent, str(terminal), stderr=write_end, pass_fds=(terminal,))
    os.close(write_end)
    os.close(terminal)
    printer = _LinePrinter(read_end)
    printer.start()
    atexit.register(printer.wait_until_printed)


class _LinePrinter(threading.Thread):
    """Prints the lines of a pipe until its other end is closed; it ends with this process."""

    def __init__(self, read_end: int) -> None:
        super().__init__(daemon=True)
        self._read_end, self._printing = read_end, threading.Lock()

    def run(self) -> None:
        """Print each line."""
        rest = b""
        while True:
            select.select([self._read_end], [], [])  # waits without the lock
            with self._printing:
                data = os.read(self._read_end, 65536)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines if data else [rest] * bool(rest):
                    print_stderr(line.decode(errors="replace").strip())
            if not data:
                return

    def wait_until_printed(self) -> None:
        """Wait until what is in the pipe now is printed."""
        deadline = time.monotonic() + _PRINT_TIMEOUT_S
        while self.is_alive() and time.monotonic() < deadline and select.select([self._read_end], [], [], 0)[0]:
            time.sleep(0.01)
        if self._printing.acquire(timeout=_PRINT_TIMEOUT_S):
            self._printing.release()


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _find_parent() -> str | None:
    """Return the id of the process whose end is the shared daemon's; None for a stage with its own daemon."""
    if repository.is_experiment_copy():
        return None
    dvc_process = None if os.environ.get(UPLOADER_PARENT_VARIABLE) == NO_UPLOAD else processes.find_dvc()
    return str(dvc_process.pid) if dvc_process else os.environ.get(UPLOADER_PARENT_VARIABLE)


class UploaderClient:
    """Connection of one stage to the daemon; a daemon that has ended never fails the stage."""

    def __init__(self) -> None:
        event_log.get_log_folder()  # moves the logs of an older version, before the stage locks its run
        self._parent = _find_parent()
        self._connection: Connection | None = None
        self._private_daemon: subprocess.Popen[bytes] | None = None
        self._timed_out = False
        if self._parent is None:
            self._connection, daemon_end = Pipe()
            with daemon_end:
                descriptor = daemon_end.fileno()
                self._private_daemon = start_daemon("--connection", str(descriptor), pass_fds=(descriptor,))
        else:
            self._connect_or_start()

    def _connect_or_start(self) -> None:
        if self._parent not in (None, NO_UPLOAD):
            self._connection = connect(str(self._parent))
            if self._connection is None:
                start_daemon(str(self._parent))

    def request(self, **message: Any) -> dict[str, Any] | None:
        """Send a message, and return the daemon's answer.

        Returns:
            None if there is no daemon or it has ended; {}, after a warning, if the answer takes too long.
        """
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        while self._connection is None and self._parent not in (None, NO_UPLOAD) and time.monotonic() < deadline:
            time.sleep(0.05)
            self._connection = connect(str(self._parent))
        if self._timed_out:  # a late answer would pass for this one's
            return {}
        if self._connection is None:
            return None
        try:
            _send(self._connection, message)
            if self._connection.poll(MLFLOW_TIMEOUT_S):
                return dict(json.loads(self._connection.recv_bytes()))
        except (OSError, EOFError, ValueError):
            self._close_connection()
            return None
        self._timed_out = True
        print_stderr(
            f"warning: MLflow at {mlflow_store.get_redacted_uri()} is too slow: given up after "
            f"{MLFLOW_TIMEOUT_S:g} s; {UPLOAD_LATER_HINT}"
        )
        return {}

    def close(self) -> None:
        """Tell the daemon that the stage has ended, and wait for the stage's own daemon.

        A shared daemon that was killed is replaced: this may be the last stage.
        """
        self._close_connection()
        if self._private_daemon is None:
            self._connect_or_start()
            self._close_connection()
            return
        try:
            self._private_daemon.wait(2 * MLFLOW_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._private_daemon.kill()

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
