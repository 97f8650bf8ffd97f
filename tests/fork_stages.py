"""Fork server of the tests for stages and commands whose start-up is not tested; it imports MLflow and DVC, too.

A stage of its own uploads its event log itself, at its end; the stages of an `optlab repro` have its daemon, which is a
fork, too. Tests whose stages DVC starts cover the daemon as a process of its own.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import sqlalchemy
from filelock import FileLock
from mlflow.store.db import utils as db_utils

from optlab.orchestration import fork_server
from optlab.system import repository
from optlab.tracking import uploader, uploader_client, uploader_daemon

# Imported by an upload to a database, and by most of DVC's commands.
PRELOAD = (
    "alembic.command", "git", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.tracing.processor.otel", "sqlalchemy.dialects.sqlite",
    "dvc.cli", "dvc.cli.parser", "dvc.commands.repro", "dvc.cachemgr", "dvc.data_cloud", "dvc.repo",
    "dvc.repo.artifacts", "dvc.repo.datasets", "dvc.repo.graph", "dvc.repo.index", "dvc.repo.metrics",
    "dvc.repo.open_repo", "dvc.repo.params", "dvc.repo.plots", "dvc.repo.stage", "dvc.repo.trie",
    "dvc.utils.strictyaml", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
)  # fmt: skip

# Imported by the commands, after what is replaced here: `from … import …` would keep what was. Not `dvc_pipeline`: its
# import replaces DVC's log handlers.
LATE_PRELOAD = (
    "scipy.stats", "networkx", "jinja2", "flask", "mlflow.server.handlers", "dvc.lock", "dvc.scm", "optlab.cli",
    "optlab.orchestration.repro", "optlab.orchestration.versus_pipeline", "optlab.orchestration.tuning_session",
    "optlab.orchestration.cost",
)  # fmt: skip


class Uploader(uploader_client.UploaderClient):
    """Client of the daemon of an `optlab repro`; without one, it uploads in the stage's process, at its end."""

    def __init__(self):
        self._has_daemon = uploader_client.UPLOADER_PARENT_VARIABLE in os.environ
        if self._has_daemon:
            super().__init__()

    def request(self, **message):
        if self._has_daemon:
            return super().request(**message)
        return {"reached": self.close()} if message.get("push") else None

    def close(self):
        if self._has_daemon:
            return super().close()
        with (
            contextlib.chdir(repository.get_state_root()),
            FileLock(repository.get_state_root() / ".optlab" / "upload.lock"),
        ):
            return uploader.push_pending()  # one process at a time, as the daemon does it


class Spare:
    """A fork of a job's process, made before it has threads: fork servers that the job starts are forks of this one."""

    def __init__(self):
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            try:
                self._socket.close()
                self._serve(its)
            finally:
                os._exit(0)
        its.close()

    def _serve(self, connection):
        os.chdir("/")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 1)
            if not request:
                return
            self._fork(json.loads(request), descriptors[0], connection)

    def _fork(self, request, server_socket, connection):
        pid = os.fork()
        if pid:
            os.close(server_socket)
            connection.send(str(pid).encode())
            return
        try:
            connection.close()
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            fork_server.ForkServerProcess(socket.socket(fileno=server_socket)).serve()
        finally:
            os._exit(0)

    def start(self, server_socket):
        """Start a fork server; return its process id."""
        request = {"environment": dict(os.environ), "folder": str(Path.cwd())}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [server_socket.fileno()])
        return int(self._socket.recv(100))


def start_daemon(*arguments, stderr=2, pass_fds=()):
    """Start the daemon as a fork of this process, which has imported MLflow."""
    if "--connection" in arguments or len(list(Path("/proc/self/task").iterdir())) > 2:  # a fork would be unsafe
        return start_daemon_process(*arguments, stderr=stderr, pass_fds=pass_fds)
    if not os.fork():
        try:
            os.setsid()
            os.dup2(stderr, 2)
            for descriptor in range(3, 256):
                if descriptor not in pass_fds:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            os.chdir(repository.get_state_root())
            for descriptor in range(2):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            uploader_daemon.main(list(arguments))
        finally:
            os._exit(0)
    return None


class ForkedServer:
    """Fork server of `optlab repro` that has imported all that it needs."""

    def __init__(self, server_socket):
        self.pid = spare.start(server_socket)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        with contextlib.suppress(ProcessLookupError):
            while True:  # it is no child of this process
                os.kill(self.pid, 0)
                time.sleep(0.005)


spare = None


def launch(self, server_socket, busy_wait, arguments):
    return ForkedServer(server_socket) if spare else launch_process(self, server_socket, busy_wait, arguments)


def make_database(path):
    """Let MLflow make an empty database, in a process of its own."""
    pid = os.fork()
    if not pid:
        engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        initialize_tables(engine)
        engine.dispose()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def copy_database(engine):
    """Give a new database the tables of that one; MLflow would migrate it through all of its versions."""
    if engine.dialect.name != "sqlite":
        return initialize_tables(engine)
    with closing(sqlite3.connect(empty)) as source, closing(engine.raw_connection()) as connection:
        source.backup(connection.driver_connection)
    return None


def load_main(script):
    global spare
    spare = Spare() if script.name in ("optlab", "tune.py") else None
    if str(script) != "dvc":
        return load_other_main(script)
    sys.executable = python  # which `dvc exp run --temp` starts DVC with once more
    return lambda: sys.exit(importlib.import_module("dvc.cli").main())


if __name__ == "__main__":
    for name in PRELOAD:
        importlib.import_module(name)
    empty, initialize_tables = Path(sys.argv[1]).with_name("empty.db"), db_utils._initialize_tables
    make_database(empty)
    revision = db_utils._get_latest_schema_revision()  # it reads 81 modules, and each connection asks for it
    db_utils._get_latest_schema_revision = lambda: revision
    sys.modules["dvc.cli.parser"].get_main_parser()  # DVC keeps it
    db_utils._initialize_tables = copy_database
    uploader_client.UploaderClient = Uploader
    start_daemon_process, uploader_client.start_daemon = uploader_client.start_daemon, start_daemon
    launch_process, fork_server.ForkServer._launch = fork_server.ForkServer._launch, launch
    load_other_main, fork_server._load_main = fork_server._load_main, load_main
    repository._restart_from_sources = lambda sources: None  # they are equal, see projects.py
    fork_server._count_threads = lambda: 1  # MLflow imports pyarrow, which has a thread that returns memory
    python, sys.executable = sys.executable, sys.argv[1]  # what `optlab reproduce` starts its stages with
    for name in LATE_PRELOAD:
        importlib.import_module(name)
    sys.modules["optlab.orchestration.cost"]._MEASURED_S = 0.1
    fork_server.main(socket.socket(fileno=int(sys.argv[2])))
