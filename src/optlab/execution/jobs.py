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

_STAGES = Path("pipeline")  # whose modules can be run in a process that was forked


Show = Callable[[str], bool]


class Job:
    """One job, wherever it is done.

    Args:
        name: what `ended` is told.
        show: takes a line of its output, unless it returns False; without it, the output is this process's own.
        ended: called when it has ended, from another thread.

    Attributes:
        lines: what it printed, but for the lines that `show` took.
        status: its exit status, negative for a signal; None while it is at work.
        reason: why it was not run, or did not come to its end; where its status does not say that.
        told: why it failed, in the words of a program of ours; where it could say.
    """

    def __init__(self, name: str, show: Show | None, ended: Callable[[str], None]) -> None:
        self.name = name
        self.lines: list[str] = []
        self.reason = self.told = ""
        self.status: int | None = None
        self._show, self._ended, self._over = show, ended, threading.Event()

    def hear(self, line: str) -> None:
        """It has printed that."""
        if self._show is None or not self._show(line):
            self.lines.append(line)

    def end(self, status: int, reason: str = "") -> None:
        """It has ended."""
        self.status, self.reason = status, reason
        self._over.set()
        self._ended(self.name)

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        return self.status

    def wait(self) -> int:
        """Its exit status."""
        self._over.wait()
        assert self.status is not None
        return self.status

    def why(self) -> str:
        """Why it failed: in its own words, or if it was killed by how; else by the last line that says anything."""
        last = next((text for line in reversed(self.lines) if (text := line.strip())), "")
        killed = self.status is not None and self.status < 0
        return self.told or (self.how() if killed else last or self.how())

    def how(self) -> str:
        """How it ended, in words."""
        if self.reason:
            return self.reason
        if self.status is not None and self.status < 0:
            hint = ": perhaps there was not enough memory" if self.status == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-self.status).name}{hint}"
        return f"ended with exit status {self.status}"


class Child(Job):
    """A job that is a process on this machine; it leads a session of its own.

    Attributes:
        output: the descriptors of its output, to be closed here once it has them.
        pid: its process id; 0 before it has one.
    """

    def __init__(self, name: str, show: Show | None, ended: Callable[[str], None]) -> None:
        super().__init__(name, show, ended)
        self.pid = 0
        self._reader = None
        if show is None:
            self.output = [os.dup(1), os.dup(2)]
        else:
            ours, its = os.pipe()
            self.output = [its, os.dup(its)]
            self._reader = threading.Thread(target=self._read, args=[ours], daemon=True)
            self._reader.start()

    def _read(self, output: int) -> None:
        with open(output, encoding="locale", errors="replace") as lines:
            for line in lines:
                self.hear(line)

    def end(self, status: int, reason: str = "") -> None:
        """It has ended; what it left in its output is read first."""
        if self._reader:
            self._reader.join(5.0)  # not for what it may have started itself
        super().end(status, reason)


class Warm:
    """Starts that process, and jobs in it.

    Args:
        spinning: whether the threads of a training may wait for each other without sleeping.
        words: for its command line, as `warm` has them.
    """

    PROGRAM = ("-m", "optlab.execution.warm")

    def __init__(self, spinning: bool, *words: str) -> None:
        self._front, its = socket.socketpair()
        with its:
            self._server = self._launch(its, spinning, words)
        self._jobs: dict[int, Child] = {}
        self._count = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _launch(self, its: socket.socket, spinning: bool, words: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        """Start the process, which has that end of the socket."""
        own = {} if spinning else {"OMP_WAIT_POLICY": "PASSIVE"}  # read as the library is loaded
        return subprocess.Popen(
            [sys.executable, *self.PROGRAM, str(its.fileno()), *words], pass_fds=[its.fileno()],
            env=own | os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *ending: object) -> None:
        with contextlib.suppress(OSError):
            self._front.shutdown(socket.SHUT_RDWR)
        self._front.close()
        self._server.kill()  # nothing is left to do: it may still be importing
        self._server.wait()

    def start(self, name: str, command: list[str] | str, folder: Path, cores: list[int], environment: dict[str, str],
              show: Show | None = None, ended: Callable[[str], None] = lambda name: None) -> Child:  # fmt: skip
        """Start a job.

        Args:
            name: as for `Job`.
            command: its words, or the command line of a stage; one that is not a stage's module gets a process of its
                own.
            folder: where it is run.
            cores: those that it may use; none for all.
            environment: what it has besides this process's.
            show: as for `Job`.
            ended: as for `Job`.
        """
        job = Child(name, show, ended)
        words = command if isinstance(command, list) else stage_words(command, folder)
        if words is None:
            _alone(job, str(command), folder, cores, environment)
        else:
            self._send(job, words, folder, cores, environment)
        for each in job.output:
            os.close(each)
        return job

    def _send(self, job: Child, words: list[str], folder: Path, cores: list[int], environment: dict[str, str]) -> None:
        self._count += 1
        self._jobs[self._count] = job
        asked = {"job": self._count, "words": words, "folder": str(folder), "cores": cores, "environment": environment}
        try:
            socket.send_fds(self._front, [json.dumps(asked).encode() + b"\n"], job.output)
        except OSError:
            self._lose(self._count)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._front.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))
        for number in list(self._jobs):
            self._lose(number)

    def _take(self, message: dict[str, Any]) -> None:
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

    def _lose(self, number: int) -> None:
        """The process is gone, and its children must not go on."""
        job = self._jobs.pop(number, None)
        if job is not None:
            if job.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.pid, signal.SIGKILL)
            job.end(1, "the process that runs the stages has ended")


def _alone(job: Child, command: str, folder: Path, cores: list[int], environment: dict[str, str]) -> None:
    """As DVC runs a command line."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=folder, env=os.environ | environment, stdout=job.output[0],
        stderr=job.output[1], stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    job.pid = child.pid
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(child.pid, cores)
    threading.Thread(target=lambda: job.end(child.wait()), daemon=True).start()


def stage_words(command: str, folder: Path) -> list[str] | None:
    """The words after `python`, if the command runs a module of this repository's stages and nothing else."""
    try:
        python, *words = shlex.split(command)
        inside = (folder / words[0]).resolve().relative_to(_STAGES.resolve())
    except (ValueError, IndexError):
        return None
    return words if python == "python" and len(inside.parts) == 1 and not set(command) & set("|&;<>$`") else None
