"""Run a program in a pseudo-terminal, and read the screen as a terminal emulator draws it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyte
from projects import ask_stages, read_status

ROWS = 40
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Screen:
    """What is left in a terminal when a program has ended.

    Attributes:
        status: the program's exit status.
        lines: everything that has scrolled out of the window, and then the window, without blank lines.
        window: the last lines, blank ones included.
        raw: every byte that the program has written.
    """

    status: int
    lines: list[str]
    window: list[str]
    raw: bytes


def run(command: list[str], folder: Path, environment: dict[str, str], columns: int = 120) -> Screen:
    """Run a command in a terminal of 40 rows to its end."""

    def start(terminal: int, own: dict[str, str]) -> Callable[[], int]:
        process = subprocess.Popen(
            command, cwd=folder, env=own, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
        )
        return lambda: process.wait(240)

    return _show(start, environment, columns)


def run_forked(words: list[str], folder: Path, environment: dict[str, str], columns: int = 120) -> Screen:
    """Run `optlab` in such a terminal, as a child of a process that has imported what it needs."""

    def start(terminal: int, own: dict[str, str]) -> Callable[[], int]:
        server = ask_stages(words, folder, own, [terminal, terminal])

        def wait() -> int:
            status = read_status(server)
            assert status is not None, "it cannot be forked"
            return status

        return wait

    return _show(start, environment, columns)


def _show(
    start: Callable[[int, dict[str, str]], Callable[[], int]], environment: dict[str, str], columns: int
) -> Screen:
    screen = pyte.HistoryScreen(columns, ROWS, history=100_000)
    stream = pyte.ByteStream(screen)
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "CI", "NO_COLOR")}
    wait = start(its, own | {"TERM": "xterm-256color"})
    os.close(its)
    raw, deadline = b"", time.monotonic() + _TIMEOUT_S
    while select.select([ours], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux reports the other end's close so
            break
        if not data:
            break
        raw += data
        stream.feed(data)
    os.close(ours)
    status = wait()
    scrolled = ["".join(line[column].data for column in range(columns)) for line in screen.history.top]
    window = [line.rstrip() for line in screen.display]
    lines = [line for line in (*(each.rstrip() for each in scrolled), *window) if line]
    return Screen(status, lines, window, raw)
