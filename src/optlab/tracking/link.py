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
from optlab.system.errors import say
from optlab.tracking import server

FOLLOWED_VARIABLE = "OPTLAB_SENDER"  # the id of an `optlab` that has started one for the runs below it, or
NOBODY = "nobody"  # where nothing is to be sent

PATIENCE_S = 120.0
_START_S = 20.0  # until a new sender answers, on a busy machine
LATER = "all is in .optlab/journal, and the next stage or `optlab sync` sends it"


def place() -> Path:
    """Where the shared sender listens, relative to the top; one for each store and user that the environment names."""
    named = sorted(item for item in os.environ.items() if item[0].startswith("MLFLOW_"))
    return Path(".optlab") / f"sender-{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:8]}.sock"


def connect() -> socket.socket | None:
    """A connection to the shared sender, if there is one."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(place()))
    except OSError:
        connection.close()
        return None
    return connection


def start(*words: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a sender, where MLflow's store is; Ctrl-C is not for it: what that says of a run is still to be sent."""
    return subprocess.Popen(
        [sys.executable, "-m", "optlab.tracking.sender", *words], cwd=repository.home(), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True, **options,
    )  # fmt: skip


def _followed() -> str | None:
    """The id of the process that the stage's sender is to last as long as, where it is not the stage's own."""
    if repository.is_copy():
        return None
    caller = None if os.environ.get(FOLLOWED_VARIABLE) == NOBODY else processes.dvc()
    return str(caller.pid) if caller else os.environ.get(FOLLOWED_VARIABLE)


class Link:
    """Tells the sender of journals that have grown, and asks it; a sender that is gone is never the run's trouble."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._own: subprocess.Popen[bytes] | None = None
        self._given_up = False
        self._followed = _followed()
        if self._followed is None:
            self._connection, its = socket.socketpair()
            with its:
                self._own = start("--connection", str(its.fileno()), pass_fds=(its.fileno(),))
        elif self._shared and not self._reach():
            start(self._followed)
        elif self._shared:
            self._say({"follow": int(self._followed)})

    @property
    def _shared(self) -> bool:
        return self._followed not in (None, NOBODY)

    def _reach(self) -> bool:
        """Whether there is a connection; the shared sender may have been starting so far."""
        if self._connection is None and self._shared:
            self._connection = connect()
        return self._connection is not None

    def wake(self, journal: str) -> None:
        """Say that the journal of that name has grown."""
        self._reach()
        self._say({"journal": journal})

    def ask(self, **question: Any) -> dict[str, Any] | None:
        """Its answer; None, with a warning, where there is none within the time that a stage waits for MLflow."""
        deadline = time.monotonic() + _START_S
        while not self._reach() and self._shared and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._given_up:  # a late answer would pass for this one's
            return {}
        if self._connection is None or not self._say(question):
            return None
        self._connection.settimeout(PATIENCE_S)
        try:
            with self._connection.makefile("rb") as answers:
                line = answers.readline()
            return dict(json.loads(line)) if line else None
        except TimeoutError:
            self._given_up = True
            say(f"warning: MLflow at {server.shown()} is too slow: given up after {PATIENCE_S:g} s; {LATER}")
            return {}
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """The stage has ended: the sender looks at every journal, and a stage's own one is waited for.

        A shared one that was killed is replaced, for this may be the last stage.
        """
        if self._connection is not None:
            self._connection.close()
        if self._shared:
            alive = connect()
            if alive is None:
                start(str(self._followed))
            else:
                alive.close()
        if self._own is not None:
            try:
                self._own.wait(2 * PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._own.kill()

    def _say(self, message: dict[str, Any]) -> bool:
        if self._connection is None:
            return False
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")
            return True
        self._connection.close()
        self._connection = None
        return False
