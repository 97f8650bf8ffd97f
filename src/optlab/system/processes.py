"""Child processes that end with their parent, calls in a fork, and the memory that a process may take."""

import ctypes
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

PARENT_PID_VARIABLE = "OPTLAB_PARENT_PID"  # of the `optlab` that starts stages, or that starts the DVC which does
PROGRESS_VARIABLE = "OPTLAB_PROGRESS"  # "lines": a training prints its progress as lines of JSON, for its caller
PROGRESS_PREFIX = "::progress "  # of such a line
STOP_TIMEOUT_S = 45.0  # between SIGINT and SIGKILL: on a busy machine MLflow alone takes 20 s to load
GIB = 2**30

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MMAP_THRESHOLD = 32 * 2**20  # bytes: the most that glibc's own adaptive threshold reaches

_DVC_STAGE_VARIABLE = "DVC_STAGE"  # DVC sets it for the stages that it starts, so no process above DVC has it
_PARENT_POLL_S = 0.2
_CALLER_POLL_S = 0.5
_SHELLS = {"sh", "ash", "bash", "dash", "fish", "ksh", "mksh", "zsh", "csh", "tcsh"}
_PYTHON = re.compile(r"(python|pypy)[\d.]*[a-z]?", re.IGNORECASE)
_PROC_SELF = Path("/proc/self")
# Limits of a container: cgroup version 2, then version 1.
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def call_in_fork(function: Callable[[], Any]) -> Any:
    """Call `function` in a fork of this process, so that it leaves no trace here; returns its result, through JSON.

    Raises:
        OptlabError: `function` has raised it; of the same class.
        ResourceError: the child was killed.
        ChildProcessError: `function` has raised anything else; its traceback is on stderr.
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
        with os.fdopen(readable, "rb") as file:
            content = file.read()
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not content:
        raise ResourceError(
            f"a process that tried params.yaml out was stopped (exit status {status}): is memory short?"
        )
    answer = json.loads(content)
    if "error" in answer:
        raise getattr(errors, answer["kind"], ChildProcessError)(answer["error"])
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
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


def get_total_memory() -> int:
    """Return the bytes of memory of this machine, or of this container."""
    limits = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max"
            limits.append(int(path.read_text("utf-8")))
    return min(limits)


def limit_memory() -> None:
    """Make an allocation fail that would bring this process above the machine's memory, swap included.

    Without it the allocation succeeds, and its use takes the machine with it until the kernel kills something. On Linux
    only, where a limit on data counts what a process can write to and shares with nobody. There, the process also keeps
    the memory that it has freed.
    """
    if not _PROC_SELF.is_dir():
        return
    _keep_freed_memory()
    import resource

    maximum = get_total_memory() + psutil.swap_memory().total
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or maximum < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (maximum, hard))


def _keep_freed_memory() -> None:
    """Make glibc's malloc keep what the main thread frees for its next allocation, as in the next training step.

    By default it shrinks the heap after a step, and the kernel fills each page with zeros before the next step gets it
    (man 3 mallopt; benchmarks/ALLOCATOR.md has what that costs). Blocks above the threshold are still returned: kept,
    they would not be used again, for torch's aligned allocations leave small pieces between them.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, -1)  # the heap never shrinks


def _return_freed_memory() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class PeakMemory:
    """Peak of the memory that some work took, in bytes above the memory before it; 0 while unknown."""

    bytes: int = 0


@contextmanager
def measure_peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak memory of the block; known after it, and on Linux only."""
    peak = PeakMemory()
    _return_freed_memory()  # of earlier work, which the block would use again
    try:
        (_PROC_SELF / "clear_refs").write_bytes(b"5")  # resets the peak: man 5 proc
        before = _read_peak_memory()
    except (OSError, ValueError):
        yield peak
        return
    yield peak
    peak.bytes = max(0, _read_peak_memory() - before)


def _read_peak_memory() -> int:
    status = (_PROC_SELF / "status").read_text("utf-8", "replace")
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if peak is None:
        raise ValueError("no VmHWM")
    return int(peak[1]) * 1024


def describe_memory_error(error: Exception) -> str | None:
    """Return what to say of an allocation that failed, or None if the error is another one."""
    # torch raises a plain RuntimeError on a CPU, and only its text tells that memory was short.
    if not (isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
        return None
    return f"needs more than the {_get_memory_limit() / GIB:.1f} GiB of available memory"


def _get_memory_limit() -> int:
    """Return the bytes that this process may have: all, or the limit that `ulimit -v` sets."""
    if not _PROC_SELF.is_dir():
        return get_total_memory()
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return get_total_memory() if soft == resource.RLIM_INFINITY else min(get_total_memory(), soft)


def parse_arguments(*names: str) -> list[str]:
    """Return this program's arguments, one for each name; a SEED is a whole number.

    Raises:
        OptlabError: their number is another, or a SEED is no number.
    """
    program, *given = sys.argv
    is_valid = len(given) == len(names) and all(
        value.isdecimal() or name != "SEED" for name, value in zip(names, given, strict=True)
    )
    if not is_valid:
        raise OptlabError(f"Usage: python {program} {' '.join(names)}")
    return given


def exit_with_caller() -> None:
    """Stop, as on SIGTERM, once the DVC or the `optlab` that started this stage is gone.

    When these are killed, they leave their stages behind, which would then write beside the next ones. A stage that was
    started by hand follows no process.

    Raises:
        KeyboardInterrupt: one of them is gone already.
    """
    callers = find_callers()
    present = [each for each in callers if each is not None]
    if len(present) < len(callers):
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
    """Find the ancestors that this process must not outlive, by the variables they set; None for one that is gone.

    Only these: an editor or a terminal further up may be closed while a `nohup dvc repro` continues.
    """
    callers = [find_dvc()] if _DVC_STAGE_VARIABLE in os.environ else []
    pid = os.environ.get(PARENT_PID_VARIABLE)
    if pid is not None:
        callers.append(next((each for each in _walk_ancestors() if str(each.pid) == pid), None))
    return callers


def find_dvc() -> psutil.Process | None:
    """Find the DVC that runs this stage: the nearest ancestor that is not part of the stage itself.

    That is `dvc`, `optlab`, or a Python program that uses DVC's API. None if there is no such ancestor, or another
    process has adopted the stage after DVC's end.
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
    """Yield the ancestors, the nearest first, up to one that ends meanwhile."""
    with suppress(psutil.Error):
        process = psutil.Process().parent()
        while process is not None:
            yield process
            process = process.parent()


def _is_in_stage(process: psutil.Process) -> bool:
    """Tell if a process is the shell of the stage's command line, or a wrapper such as `timeout` in that line."""
    with suppress(psutil.Error):
        if process.environ().get(_DVC_STAGE_VARIABLE) == os.environ[_DVC_STAGE_VARIABLE]:
            return True
    return not _SHELLS.isdisjoint(_get_program_names(process))  # macOS hides the environment of its own shells


def _can_run_stages(process: psutil.Process, stage: psutil.Process) -> bool:
    """Tell by the name of its program alone: an argument, such as a folder's name, proves nothing.

    A process that adopts orphans can be an interpreter, too, as the first process of a container; but DVC starts a
    stage in its own session, and orphans are mostly of another.
    """
    names = _get_program_names(process)
    if not names.isdisjoint(("dvc", "optlab")):
        return True
    return any(_PYTHON.fullmatch(name) for name in names) and _get_session_id(process) == _get_session_id(stage)


def _get_program_names(process: psutil.Process) -> set[str]:
    """Return the readable names of a process's program: a script's and its interpreter's."""
    names = set()
    for read in (process.name, process.exe):
        with suppress(psutil.Error):
            names.add(Path(read()).name)
    return names


def _get_session_id(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def is_alive(process: psutil.Process) -> bool:
    """Tell if a process runs, and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, as on Ctrl-C. Does nothing outside of the main thread.

    On Ctrl-C as well if this process was started with it switched off, as shells start jobs in the background: its
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
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the cleanup short
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
        pid: 0 until it has one.
    """

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""


def stop(children: Sequence[SessionLeader]) -> None:
    """Interrupt session leaders with all processes of their sessions; kill those that do not end in time."""
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
    """Run a command to its end and return its exit status; if this process is interrupted, stop the command first.

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
