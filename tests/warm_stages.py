"""What tests start stages and commands in, where start-up is not what they test: MLflow is imported here, too.

Such a stage sends to MLflow itself, at its end; that others do it meanwhile is tested with stages of DVC's.
"""

import socket
import sys

import mlflow
import mlflow.pyfunc  # noqa: F401

from optlab.execution import warm
from optlab.system import repository
from optlab.tracking import link, replay


class Inside(link.Link):
    def __init__(self):
        pass

    def wake(self, journal):
        pass

    def ask(self, **question):
        return None

    def close(self):
        replay.push_pending()


if __name__ == "__main__":
    link.Link = Inside
    repository._run_own_code = lambda sources: None  # it is the same, see projects.py
    warm._threads = lambda: 1  # MLflow imports pyarrow, which has one of its own, for memory that it gives back
    warm.main(socket.socket(fileno=int(sys.argv[1])))
