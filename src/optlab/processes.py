"""Child processes that do not outlive their parent's wish."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE_S = 20.0  # between asking a process to stop and killing it


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt here, as Ctrl-C does. In the main thread only.

    Ctrl-C as well where this process was started with it switched off, as shells start jobs in the background: its
    children could not be interrupted otherwise.
    """

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

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
