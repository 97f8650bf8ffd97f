"""Child processes that do not outlive their parent's wish."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import psutil

from optlab.system.errors import OptlabError

PATIENCE_S = 45.0  # between asking a process to stop and killing it: on a busy machine MLflow alone takes 20 to load
CALLER_VARIABLE = "OPTLAB_PID"  # of the `optlab` that starts stages, or starts the DVC that does
_STAGE_VARIABLE = "DVC_STAGE"  # set by DVC for what it starts, and so by nobody above DVC
_LOOK_S = 0.5  # how often to see whether the callers are alive
_SHELLS = {"sh", "ash", "bash", "dash", "fish", "ksh", "mksh", "zsh", "csh", "tcsh"}
_PYTHON = re.compile(r"(python|pypy)[\d.]*[a-z]?", re.IGNORECASE)


def arguments(*names: str) -> list[str]:
    """Return those of this program, one for each name; a SEED is a whole number.

    Raises:
        OptlabError: they are not as many, or no number stands where one must.
    """
    program, *given = sys.argv
    is_right = len(given) == len(names) and all(
        value.isdecimal() or name != "SEED" for name, value in zip(names, given, strict=True)
    )
    if not is_right:
        raise OptlabError(f"Usage: python {program} {' '.join(names)}")
    return given


def follow_caller() -> None:
    """Stop, as on SIGTERM, once the DVC or the `optlab` that this stage was started by is gone.

    Killed, they leave what they started, which would then write beside the next one. A stage that was started by hand
    follows nobody.

    Raises:
        KeyboardInterrupt: one of them is gone already.
    """
    followed = callers()
    present = [each for each in followed if each is not None]
    if len(present) < len(followed):
        raise KeyboardInterrupt

    def follow() -> None:
        while all(is_alive(each) for each in present):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if present:
        threading.Thread(target=follow, name="caller", daemon=True).start()


def callers() -> list[psutil.Process | None]:
    """The ancestors that this process must not outlive, by their marks in its environment; None for one that is gone.

    Only these: an editor or a terminal further up may be closed while a `nohup dvc repro` goes on.
    """
    found = [dvc()] if _STAGE_VARIABLE in os.environ else []
    number = os.environ.get(CALLER_VARIABLE)
    if number is not None:
        found.append(next((each for each in _ancestors() if str(each.pid) == number), None))
    return found


def dvc() -> psutil.Process | None:
    """The DVC that runs this stage; None if there is none, or another process has taken the stage in after its end.

    It is the nearest ancestor that is not a part of the stage itself: `dvc`, or a Python program that uses DVC's API.
    """
    if _STAGE_VARIABLE not in os.environ:
        return None
    outermost = psutil.Process()
    for each in _ancestors():
        if not _is_in_stage(each):
            return each if _can_run_stages(each, outermost) else None
        outermost = each
    return None


def _ancestors() -> Iterator[psutil.Process]:
    """The nearest first, up to one that ends in this moment."""
    with suppress(psutil.Error):
        process = psutil.Process().parent()
        while process is not None:
            yield process
            process = process.parent()


def _is_in_stage(process: psutil.Process) -> bool:
    """Whether it is the shell of the stage's command line, or whatever else that line puts around this process."""
    with suppress(psutil.Error):
        if process.environ().get(_STAGE_VARIABLE) == os.environ[_STAGE_VARIABLE]:
            return True
    return not _SHELLS.isdisjoint(_names(process))  # macOS hides the environment of its own shells


def _can_run_stages(process: psutil.Process, stage: psutil.Process) -> bool:
    """By the name of its program alone: an argument, such as a folder's name, says nothing.

    What takes orphans in can be an interpreter, too, as the first process of a container; but DVC starts a stage in its
    own session, and orphans are mostly of another.
    """
    names = _names(process)
    if not names.isdisjoint(("dvc", "optlab")):
        return True
    return any(_PYTHON.fullmatch(name) for name in names) and _session(process) == _session(stage)


def _names(process: psutil.Process) -> set[str]:
    """What its program is called, as far as that can be read: a script's own name, and its interpreter's."""
    found = set()
    for read in (process.name, process.exe):
        with suppress(psutil.Error):
            found.add(Path(read()).name)
    return found


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def is_alive(process: psutil.Process) -> bool:
    """Whether it is at work, and not only waiting for its parent to take notice of its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt here, as Ctrl-C does. In the main thread; in others, it does nothing.

    Ctrl-C as well where this process was started with it switched off, as shells start jobs in the background: its
    children could not be interrupted otherwise.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
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


class Child(Protocol):
    """A process that leads a session of its own.

    Attributes:
        pid: 0 while it has none yet.
    """

    pid: int

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""


def stop(children: Sequence[Child]) -> None:
    """Interrupt processes that lead sessions of their own, with all that they started; kill what does not end."""
    deadline = time.monotonic() + PATIENCE_S
    for number in (signal.SIGINT, signal.SIGKILL):
        told = set[int]()
        while True:
            for pid in {child.pid for child in children} - told - {0}:
                told.add(pid)
                with suppress(ProcessLookupError):
                    os.killpg(pid, number)
            if all(child.poll() is not None for child in children) or time.monotonic() >= deadline:
                break
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
