"""Child processes that do not outlive their parent's wish."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

PATIENCE_S = 20.0  # between asking a process to stop and killing it
CALLER_VARIABLE = "OPTLAB_PID"  # of the `optlab repro` that starts several trainings
_LOOK_S = 0.5  # how often to see whether the caller is alive


def follow_caller() -> None:
    """Stop, as on SIGTERM, once a `dvc` or `optlab` that this process was started by is gone.

    Killed, they leave what they started, which would then write beside the next one.
    """
    callers = [each for each in psutil.Process().parents() if _is_caller(each)]
    if _orphaned(callers):
        raise KeyboardInterrupt

    def follow() -> None:
        while all(_is_alive(each) for each in callers):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if callers:
        threading.Thread(target=follow, name="caller", daemon=True).start()


def _orphaned(callers: list[psutil.Process]) -> bool:
    """Whether one of them was gone before this process could look: their marks are in the environment."""
    if "DVC_STAGE" in os.environ and not callers:  # set by DVC for what it starts
        return True
    number = os.environ.get(CALLER_VARIABLE)
    return number is not None and not any(str(each.pid) == number for each in callers)


def _is_caller(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()[:3]
    except psutil.Error:
        return False
    return any(Path(word).name in ("dvc", "optlab") for word in words)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt here, as Ctrl-C does. In the main thread only.

    Ctrl-C as well where this process was started with it switched off, as shells start jobs in the background: its
    children could not be interrupted otherwise.
    """

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` asks
        numbers.append(signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the clearing up short
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop(children: Sequence["subprocess.Popen[Any]"]) -> None:
    """Interrupt processes that lead sessions of their own, with all that they started; kill what does not end."""
    deadline = time.monotonic() + PATIENCE_S
    for number in (signal.SIGINT, signal.SIGKILL):
        for child in children:
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                continue
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(0.05)


def run(command: Sequence[str] | str, **options: Any) -> int:
    """Run a command to its end and return its exit status; if this process is interrupted, it is stopped first.

    Args:
        command: a list of words, or one line for the shell.
        options: as for `subprocess.Popen`.
    """
    with subprocess.Popen(command, shell=isinstance(command, str), start_new_session=True, **options) as child:
        try:
            return child.wait()
        except BaseException:
            stop([child])
            raise
