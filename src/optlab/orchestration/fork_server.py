"""Fork server: a process that has imported what stages need and forks a child for each job, so that none starts up.

    python -m optlab.orchestration.fork_server FD [--training]

`ForkServer`, the client, starts the server and sends it jobs over the socket FD: one line of JSON each, with two file
descriptors for the job's output. The server answers with the job's process id and, at its end, the exit status. With
`--training`, it does not import what compares runs. It is single-threaded and only imports and forks: it makes no
tensor and asks for no device, so that a child equals a process of its own.

`multiprocessing`'s forkserver cannot replace it: there, a failed fork() ends the server, a failed import of a preloaded
module is ignored, each process has one server with one environment, and children outlive a killed server.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

from optlab.system import errors, files, processes, repository, source_code
from optlab.system.errors import ERROR_FILE_VARIABLE

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
_OUTPUT_TIMEOUT_S = 5.0  # for the rest of a job's output; a process that the job started may keep the pipe open

LineHandler = Callable[[str], bool]


class Job(Future[int]):
    """One submitted job; its result is the exit status, negative for a signal.

    Args:
        name: of the job, such as `adam-0`.
        on_line: takes a line of output; returns whether it needs no keeping. None: the output is this process's own.

    Attributes:
        lines: kept lines of output.
        reason: why the job was not run or was lost; empty where the exit status says how it ended.
        error_message: why it failed, as its program reported it; empty if it did not.
    """

    def __init__(self, name: str, on_line: LineHandler | None = None) -> None:
        super().__init__()
        self.name, self.lines = name, list[str]()
        self.reason = self.error_message = ""
        self._on_line = on_line

    @property
    def status(self) -> int | None:
        """Exit status; None while the job runs."""
        return self.result() if self.done() else None

    def receive_line(self, line: str) -> None:
        """Handle a line of output."""
        if self._on_line is None or not self._on_line(line):
            self.lines.append(line)

    def end(self, status: int, reason: str = "") -> None:
        """Complete the job."""
        self.reason = reason
        self.set_result(status)

    def describe_failure(self) -> str:
        """Return why it failed: its own message, else the signal that killed it, else its last line of output."""
        last = next((text for line in reversed(self.lines) if (text := line.strip())), "")
        killed = self.status is not None and self.status < 0
        return self.error_message or (self.describe_exit() if killed else last or self.describe_exit())

    def describe_exit(self) -> str:
        """Return how it ended."""
        if self.reason:
            return self.reason
        if self.status is not None and self.status < 0:
            hint = ": perhaps there was not enough memory" if self.status == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-self.status).name}{hint}"
        return f"ended with exit status {self.status}"


class LocalJob(Job):
    """One job that is a process of this machine and leads a session.

    Args:
        error_file: where its program reports why it failed.

    Attributes:
        pid: process id; 0 before it has one.
    """

    def __init__(self, name: str, on_line: LineHandler | None, error_file: Path | None = None) -> None:
        super().__init__(name, on_line)
        self.pid, self._error_file = 0, error_file
        self._reader: threading.Thread | None = None
        if error_file:
            error_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_output(self) -> Iterator[list[int]]:
        """Yield the descriptors of its stdout and stderr, open until its process has them.

        Raises:
            OSError, RuntimeError: no descriptor or thread is left.
        """
        read_end = None
        if self._on_line is None:
            output_fds = [os.dup(1), os.dup(2)]
        else:
            read_end, write_end = os.pipe()
            output_fds = [write_end, os.dup(write_end)]
        try:
            if read_end is not None:
                reader = threading.Thread(target=self._read_output, args=[read_end], daemon=True)
                reader.start()
                self._reader = reader
            yield output_fds
        finally:
            _close_all(output_fds)

    def _read_output(self, read_end: int) -> None:
        with open(read_end, encoding="locale", errors="replace") as lines:
            for line in lines:
                self.receive_line(line)

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        return self.status

    def end(self, status: int, reason: str = "") -> None:
        """Read the rest of its output and its error file, and complete the job."""
        if self._reader:
            self._reader.join(_OUTPUT_TIMEOUT_S)
        if status and self._error_file and self._error_file.exists():
            self.error_message = self._error_file.read_text("utf-8")
        super().end(status, reason)


class ForkServer:
    """Client of a fork server, which it starts; a context manager that ends the server.

    Args:
        busy_wait: whether the threads of a training may wait for each other without sleeping.
        arguments: for the server's command line.
    """

    PROGRAM = ("-m", "optlab.orchestration.fork_server")

    def __init__(self, busy_wait: bool, *arguments: str) -> None:
        self._socket, server_socket = socket.socketpair()
        with server_socket:
            self._process = self._launch(server_socket, busy_wait, arguments)
        self._jobs: dict[int, LocalJob] = {}  # by their ids
        threading.Thread(target=self._read_messages, daemon=True).start()

    def _launch(
        self, server_socket: socket.socket, busy_wait: bool, arguments: tuple[str, ...]
    ) -> "subprocess.Popen[bytes]":
        defaults = {} if busy_wait else {"OMP_WAIT_POLICY": "PASSIVE"}  # read as the library is loaded
        return subprocess.Popen(
            [sys.executable, *self.PROGRAM, str(server_socket.fileno()), *arguments], pass_fds=[server_socket.fileno()],
            env=defaults | os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *ending: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._process.kill()  # no job is left; it may still be importing
        self._process.wait()

    def start(
        self,
        name: str,
        command: list[str] | str,
        folder: Path,
        cores: list[int],
        environment: dict[str, str],
        on_line: LineHandler | None = None,
        error_file: Path | None = None,
    ) -> LocalJob:
        """Start a job; one that cannot be started fails, and no other.

        Args:
            name: as for `Job`.
            command: argument vector, or the command line of a stage; what is not a stage's module runs in a shell.
            folder: working directory.
            cores: that it may use; empty for all.
            environment: variables in addition to this process's.
            on_line: as for `Job`.
            error_file: as for `LocalJob`.
        """
        argv = command if isinstance(command, list) else parse_stage_command(command, folder)
        if error_file:
            environment = environment | {ERROR_FILE_VARIABLE: str(error_file)}
        job = LocalJob(name, on_line, error_file)
        is_sent = True
        try:
            with job.open_output() as output_fds:
                if argv is None:
                    _start_shell(job, str(command), folder, cores, environment, output_fds)
                else:
                    is_sent = self._send(job, argv, folder, cores, environment, output_fds)
        except (OSError, RuntimeError) as error:
            job.end(1, _describe_start_failure(error))
        if not is_sent:
            self._mark_lost(id(job))
        return job

    def _send(self, job: LocalJob, argv: list[str], folder: Path, cores: list[int], environment: dict[str, str],
              output_fds: list[int]) -> bool:  # fmt: skip
        """Send a job to the server; returns whether the server is there."""
        self._jobs[id(job)] = job
        request = {"job": id(job), "argv": argv, "folder": str(folder), "cores": cores, "environment": environment}
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], output_fds)
        except OSError:
            return False
        return True

    def _read_messages(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._handle_message(json.loads(line))
        for job_id in list(self._jobs):
            self._mark_lost(job_id)

    def _handle_message(self, message: dict[str, Any]) -> None:
        if "pid" in message:
            self._jobs[message["job"]].pid = message["pid"]
        else:
            self._jobs.pop(message["job"]).end(message["status"], message.get("reason", ""))

    def _mark_lost(self, job_id: int) -> None:
        """Kill a job whose server has ended."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            if job.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.pid, signal.SIGKILL)
            job.end(1, "the process that runs the stages has ended")


def _start_shell(job: LocalJob, command: str, folder: Path, cores: list[int], environment: dict[str, str],
                 output_fds: list[int]) -> None:  # fmt: skip
    """Start a command line in a shell, as DVC does."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=folder, env=os.environ | environment, stdout=output_fds[0],
        stderr=output_fds[1], stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    job.pid = child.pid
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(child.pid, cores)
    threading.Thread(target=lambda: job.end(child.wait()), daemon=True).start()


def parse_stage_command(command: str, folder: Path) -> list[str] | None:
    """Return what follows `python` in a command that only runs a module of this repository's stages, else None."""
    try:
        python, script, *arguments = shlex.split(command)
        stage = (folder / script).resolve()
    except ValueError:
        return None
    if python != "python" or stage.parent != repository.STAGES.resolve() or set(command) & set("|&;<>$`#\n"):
        return None
    return [os.path.relpath(stage, folder.resolve()), *arguments]  # without a study's links, which a node lacks


def _describe_start_failure(error: Exception) -> str:
    return f"cannot be started ({error}): end other processes or make room in memory, then repeat the command"


def _close_all(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)


class ForkServerProcess:
    """Event loop of the server: takes jobs from `connection`, forks, and reports exits."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._job_ids: dict[int, int] = {}  # process id → job
        self._file_signatures = {path: files.get_stamp(path) for path in source_code.find_imported_modules().values()}

    def serve(self) -> None:
        """Serve until the other end of the socket is closed."""
        wakeup_read, wakeup_write = os.pipe()
        for end in (wakeup_read, wakeup_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_write)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        received = b""
        output_fds: list[int] = []
        while True:
            ready = select.select(list[Any]([self._connection, wakeup_read]), [], [])[0]
            if wakeup_read in ready:
                os.read(wakeup_read, 1000)
            self._report_exits()
            if self._connection in ready:
                data, more_fds, _, _ = socket.recv_fds(self._connection, 65536, 16)
                output_fds += more_fds
                if not data:
                    return
                received += data
                while b"\n" in received:
                    line, received = received.split(b"\n", 1)
                    self._fork_job(json.loads(line), [output_fds.pop(0), output_fds.pop(0)])

    def _fork_job(self, job: dict[str, Any], output_fds: list[int]) -> None:
        changed = [os.path.relpath(path) for path, signature in self._file_signatures.items()
                   if files.get_stamp(path) != signature]  # fmt: skip
        reason = f"{', '.join(changed)} changed since this command began, so it was not run: repeat the command"
        pid = 0
        if not changed:
            try:
                pid = os.fork()
                if not pid:
                    _run_child(job, output_fds)
            except OSError as error:  # no process or memory is left: the other jobs go on
                reason = _describe_start_failure(error)
        _close_all(output_fds)
        if pid:
            self._job_ids[pid] = job["job"]
            self._send({"job": job["job"], "pid": pid})
        else:
            self._send({"job": job["job"], "status": 1, "reason": reason})

    def _report_exits(self) -> None:
        while self._job_ids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._send({"job": self._job_ids.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the client is gone
            self._connection.sendall(json.dumps(message).encode() + b"\n")


def _run_child(job: dict[str, Any], output_fds: list[int]) -> NoReturn:
    """Become what a new process of the job's command would be, and never return."""
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray's workers block the signal that interrupts their tasks
        for stream, descriptor in zip((1, 2), output_fds, strict=True):
            os.dup2(descriptor, stream)
        os.closerange(3, 256)
        encoding = sys.stdout.encoding
        sys.stdout = open(1, "w", 1, encoding=encoding, errors="replace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if job["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job["cores"])
        os.environ |= job["environment"]
        os.chdir(job["folder"])
        sys.argv = job["argv"]
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
    """Return `main` of a stage's module or of a module of this package, or the command line."""
    if str(script) == "optlab":
        processes.exit_with_caller()
        return importlib.import_module("optlab.cli").app
    if script.suffix != ".py":
        return importlib.import_module(str(script)).main
    spec = importlib.util.spec_from_file_location(f"stage_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def _count_threads() -> int:
    """Return the number of this process's threads; 1 where the system does not say."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 1


def main(connection: socket.socket, preload: Iterable[str] = (*_PRELOAD_TRAINING, *_PRELOAD_OTHERS)) -> None:
    """Import the modules, then serve."""
    gc.disable()  # the imports are a tenth faster
    for name in preload:
        importlib.import_module(name)
    gc.freeze()  # else a child's garbage collections would scan, and so copy, the memory of the imports
    gc.enable()
    if _count_threads() > 1:
        sys.exit(f"error: {_count_threads()} threads after the imports: a fork would be unsafe")
    ForkServerProcess(connection).serve()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *([_PRELOAD_TRAINING] if "--training" in sys.argv else []))
