"""Stages as children of the process that has imported what they need (`warm`), seen from where they are asked for."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STAGE_FOLDER = Path("pipeline")  # whose modules can be run in a process that was forked


LineHandler = Callable[[str], bool]


class Job:
    """One job, wherever it is done.

    Args:
        name: what `on_end` is told.
        show: takes a line of its output, unless it returns False; without it, the output is this process's own.
        ended: called when it has ended, from another thread.

    Attributes:
        lines: what it printed, but for the lines that `on_line` took.
        status: its exit status, negative for a signal; None while it is at work.
        reason: why it was not run, or did not come to its end; where its status does not say that.
        error_message: why it failed, in the words of a program of ours; where it could say.
    """

    def __init__(self, name: str, on_line: LineHandler | None, on_end: Callable[[str], None]) -> None:
        self.name = name
        self.lines: list[str] = []
        self.reason = self.error_message = ""
        self.status: int | None = None
        self._on_line, self._on_end, self._finished = on_line, on_end, threading.Event()

    def receive_line(self, line: str) -> None:
        """It has printed that."""
        if self._on_line is None or not self._on_line(line):
            self.lines.append(line)

    def end(self, status: int, reason: str = "") -> None:
        """It has ended."""
        self.status, self.reason = status, reason
        self._finished.set()
        self._on_end(self.name)

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        return self.status

    def wait(self) -> int:
        """Its exit status."""
        self._finished.wait()
        assert self.status is not None
        return self.status

    def describe_failure(self) -> str:
        """Why it failed: in its own words, or if it was killed by how; else by the last line that says anything."""
        last = next((text for line in reversed(self.lines) if (text := line.strip())), "")
        killed = self.status is not None and self.status < 0
        return self.error_message or (self.describe_exit() if killed else last or self.describe_exit())

    def describe_exit(self) -> str:
        """How it ended, in words."""
        if self.reason:
            return self.reason
        if self.status is not None and self.status < 0:
            hint = ": perhaps there was not enough memory" if self.status == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-self.status).name}{hint}"
        return f"ended with exit status {self.status}"


class LocalJob(Job):
    """A job that is a process on this machine; it leads a session of its own.

    Attributes:
        output_fds: the descriptors of its output, to be closed here once it has them.
        pid: its process id; 0 before it has one.
    """

    def __init__(self, name: str, on_line: LineHandler | None, on_end: Callable[[str], None]) -> None:
        super().__init__(name, on_line, on_end)
        self.pid = 0
        self._reader = None
        if on_line is None:
            self.output_fds = [os.dup(1), os.dup(2)]
        else:
            read_end, write_end = os.pipe()
            self.output_fds = [write_end, os.dup(write_end)]
            self._reader = threading.Thread(target=self._read_output, args=[read_end], daemon=True)
            self._reader.start()

    def _read_output(self, read_end: int) -> None:
        with open(read_end, encoding="locale", errors="replace") as lines:
            for line in lines:
                self.receive_line(line)

    def end(self, status: int, reason: str = "") -> None:
        """It has ended; what it left in its output is read first."""
        if self._reader:
            self._reader.join(5.0)  # not for what it may have started itself
        super().end(status, reason)


class ForkServer:
    """Starts that process, and jobs in it.

    Args:
        spinning: whether the threads of a training may wait for each other without sleeping.
        words: for its command line, as `warm` has them.
    """

    PROGRAM = ("-m", "optlab.orchestration.fork_server")

    def __init__(self, busy_wait: bool, *arguments: str) -> None:
        self._socket, server_socket = socket.socketpair()
        with server_socket:
            self._process = self._launch(server_socket, busy_wait, arguments)
        self._jobs: dict[int, LocalJob] = {}
        self._last_job_id = 0
        threading.Thread(target=self._read_messages, daemon=True).start()

    def _launch(
        self, server_socket: socket.socket, busy_wait: bool, arguments: tuple[str, ...]
    ) -> "subprocess.Popen[bytes]":
        """Start the process, which has that end of the socket."""
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
        self._process.kill()  # nothing is left to do: it may still be importing
        self._process.wait()

    def start(
        self,
        name: str,
        command: list[str] | str,
        folder: Path,
        cores: list[int],
        environment: dict[str, str],
        on_line: LineHandler | None = None,
        on_end: Callable[[str], None] = lambda name: None,
    ) -> LocalJob:
        """Start a job.

        Args:
            name: as for `Job`.
            command: its words, or the command line of a stage; one that is not a stage's module gets a process of its
                own.
            folder: where it is run.
            cores: those that it may use; none for all.
            environment: what it has besides this process's.
            on_line: as for `Job`.
            on_end: as for `Job`.
        """
        job = LocalJob(name, on_line, on_end)
        argv = command if isinstance(command, list) else parse_stage_command(command, folder)
        if argv is None:
            _run_in_shell(job, str(command), folder, cores, environment)
        else:
            self._send(job, argv, folder, cores, environment)
        for each in job.output_fds:
            os.close(each)
        return job

    def _send(
        self, job: LocalJob, argv: list[str], folder: Path, cores: list[int], environment: dict[str, str]
    ) -> None:
        self._last_job_id += 1
        self._jobs[self._last_job_id] = job
        request = {
            "job": self._last_job_id,
            "words": argv,
            "folder": str(folder),
            "cores": cores,
            "environment": environment,
        }
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], job.output_fds)
        except OSError:
            self._mark_lost(self._last_job_id)

    def _read_messages(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._handle_message(json.loads(line))
        for job_id in list(self._jobs):
            self._mark_lost(job_id)

    def _handle_message(self, message: dict[str, Any]) -> None:
        job = self._jobs[message["job"]]
        if "pid" in message:
            job.pid = message["pid"]
            return
        del self._jobs[message["job"]]
        if "changed" in message:
            paths = ", ".join(os.path.relpath(path) for path in message["changed"])
            job.end(1, f"{paths} changed since this command began, so it was not run: repeat the command")
        else:
            job.end(message["status"])

    def _mark_lost(self, job_id: int) -> None:
        """The process is gone, and its children must not go on."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            if job.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.pid, signal.SIGKILL)
            job.end(1, "the process that runs the stages has ended")


def _run_in_shell(job: LocalJob, command: str, folder: Path, cores: list[int], environment: dict[str, str]) -> None:
    """As DVC runs a command line."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=folder, env=os.environ | environment, stdout=job.output_fds[0],
        stderr=job.output_fds[1], stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    job.pid = child.pid
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(child.pid, cores)
    threading.Thread(target=lambda: job.end(child.wait()), daemon=True).start()


def parse_stage_command(command: str, folder: Path) -> list[str] | None:
    """The words after `python`, if the command runs a module of this repository's stages and nothing else."""
    try:
        python, *argv = shlex.split(command)
        stage_path = (folder / argv[0]).resolve().relative_to(_STAGE_FOLDER.resolve())
    except (ValueError, IndexError):
        return None
    return argv if python == "python" and len(stage_path.parts) == 1 and not set(command) & set("|&;<>$`") else None
