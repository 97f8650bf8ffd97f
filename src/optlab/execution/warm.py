"""A process that has imported what the stages need, and forks one child for each stage: a run pays no start-up.

    python -m optlab.execution.warm FD [--training]

With `--training`, it has not imported what compares runs.

It is single-threaded and does nothing but import and fork: no tensor is made here, and no device is asked for, so that
a child is what a stage's own process would be. Over the socket FD come jobs, one line of JSON each, with the two file
descriptors that take the job's output; back go lines that say which process has it, and how that ended.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from optlab.system import errors, repository

# What the stages import while they run, but for a user's own modules.
_TRAINING = (
    "optlab.data.dataset", "optlab.execution.checked", "optlab.results.evaluation", "optlab.tracking.facts",
    "optlab.tracking.link", "optlab.tracking.observers", "optlab.training.checkpoint", "optlab.training.loop",
    "optlab.tuning.trial",
)  # fmt: skip
_OTHERS = (
    "optlab.data.download", "optlab.results.comparison", "optlab.results.report", "optlab.tracking.publish"
)  # fmt: skip


class Server:
    """Takes jobs and forks; `front` is the socket to who gives them."""

    def __init__(self, front: socket.socket) -> None:
        self._front = front
        self._children: dict[int, int] = {}  # process id → job
        self._files = {path: _stamp(path) for path in repository.modules().values()}

    def work(self) -> None:
        """Until the other end of the socket is closed."""
        woken, wakes = os.pipe()
        for end in (woken, wakes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        received = b""
        files: list[int] = []
        while True:
            ready = select.select(list[Any]([self._front, woken]), [], [])[0]
            if woken in ready:
                os.read(woken, 1000)
            self._report_ended()
            if self._front in ready:
                data, more, _, _ = socket.recv_fds(self._front, 65536, 16)
                files += more
                if not data:
                    return
                received += data
                while b"\n" in received:
                    line, received = received.split(b"\n", 1)
                    self._start(json.loads(line), [files.pop(0), files.pop(0)])

    def _start(self, job: dict[str, Any], output: list[int]) -> None:
        changed = [str(path) for path, stamp in self._files.items() if _stamp(path) != stamp]
        if changed:
            _close(output)
            self._tell({"job": job["job"], "changed": changed})
            return
        child = os.fork()
        if not child:
            _be(job, output)
        _close(output)
        self._children[child] = job["job"]
        self._tell({"job": job["job"], "pid": child})

    def _report_ended(self) -> None:
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            self._tell({"job": self._children.pop(child), "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # who gave the job is gone
            self._front.sendall(json.dumps(message).encode() + b"\n")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        known = path.stat()
    except OSError:
        return None
    return known.st_mtime_ns, known.st_size, known.st_ino


def _close(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)


def _be(job: dict[str, Any], output: list[int]) -> NoReturn:
    """What a new process of the job's command would be; never returns."""
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a cluster's worker blocks what interrupts its tasks
        for stream, its in zip((1, 2), output, strict=True):
            os.dup2(its, stream)
        os.closerange(3, 256)
        encoding = sys.stdout.encoding
        sys.stdout = open(1, "w", 1, encoding=encoding, errors="replace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if job["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job["cores"])
        os.environ |= job["environment"]
        os.chdir(job["folder"])
        sys.argv = job["words"]
        errors.run(_main(Path(sys.argv[0])))
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _main(script: Path) -> Any:
    """The function `main` of a stage's module, of one of this package's, or the command line."""
    if str(script) == "optlab":
        return importlib.import_module("optlab.cli").app
    if script.suffix != ".py":
        return importlib.import_module(str(script)).main
    spec = importlib.util.spec_from_file_location(f"stage_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def _threads() -> int:
    """How many this process has, where the system says so."""
    known = Path("/proc/self/task")
    return len(list(known.iterdir())) if known.is_dir() else 1


def main(front: socket.socket, needed: Iterable[str] = (*_TRAINING, *_OTHERS)) -> None:
    """Import, then serve."""
    for name in needed:
        importlib.import_module(name)
    gc.freeze()  # a child's collections need not look through what is imported, and copy its memory
    if _threads() > 1:
        sys.exit(f"error: {_threads()} threads after the imports: a fork would be unsafe")
    Server(front).work()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *([_TRAINING] if "--training" in sys.argv else []))
