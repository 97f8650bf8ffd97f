"""A process that has imported what the stages need, and forks one child for each stage: a run pays no start-up.

    python -m optlab.orchestration.fork_server FD [--training]

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

from optlab.system import errors, source_code

# What the stages import while they run, but for a user's own modules.
_PRELOAD_TRAINING = (
    "optlab.data.cifar10",
    "optlab.orchestration.preflight_cache",
    "optlab.analysis.metrics",
    "optlab.environment",
    "optlab.preflight.checks",
    "optlab.tracking.run_metadata",
    "optlab.tracking.uploader_client",
    "optlab.tracking.callbacks",
    "optlab.training.checkpoint",
    "optlab.training.loop",
    "optlab.tuning.trial",
)
_PRELOAD_OTHERS = (
    "optlab.data.download",
    "optlab.analysis.comparison",
    "optlab.analysis.report",
    "optlab.tracking.comparison_sync",
)


class ForkServerProcess:
    """Takes jobs and forks; `connection` is the socket to who gives them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._job_ids: dict[int, int] = {}  # process id → job
        self._file_signatures = {
            path: _get_file_signature(path) for path in source_code.find_imported_modules().values()
        }

    def serve(self) -> None:
        """Until the other end of the socket is closed."""
        wakeup_read, wakeup_write = os.pipe()
        for end in (wakeup_read, wakeup_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_write)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        received = b""
        files: list[int] = []
        while True:
            ready = select.select(list[Any]([self._connection, wakeup_read]), [], [])[0]
            if wakeup_read in ready:
                os.read(wakeup_read, 1000)
            self._report_exits()
            if self._connection in ready:
                data, more, _, _ = socket.recv_fds(self._connection, 65536, 16)
                files += more
                if not data:
                    return
                received += data
                while b"\n" in received:
                    line, received = received.split(b"\n", 1)
                    self._fork_job(json.loads(line), [files.pop(0), files.pop(0)])

    def _fork_job(self, job: dict[str, Any], output: list[int]) -> None:
        changed = [str(path) for path, stamp in self._file_signatures.items() if _get_file_signature(path) != stamp]
        if changed:
            _close_all(output)
            self._send({"job": job["job"], "changed": changed})
            return
        pid = os.fork()
        if not pid:
            _run_child(job, output)
        _close_all(output)
        self._job_ids[pid] = job["job"]
        self._send({"job": job["job"], "pid": pid})

    def _report_exits(self) -> None:
        while self._job_ids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._send({"job": self._job_ids.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # who gave the job is gone
            self._connection.sendall(json.dumps(message).encode() + b"\n")


def _get_file_signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _close_all(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)


def _run_child(job: dict[str, Any], output: list[int]) -> NoReturn:
    """What a new process of the job's command would be; never returns."""
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a cluster's worker blocks what interrupts its tasks
        for stream, descriptor in zip((1, 2), output, strict=True):
            os.dup2(descriptor, stream)
        os.closerange(3, 256)
        encoding = sys.stdout.encoding
        sys.stdout = open(1, "w", 1, encoding=encoding, errors="replace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if job["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job["cores"])
        os.environ |= job["environment"]
        os.chdir(job["folder"])
        sys.argv = job["words"]
        errors.run_main(_load_main(Path(sys.argv[0])))
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _load_main(script: Path) -> Any:
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


def _count_threads() -> int:
    """How many this process has, where the system says so."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 1


def main(connection: socket.socket, preload: Iterable[str] = (*_PRELOAD_TRAINING, *_PRELOAD_OTHERS)) -> None:
    """Import, then serve."""
    for name in preload:
        importlib.import_module(name)
    gc.freeze()  # a child's collections need not look through what is imported, and copy its memory
    if _count_threads() > 1:
        sys.exit(f"error: {_count_threads()} threads after the imports: a fork would be unsafe")
    ForkServerProcess(connection).serve()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *([_PRELOAD_TRAINING] if "--training" in sys.argv else []))
