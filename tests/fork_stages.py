"""What tests start stages and commands in, where start-up is not what they test: MLflow is imported here, too.

Such a stage sends to MLflow itself, at its end; that others do it meanwhile is tested with stages of DVC's.
"""

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading

from filelock import FileLock

from optlab.orchestration import fork_server, jobs
from optlab.system import repository
from optlab.tracking import uploader, uploader_client

# What sending to a database imports.
NEEDED = (
    "alembic.command", "git", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.tracing.processor.otel", "sqlalchemy.dialects.sqlite",
)  # fmt: skip


class Inside(uploader_client.UploaderClient):
    def __init__(self):
        pass

    def request(self, **message):
        return None

    def close(self):
        with (
            contextlib.chdir(repository.get_state_root()),
            FileLock(repository.get_state_root() / ".optlab" / "upload.lock"),
        ):
            uploader.push_pending()  # one at a time, as the process does that this stands for


class Forked:
    """What `optlab repro` starts its stages in, where this process has all of that imported: a fork of it."""

    def __init__(self, front, its):
        self.pid = os.fork()
        if not self.pid:
            front.close()
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                fork_server.ForkServerProcess(its).serve()
            finally:
                os._exit(0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        os.waitpid(self.pid, 0)


def launch(self, server_socket, busy_wait, arguments):
    if threading.active_count() > 1:  # some other one of this process's has begun before
        return started(self, server_socket, busy_wait, arguments)
    return Forked(self._socket, server_socket)


if __name__ == "__main__":
    for name in NEEDED:
        importlib.import_module(name)
    uploader_client.UploaderClient = Inside
    started, jobs.ForkServer._launch = jobs.ForkServer._launch, launch
    repository._restart_from_sources = lambda sources: None  # it is the same, see projects.py
    fork_server._count_threads = lambda: 1  # MLflow imports pyarrow, which has a thread for memory that it gives back
    sys.executable = sys.argv[1]  # what `optlab reproduce` starts its stages with
    fork_server.main(socket.socket(fileno=int(sys.argv[2])))
