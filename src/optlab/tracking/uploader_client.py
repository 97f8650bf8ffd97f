"""A stage's connection to the process that fills MLflow (`sender`): the stage only writes its journal.

Under DVC one sender serves all stages: it lasts as long as the `dvc` that runs them. A stage that was started by hand,
or in a copy of the repository that will be deleted, has one of its own and waits for it at its end.
"""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from optlab.system import processes, repository
from optlab.system.errors import print_stderr
from optlab.tracking import mlflow_store

UPLOADER_PARENT_VARIABLE = "OPTLAB_UPLOADER_PARENT"  # PID of the `optlab` that has started an uploader, or NO_UPLOAD
NO_UPLOAD = "nobody"  # where nothing is to be sent

MLFLOW_TIMEOUT_S = 120.0
_STARTUP_TIMEOUT_S = 20.0  # until a new sender answers, on a busy machine
UPLOAD_LATER_HINT = "all is in .optlab/journal, and the next stage or `optlab sync` sends it"


def get_socket_path() -> Path:
    """Where the shared sender listens, relative to the top; one for each store and user that the environment names."""
    mlflow_environment = sorted(item for item in os.environ.items() if item[0].startswith("MLFLOW_"))
    return Path(".optlab") / f"sender-{hashlib.sha256(json.dumps(mlflow_environment).encode()).hexdigest()[:8]}.sock"


def connect_to_shared() -> socket.socket | None:
    """A connection to the shared sender, if there is one."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(get_socket_path()))
    except OSError:
        connection.close()
        return None
    return connection


def start_daemon(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a sender, where MLflow's store is; Ctrl-C is not for it: what that says of a run is still to be sent."""
    return subprocess.Popen(
        [sys.executable, "-m", "optlab.tracking.uploader_daemon", *arguments],
        cwd=repository.get_state_root(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


def _find_parent() -> str | None:
    """The id of the process that the stage's sender is to last as long as, where it is not the stage's own."""
    if repository.is_experiment_copy():
        return None
    dvc_process = None if os.environ.get(UPLOADER_PARENT_VARIABLE) == NO_UPLOAD else processes.find_dvc()
    return str(dvc_process.pid) if dvc_process else os.environ.get(UPLOADER_PARENT_VARIABLE)


class UploaderClient:
    """Tells the sender of journals that have grown, and asks it; a sender that is gone is never the run's trouble."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._private_daemon: subprocess.Popen[bytes] | None = None
        self._timed_out = False
        self._parent = _find_parent()
        if self._parent is None:
            self._connection, daemon_end = socket.socketpair()
            with daemon_end:
                self._private_daemon = start_daemon(
                    "--connection", str(daemon_end.fileno()), pass_fds=(daemon_end.fileno(),)
                )
        elif self._is_shared and not self._ensure_connected():
            start_daemon(self._parent)
        elif self._is_shared:
            self._send({"follow": int(self._parent)})

    @property
    def _is_shared(self) -> bool:
        return self._parent not in (None, NO_UPLOAD)

    def _ensure_connected(self) -> bool:
        """Whether there is a connection; the shared sender may have been starting so far."""
        if self._connection is None and self._is_shared:
            self._connection = connect_to_shared()
        return self._connection is not None

    def notify(self, log_name: str) -> None:
        """Say that the journal of that name has grown."""
        self._ensure_connected()
        self._send({"journal": log_name})

    def request(self, **message: Any) -> dict[str, Any] | None:
        """Its answer; None, with a warning, where there is none within the time that a stage waits for MLflow."""
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        while not self._ensure_connected() and self._is_shared and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._timed_out:  # a late answer would pass for this one's
            return {}
        if self._connection is None or not self._send(message):
            return None
        self._connection.settimeout(MLFLOW_TIMEOUT_S)
        try:
            with self._connection.makefile("rb") as answers:
                line = answers.readline()
            return dict(json.loads(line)) if line else None
        except TimeoutError:
            self._timed_out = True
            print_stderr(
                f"warning: MLflow at {mlflow_store.get_redacted_uri()} is too slow: given up after "
                f"{MLFLOW_TIMEOUT_S:g} s; {UPLOAD_LATER_HINT}"
            )
            return {}
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """The stage has ended: the sender looks at every journal, and a stage's own one is waited for.

        A shared one that was killed is replaced, for this may be the last stage.
        """
        if self._connection is not None:
            self._connection.close()
        if self._is_shared:
            alive = connect_to_shared()
            if alive is None:
                start_daemon(str(self._parent))
            else:
                alive.close()
        if self._private_daemon is not None:
            try:
                self._private_daemon.wait(2 * MLFLOW_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._private_daemon.kill()

    def _send(self, message: dict[str, Any]) -> bool:
        if self._connection is None:
            return False
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")
            return True
        self._connection.close()
        self._connection = None
        return False
