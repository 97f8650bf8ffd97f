"""A real MLflow server that can be killed, stopped and started again; what its database holds, read with SQL."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import time
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from projects import Project, ask_stages, read_status

PROGRAM = Path(__file__).with_name("serve_mlflow.py")


class Server:
    """An MLflow server of its own, on SQLite, that can be killed, stopped and started again; at first it is away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self.ended: socket.socket | None = None  # tells when the process has ended
        self._pid = folder / "pid"

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        words = [str(PROGRAM), f"sqlite:///{self.database}", str(self.folder / "artifacts"), str(self.port)]
        self._pid.unlink(missing_ok=True)
        with Path(os.devnull).open("w") as none:
            self.ended = ask_stages(
                words, self.folder, environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                [none.fileno(), none.fileno()],
            )  # fmt: skip
        if not wait_until(self.answers, 240):
            raise SystemExit("the MLflow server did not start")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=20):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        if self.ended is not None:
            with suppress(ProcessLookupError):
                os.kill(int(self._pid.read_text()), signal.SIGKILL)
            read_status(self.ended)
            self.ended = None

    def empty(self) -> None:
        """Stop it, and start it again with nothing, at the same address."""
        self.kill()
        for path in self.folder.glob(f"{self.database.name}*"):
            path.unlink()
        shutil.rmtree(self.folder / "artifacts", ignore_errors=True)
        self.start()


def wait_until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def runs_in(database: Path) -> list[str]:
    """The status of every run."""
    with closing(sqlite3.connect(database)) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs")]


def metrics_in(database: Path) -> Counter[tuple[Any, ...]]:
    """(name, step, value, time) of every metric, and how often it is there."""
    with closing(sqlite3.connect(database)) as connection:
        return Counter(
            connection.execute("SELECT key, step, CASE WHEN is_nan THEN 'nan' ELSE value END, timestamp FROM metrics")
        )


def read_logged_metrics(project: Project) -> Counter[tuple[Any, ...]]:
    """What the event log says MLflow should have, with its times."""
    found: Counter[tuple[Any, ...]] = Counter()
    for path in (project.top / ".optlab" / "event_logs").glob("*/events.jsonl"):
        for line in path.read_text().splitlines():
            for name, value, when, step in json.loads(line).get("points", ()):
                found[name, step, value, when] += 1
    return found
