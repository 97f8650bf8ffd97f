"""Terminal output of `optlab repro`: a status line, the means so far, and a progress bar for each run."""

import contextlib
import json
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from optlab.records import EvalRecord, RunFiles
from optlab.system import processes
from optlab.system.errors import RecordError

_SPEED_PERIOD_S = 600.0  # over which the time that is left is estimated


class Display:
    """Progress of several runs: a bar for each one in progress, one for all, and each optimizer's mean so far.

    Bars and means are removed at the end; printed lines stay. Redirected output gets the lines only.

    Args:
        runs: the files of every run, in the order of params.yaml.
        warnings: lines that are shown already: every run repeats those about params.yaml and the machine.
    """

    def __init__(self, runs: list[RunFiles], warnings: Iterable[str] = ()) -> None:
        self._warnings = set(warnings)
        self._files = {run_files.id: run_files for run_files in runs}
        self._accuracies: dict[str, list[float]] = {files.optimizer: [] for files in runs}
        self._progress = _ProgressWithMeans(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"), console=make_console(), transient=True,
            speed_estimate_period=_SPEED_PERIOD_S,
        )  # fmt: skip
        self._bars: dict[str, TaskID] = {}
        self._fractions: dict[str, float] = {}  # run in progress → how much of it is trained
        self._ended = 0
        self._total_bar = self._progress.add_task("runs", total=len(runs), text="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._progress.stop()

    def handle_line(self, run: str, line: str) -> bool:
        """Show a line that reports progress, an epoch or, once for all runs, a warning; returns whether it does."""
        if line.startswith(processes.PROGRESS_PREFIX):
            with contextlib.suppress(ValueError):  # another line can run into it
                self._update_bar(run, json.loads(line.removeprefix(processes.PROGRESS_PREFIX)))
            return True
        if line.startswith("warning:"):
            if line.strip() not in self._warnings:
                self._warnings.add(line.strip())
                self.print_line(f"{run}  {line.rstrip()}")
            return True
        if line.startswith(f"{run}  "):
            self.print_line(line.rstrip())
            return True
        return False

    def _update_bar(self, run: str, state: dict[str, Any]) -> None:
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(run, total=state["total"], text="")
        self._progress.update(self._bars[run], completed=state["images"], text=f"loss {state['loss']:.3f}")
        self._fractions[run] = state["images"] / state["total"]
        self._update_total()

    def _update_total(self) -> None:
        self._progress.update(self._total_bar, completed=self._ended + sum(self._fractions.values()))

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(text, markup=False)

    def end(self, run: str, reason: str | None) -> None:
        """Remove the bar of a run that has ended, and count it; `reason` says why it failed, None that it did not."""
        self._ended += 1
        self._fractions.pop(run, None)
        bar = self._bars.pop(run, None)
        if bar is not None:
            self._progress.remove_task(bar)
        if bar is not None or self._fractions:
            self._update_total()
        else:  # what is on record says nothing about the speed
            self._progress.reset(self._total_bar, completed=self._ended)
        if reason:
            self.print_line(f"{run}  failed: {reason}")
        else:
            self._add_accuracy(self._files[run])

    def _add_accuracy(self, run_files: RunFiles) -> None:
        with contextlib.suppress(RecordError):
            accuracy = EvalRecord.read(run_files.test).test_accuracy
            if accuracy is not None:
                self._accuracies[run_files.optimizer].append(accuracy)
        self._progress.means = make_means_table(self._accuracies)


class _ProgressWithMeans(Progress):
    """Progress bars of rich with a table above them."""

    means: Table | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.means:
            yield self.means
        yield from super().get_renderables()


def make_means_table(accuracies: dict[str, list[float]]) -> Table:
    """Return the mean test accuracy of each optimizer's runs so far, in the order of `accuracies`."""
    table = Table("optimizer", "runs", "mean test accuracy so far, no verdict yet", box=None, pad_edge=False)
    for optimizer, values in accuracies.items():
        table.add_row(optimizer, str(len(values)), f"{statistics.fmean(values):.2%}" if values else "–")
    return table


def make_console() -> Console:
    """Return a console that prints texts as they are: without colours, emoji for `:x:`, or breaks of lines."""
    return Console(highlight=False, soft_wrap=True, emoji=False)


@contextlib.contextmanager
def show_status(text: str) -> Iterator[None]:
    """Show a status line in a terminal, and remove it at the end."""
    with make_console().status(text):
        yield
