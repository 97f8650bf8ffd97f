"""One progress display for several runs at a time."""

import contextlib
import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from optlab.system import progress


class Display:
    """One progress display for all runs: a line for each that is at work, and one for all."""

    def __init__(self, runs: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"), console=Console(highlight=False, soft_wrap=True),
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._all = self._progress.add_task("runs", total=runs, text="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._progress.stop()

    def show(self, run: str, line: str) -> bool:
        """Take a child's line, if it says how far it is or what an epoch brought."""
        if line.startswith(progress.MARK):
            with contextlib.suppress(ValueError):  # another line can run into it
                self._advance(run, json.loads(line.removeprefix(progress.MARK)))
            return True
        if line.startswith((f"{run}  ", "warning:")):
            prefix = "" if line.startswith(run) else f"{run}  "
            self.say(prefix + line.rstrip())
            return True
        return False

    def _advance(self, run: str, state: dict[str, Any]) -> None:
        if run not in self._tasks:
            self._tasks[run] = self._progress.add_task(run, total=state["total"], text="")
        self._progress.update(self._tasks[run], completed=state["images"], text=f"loss {state['loss']:.3f}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(text, markup=False)

    def end(self, run: str, reason: str | None) -> None:
        """The run has ended."""
        if run in self._tasks:
            self._progress.remove_task(self._tasks.pop(run))
        if reason:
            self.say(f"{run}  failed: {reason}")
        self._progress.advance(self._all)
