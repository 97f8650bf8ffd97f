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

from optlab.execution import jobs, warm
from optlab.system import repository
from optlab.tracking import link, replay

# What sending to a database imports.
NEEDED = (
    "alembic.command", "git", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.tracing.processor.otel", "sqlalchemy.dialects.sqlite",
)  # fmt: skip


class Inside(link.Link):
    def __init__(self):
        pass

    def wake(self, journal):
        pass

    def ask(self, **question):
        return None

    def close(self):
        with contextlib.chdir(repository.home()), FileLock(repository.home() / ".optlab" / "sending.lock"):
            replay.push_pending()  # one at a time, as the process does that this stands for


class Forked:
    """What `optlab repro` starts its stages in, where this process has all of that imported: a fork of it."""

    def __init__(self, front, its):
        self.pid = os.fork()
        if not self.pid:
            front.close()
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                warm.Server(its).work()
            finally:
                os._exit(0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        os.waitpid(self.pid, 0)


def launch(self, its, spinning, words):
    if threading.active_count() > 1:  # some other one of this process's has begun before
        return started(self, its, spinning, words)
    return Forked(self._front, its)


if __name__ == "__main__":
    for name in NEEDED:
        importlib.import_module(name)
    link.Link = Inside
    started, jobs.Warm._launch = jobs.Warm._launch, launch
    repository._run_own_code = lambda sources: None  # it is the same, see projects.py
    warm._threads = lambda: 1  # MLflow imports pyarrow, which has one of its own, for memory that it gives back
    sys.executable = sys.argv[1]  # what `optlab reproduce` starts its stages with
    warm.main(socket.socket(fileno=int(sys.argv[2])))
