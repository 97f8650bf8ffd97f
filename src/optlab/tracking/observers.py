"""What watches a training: the progress bar, and the journal."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from tqdm import tqdm

from optlab.record.contents import Status
from optlab.system import progress as progress_lines
from optlab.tracking.journal import Journal, now_ms
from optlab.tracking.points import Point, epoch_points, validation_points
from optlab.training.loop import Epoch, Observer, Start, Validation

DIVERGED = "diverged: its loss, its weights or its outputs are not finite: it ends here, and keeps what it has"

FLUSH_S = 5.0
SYSTEM_S = 10.0


def progress(epochs: int, images_per_epoch: int) -> Observer:
    """A bar for a person, or lines for a program that asked for them."""
    kind = ProgressLines if os.environ.get(progress_lines.VARIABLE) == "lines" else Progress
    return kind(epochs, images_per_epoch)


class Progress(Observer):
    """One bar for the whole run, and one line per epoch that stays."""

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs, self._size = epochs, images_per_epoch
        self._accuracy = ""
        self._shown = 0.0

    def on_start(self, start: Start) -> None:
        # Where no person watches, a line now and then is enough.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        total = self._epochs * self._size
        self._bar = tqdm(total=total, initial=start.images_done, desc=start.run, unit="img", mininterval=interval,
                         leave=False, dynamic_ncols=True)  # fmt: skip
        for sentence in opening(start):
            self._bar.write(sentence)

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self._bar.update(images)
        if time.monotonic() - self._shown > 0.5:
            self._bar.set_postfix_str(f"loss {loss:.3f}{self._accuracy}", refresh=False)
            self._shown = time.monotonic()

    def on_epoch(self, epoch: Epoch) -> None:
        if epoch.validation_accuracy is not None:
            self._accuracy = f", val {epoch.validation_accuracy:.1%}"
        self._bar.write(f"{self._bar.desc}  epoch {epoch.epoch}/{self._epochs}  {_in_words(epoch)}")

    def on_end(self, status: Status) -> None:
        self._bar.close()
        if status == "diverged":
            self._bar.write(f"{self._bar.desc}  {DIVERGED}")


class ProgressLines(Observer):
    """Twice a second one line of JSON after a mark, and the same line per epoch as for a person."""

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs, self._total = epochs, epochs * images_per_epoch
        self._images, self._shown = 0, 0.0

    def on_start(self, start: Start) -> None:
        self._run, self._images = start.run, start.images_done
        for sentence in opening(start):
            print(sentence, flush=True)

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self._images += images
        if time.monotonic() - self._shown > 0.5:
            state = {"images": self._images, "total": self._total, "loss": loss}
            print(f"{progress_lines.MARK}{json.dumps(state)}", flush=True)
            self._shown = time.monotonic()

    def on_epoch(self, epoch: Epoch) -> None:
        print(f"{self._run}  epoch {epoch.epoch}/{self._epochs}  {_in_words(epoch)}", flush=True)

    def on_end(self, status: Status) -> None:
        if status == "diverged":
            print(f"{self._run}  {DIVERGED}", flush=True)


class JournalWriter(Observer):
    """Writes the hyperparameters, every loss, the epochs' figures, the speed and the machine's load to a journal.

    What an earlier, interrupted process has written there is not written again.

    Args:
        journal: where to.
        facts: what else its first event says, as from `facts.facts`.
        written: called after each flush, to wake whoever reads the journal.
    """

    def __init__(self, journal: Journal, facts: dict[str, Any], written: Callable[[], None]) -> None:
        self._journal, self._facts, self._written = journal, facts, written
        self._points: list[Point] = []
        self._known = journal.recorded()
        self._woken = self._epoch_began = time.monotonic()
        self._measured = self._woken - SYSTEM_S + FLUSH_S  # the first sample comes soon
        self._images = self._step = 0
        psutil.cpu_percent()  # the first call has nothing to compare with
        journal.before_end = self.flush

    def on_start(self, start: Start) -> None:
        own = {f"optimizer.{key}": value for key, value in start.hyperparameters.items()}
        own |= {"model.parameters": start.parameters, "steps_per_epoch": start.steps_per_epoch}
        self._params = {key: str(value) for key, value in (self._facts["params"] | own).items()}
        self._journal.begin(self._facts | {"params": self._params}, start.steps_done)
        self._epoch_began = time.monotonic()
        self._written()

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self._add([("step/loss", _finite(loss), now_ms(), step)])
        self._images += images
        self._step = step
        if time.monotonic() - self._woken > FLUSH_S:
            self._send()

    def on_validation(self, validation: Validation) -> None:
        self._add(validation_points(validation.model_dump(), now_ms()))

    def on_epoch(self, epoch: Epoch) -> None:
        when, elapsed = now_ms(), time.monotonic() - self._epoch_began
        speed = self._images / elapsed or None  # none if all its steps were done by an earlier process
        self._add(epoch_points(epoch.model_dump() | {"images_per_second": speed}, when, self._params))
        self._send()
        self._images, self._epoch_began = 0, time.monotonic()

    def flush(self) -> None:
        """Write what has gathered."""
        if time.monotonic() - self._measured > SYSTEM_S:
            self._add(_system(self._step))
            self._measured = time.monotonic()
        if self._points:
            self._journal.metrics(self._points)
            self._points = []

    def _send(self) -> None:
        self.flush()
        self._woken = time.monotonic()
        self._written()

    def _add(self, points: list[Point]) -> None:
        self._points += [point for point in points if (point[0], point[3]) not in self._known]


def opening(start: Start) -> list[str]:
    """What is said before the first step."""
    said = [f"{start.run}  {sentence}" for sentence in start.described]
    if start.steps_done:
        said.append(f"{start.run}  continues after step {start.steps_done}, where it was interrupted")
    return said


def _in_words(epoch: Epoch) -> str:
    if epoch.running_loss is None:
        return "the loss is not finite"
    if epoch.validation_accuracy is None:
        return f"running loss {epoch.running_loss:.1f}"
    return (
        f"training loss {epoch.train_loss:.4f}, validation loss {epoch.validation_loss:.4f}, "
        f"validation accuracy {epoch.validation_accuracy:.2%}"
    )


def _system(step: int) -> list[Point]:
    """The names under which MLflow's own monitor reports them: its UI has a tab for these."""
    when, memory = now_ms(), psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    return [(key, value, when, step) for key, value in values.items()]


def _finite(value: float) -> float:
    """MLflow stores an infinite value as 1.8e308, which ruins a chart; not-a-number leaves a gap."""
    return value if math.isfinite(value) else math.nan
