"""The machine's memory: what there is, what some work took of it, and a limit before the kernel ends processes."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# A container's own limit: of cgroup version 2, and of version 1.
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_PROCESS = Path("/proc/self")
_REFUSED = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")  # torch's words on a CPU
GIB = 2**30


def total() -> int:
    """Bytes that this machine, or this container, has."""
    found = [psutil.virtual_memory().total]
    for path in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # "max"
            found.append(int(path.read_text("utf-8")))
    return min(found)


def limit() -> None:
    """Let an allocation fail that would bring this process above the machine's memory, swap included.

    Without it the allocation succeeds, and its use takes the machine with it until the kernel kills something. On Linux
    only, where a limit on data counts what a process can write to and shares with nobody.
    """
    if not _PROCESS.is_dir():
        return
    import resource

    most = total() + psutil.swap_memory().total
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


@dataclass
class Taken:
    """Bytes that some work took at its highest, more than before it; 0 while it is unknown."""

    bytes: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Taken]:
    """How much the work within takes; known after it, and on Linux only."""
    taken = Taken()
    try:
        (_PROCESS / "clear_refs").write_bytes(b"5")  # the highest value so far becomes the present one: man 5 proc
        before = _highest()
    except (OSError, ValueError):
        yield taken
        return
    yield taken
    taken.bytes = max(0, _highest() - before)


def _highest() -> int:
    status = (_PROCESS / "status").read_text("utf-8", "replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError("no VmHWM")
    return int(found[1]) * 1024


def lack(error: Exception) -> str | None:
    """What an error says about memory that could not be had, in words; None if it is about something else."""
    found = _REFUSED.search(str(error))
    if not (found or isinstance(error, MemoryError)):
        return None
    asked = f" ({int(found[1]) / GIB:.1f} GiB at once)" if found else ""
    return f"wants more memory than the {_allowed() / GIB:.1f} GiB that there are{asked}"


def _allowed() -> int:
    """Bytes that this process may have: all, or what `ulimit -v` leaves of it."""
    if not _PROCESS.is_dir():
        return total()
    import resource

    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    return total() if own == resource.RLIM_INFINITY else min(total(), own)
