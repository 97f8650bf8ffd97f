"""Work in a child of this process, so that it leaves no trace in this one.

The machine's memory: what there is, what some work took of it, and a limit before the kernel ends processes.

Child processes that do not outlive their parent's wish.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import psutil

from optlab.system import errors
from optlab.system.errors import OptlabError, ResourceError, summarize_error

_PARENT_POLL_S = 0.2  # how often a child sees whether its parent is there


def call_in_fork(function: Callable[[], Any]) -> Any:
    """Return what `function` returns, as JSON has it.

    Raises:
        OptlabError: `function` has raised it; of the same class.
        LackError: the child was killed.
        ChildProcessError: `function` has raised anything else, whose traceback is on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    readable, writable = os.pipe()
    parent, child = os.getpid(), os.fork()
    if not child:
        os.close(readable)
        _run_child(function, writable, parent)
    os.close(writable)
    try:
        with os.fdopen(readable, "rb") as answers:
            content = answers.read()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return _decode_answer(content, status)


def _decode_answer(content: bytes, status: int) -> Any:
    if not content:
        raise ResourceError(
            f"a process that tried params.yaml out was stopped (exit status {status}): is memory short?"
        )
    answer = json.loads(content)
    if "error" in answer:
        kind = getattr(errors, answer["kind"], None)
        raise (kind or ChildProcessError)(answer["error"])
    return answer["result"]


def _run_child(function: Callable[[], Any], writable: int, parent: int) -> NoReturn:
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    try:
        answer = {"result": function()}
    except OptlabError as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        traceback.print_exc()
        answer = {"kind": "", "error": f"{type(error).__name__}: {summarize_error(error)}"}
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with os.fdopen(writable, "wb") as file:
            file.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _exit_with_parent(parent: int) -> None:
    """End with the parent."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


# A container's own limit: of cgroup version 2, and of version 1.
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_PROC_SELF = Path("/proc/self")
_ALLOCATION_FAILURE = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")  # torch's words on a CPU
GIB = 2**30


def get_total_memory() -> int:
    """Bytes that this machine, or this container, has."""
    found = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max"
            found.append(int(path.read_text("utf-8")))
    return min(found)


def limit_memory() -> None:
    """Let an allocation fail that would bring this process above the machine's memory, swap included.

    Without it the allocation succeeds, and its use takes the machine with it until the kernel kills something. On Linux
    only, where a limit on data counts what a process can write to and shares with nobody.
    """
    if not _PROC_SELF.is_dir():
        return
    import resource

    maximum = get_total_memory() + psutil.swap_memory().total
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or maximum < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (maximum, hard))


@dataclass
class PeakMemory:
    """Bytes that some work took at its highest, more than before it; 0 while it is unknown."""

    bytes: int = 0


@contextlib.contextmanager
def measure_peak_memory() -> Iterator[PeakMemory]:
    """How much the work within takes; known after it, and on Linux only."""
    peak = PeakMemory()
    try:
        (_PROC_SELF / "clear_refs").write_bytes(b"5")  # the highest value so far becomes the present one: man 5 proc
        before = _read_peak_memory()
    except (OSError, ValueError):
        yield peak
        return
    yield peak
    peak.bytes = max(0, _read_peak_memory() - before)


def _read_peak_memory() -> int:
    status = (_PROC_SELF / "status").read_text("utf-8", "replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError("no VmHWM")
    return int(found[1]) * 1024


def describe_memory_error(error: Exception) -> str | None:
    """What an error says about memory that could not be had, in words; None if it is about something else."""
    found = _ALLOCATION_FAILURE.search(str(error))
    if not (found or isinstance(error, MemoryError)):
        return None
    requested = f" ({int(found[1]) / GIB:.1f} GiB at once)" if found else ""
    return f"wants more memory than the {_get_memory_limit() / GIB:.1f} GiB that there are{requested}"


def _get_memory_limit() -> int:
    """Bytes that this process may have: all, or what `ulimit -v` leaves of it."""
    if not _PROC_SELF.is_dir():
        return get_total_memory()
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return get_total_memory() if soft == resource.RLIM_INFINITY else min(get_total_memory(), soft)


STOP_TIMEOUT_S = (
    45.0  # between asking a process to stop and killing it: on a busy machine MLflow alone takes 20 to load
)
PARENT_PID_VARIABLE = "OPTLAB_PARENT_PID"  # of the `optlab` that starts stages, or starts the DVC that does
_DVC_STAGE_VARIABLE = "DVC_STAGE"  # set by DVC for what it starts, and so by nobody above DVC
_CALLER_POLL_S = 0.5  # how often to see whether the callers are alive
_SHELLS = {"sh", "ash", "bash", "dash", "fish", "ksh", "mksh", "zsh", "csh", "tcsh"}
_PYTHON = re.compile(r"(python|pypy)[\d.]*[a-z]?", re.IGNORECASE)


def parse_arguments(*names: str) -> list[str]:
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


def exit_with_caller() -> None:
    """Stop, as on SIGTERM, once the DVC or the `optlab` that this stage was started by is gone.

    Killed, they leave what they started, which would then write beside the next one. A stage that was started by hand
    follows nobody.

    Raises:
        KeyboardInterrupt: one of them is gone already.
    """
    followed = find_callers()
    present = [each for each in followed if each is not None]
    if len(present) < len(followed):
        raise KeyboardInterrupt

    def watch() -> None:
        while all(is_alive(each) for each in present):
            time.sleep(_CALLER_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_TIMEOUT_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if present:
        threading.Thread(target=watch, name="caller", daemon=True).start()


def find_callers() -> list[psutil.Process | None]:
    """The ancestors that this process must not outlive, by their marks in its environment; None for one that is gone.

    Only these: an editor or a terminal further up may be closed while a `nohup dvc repro` goes on.
    """
    found = [find_dvc()] if _DVC_STAGE_VARIABLE in os.environ else []
    number = os.environ.get(PARENT_PID_VARIABLE)
    if number is not None:
        found.append(next((each for each in _walk_ancestors() if str(each.pid) == number), None))
    return found


def find_dvc() -> psutil.Process | None:
    """The DVC that runs this stage; None if there is none, or another process has taken the stage in after its end.

    It is the nearest ancestor that is not a part of the stage itself: `find_dvc`, or a Python program that uses
    DVC's API.
    """
    if _DVC_STAGE_VARIABLE not in os.environ:
        return None
    outermost = psutil.Process()
    for each in _walk_ancestors():
        if not _is_in_stage(each):
            return each if _can_run_stages(each, outermost) else None
        outermost = each
    return None


def _walk_ancestors() -> Iterator[psutil.Process]:
    """The nearest first, up to one that ends in this moment."""
    with suppress(psutil.Error):
        process = psutil.Process().parent()
        while process is not None:
            yield process
            process = process.parent()


def _is_in_stage(process: psutil.Process) -> bool:
    """Whether it is the shell of the stage's command line, or whatever else that line puts around this process."""
    with suppress(psutil.Error):
        if process.environ().get(_DVC_STAGE_VARIABLE) == os.environ[_DVC_STAGE_VARIABLE]:
            return True
    return not _SHELLS.isdisjoint(_get_program_names(process))  # macOS hides the environment of its own shells


def _can_run_stages(process: psutil.Process, stage: psutil.Process) -> bool:
    """By the name of its program alone: an argument, such as a folder's name, says nothing.

    What takes orphans in can be an interpreter, too, as the first process of a container; but DVC starts a stage in its
    own session, and orphans are mostly of another.
    """
    names = _get_program_names(process)
    if not names.isdisjoint(("dvc", "optlab")):
        return True
    return any(_PYTHON.fullmatch(name) for name in names) and _get_session_id(process) == _get_session_id(stage)


def _get_program_names(process: psutil.Process) -> set[str]:
    """What its program is called, as far as that can be read: a script's own name, and its interpreter's."""
    found = set()
    for read in (process.name, process.exe):
        with suppress(psutil.Error):
            found.add(Path(read()).name)
    return found


def _get_session_id(process: psutil.Process) -> int | None:
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
def interrupt_on_sigterm() -> Iterator[None]:
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

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the clearing up short
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class SessionLeader(Protocol):
    """A process that leads a session of its own.

    Attributes:
        pid: 0 while it has none yet.
    """

    pid: int

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""


def stop(children: Sequence[SessionLeader]) -> None:
    """Interrupt processes that lead sessions of their own, with all that they started; kill what does not end."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for number in (signal.SIGINT, signal.SIGKILL):
        signaled = set[int]()
        while True:
            for pid in {child.pid for child in children} - signaled - {0}:
                signaled.add(pid)
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
