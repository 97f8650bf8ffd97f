"""Fork server of the tests for stages and commands whose start-up is not tested; it imports MLflow, too.

A stage uploads its event log itself, at its end; tests whose stages DVC starts cover the uploader.
"""

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading

from filelock import FileLock

from optlab.orchestration import fork_server
from optlab.system import repository
from optlab.tracking import uploader, uploader_client

# Imported by an upload to a database.
PRELOAD = (
    "alembic.command", "git", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.tracing.processor.otel", "sqlalchemy.dialects.sqlite",
)  # fmt: skip


class InProcessUploader(uploader_client.UploaderClient):
    """Uploads in the stage's process, at its end."""

    def __init__(self):
        pass

    def request(self, **message):
        return None

    def close(self):
        with (
            contextlib.chdir(repository.get_state_root()),
            FileLock(repository.get_state_root() / ".optlab" / "upload.lock"),
        ):
            uploader.push_pending()  # one process at a time, as the daemon does it


class ForkedServer:
    """Fork server of `optlab repro` in a fork of this process, which has imported all that it needs."""

    def __init__(self, client_socket, server_socket):
        self.pid = os.fork()
        if not self.pid:
            client_socket.close()
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                fork_server.ForkServerProcess(server_socket).serve()
            finally:
                os._exit(0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        os.waitpid(self.pid, 0)


def launch(self, server_socket, busy_wait, arguments):
    if threading.active_count() > 1:  # a fork would be unsafe
        return launch_process(self, server_socket, busy_wait, arguments)
    return ForkedServer(self._socket, server_socket)


if __name__ == "__main__":
    for name in PRELOAD:
        importlib.import_module(name)
    uploader_client.UploaderClient = InProcessUploader
    launch_process, fork_server.ForkServer._launch = fork_server.ForkServer._launch, launch
    repository._restart_from_sources = lambda sources: None  # they are equal, see projects.py
    fork_server._count_threads = lambda: 1  # MLflow imports pyarrow, which has a thread that returns memory
    sys.executable = sys.argv[1]  # what `optlab reproduce` starts its stages with
    fork_server.main(socket.socket(fileno=int(sys.argv[2])))
