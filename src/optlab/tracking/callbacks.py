"""Callbacks of a training: its progress, and the writer of its event log."""

import json
import math
import os
import sys
import time
from typing import Any

import psutil
from tqdm import tqdm

from optlab.records import Status
from optlab.system import processes
from optlab.tracking.event_log import (
    EventLog,
    MetricPoint,
    get_current_time_ms,
    make_epoch_points,
    make_validation_points,
)
from optlab.training.loop import Callback, EpochMetrics, TrainStart, ValidationMetrics

DIVERGED_MESSAGE = "diverged: its loss, its weights or its outputs are not finite: it ends here, and keeps what it has"

FLUSH_INTERVAL_S = 5.0
SYSTEM_METRICS_INTERVAL_S = 10.0
_PROGRESS_INTERVAL_S = 0.5


def create_progress_callback(epochs: int, images_per_epoch: int) -> Callback:
    """Return a progress bar for a person, or lines for a program that asks for them in OPTLAB_PROGRESS."""
    callback_class = ProgressLines if os.environ.get(processes.PROGRESS_VARIABLE) == "lines" else ProgressBar
    return callback_class(epochs, images_per_epoch)


class ProgressBar(Callback):
    """Progress as one bar for the whole run, and one line per epoch that stays."""

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs, self._images_per_epoch = epochs, images_per_epoch
        self._accuracy = ""
        self._last_update = 0.0

    def on_start(self, start: TrainStart) -> None:
        # Without a terminal, a line now and then is enough.
        interval = _PROGRESS_INTERVAL_S if sys.stderr.isatty() else 15.0
        total = self._epochs * self._images_per_epoch
        self._bar = tqdm(total=total, initial=start.images_done, desc=start.run, unit="img", mininterval=interval,
                         leave=False, dynamic_ncols=True)  # fmt: skip
        for sentence in describe_start(start):
            self._bar.write(sentence)

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self._bar.update(images)
        if time.monotonic() - self._last_update > _PROGRESS_INTERVAL_S:
            self._bar.set_postfix_str(f"loss {loss:.3f}{self._accuracy}", refresh=False)
            self._last_update = time.monotonic()

    def on_epoch(self, epoch: EpochMetrics) -> None:
        if epoch.validation_accuracy is not None:
            self._accuracy = f", val {epoch.validation_accuracy:.1%}"
        self._bar.write(f"{self._bar.desc}  epoch {epoch.epoch}/{self._epochs}  {_format_epoch(epoch)}")

    def on_end(self, status: Status) -> None:
        self._bar.close()
        if status == "diverged":
            self._bar.write(f"{self._bar.desc}  {DIVERGED_MESSAGE}")


class ProgressLines(Callback):
    """Progress as a line of JSON after a prefix, twice a second, and the same line per epoch as for a person."""

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs, self._total = epochs, epochs * images_per_epoch
        self._images, self._last_update = 0, 0.0

    def on_start(self, start: TrainStart) -> None:
        self._run, self._images = start.run, start.images_done
        for sentence in describe_start(start):
            print(sentence, flush=True)

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self._images += images
        if time.monotonic() - self._last_update > _PROGRESS_INTERVAL_S:
            state = {"images": self._images, "total": self._total, "loss": loss}
            print(f"{processes.PROGRESS_PREFIX}{json.dumps(state)}", flush=True)
            self._last_update = time.monotonic()

    def on_epoch(self, epoch: EpochMetrics) -> None:
        print(f"{self._run}  epoch {epoch.epoch}/{self._epochs}  {_format_epoch(epoch)}", flush=True)

    def on_end(self, status: Status) -> None:
        if status == "diverged":
            print(f"{self._run}  {DIVERGED_MESSAGE}", flush=True)


class EventLogWriter(Callback):
    """Writer of hyperparameters, every loss, the epochs' metrics, the speed and the machine's load to an event log.

    Points that an earlier, interrupted process has written there are not written again.

    Args:
        log: log of the run.
        metadata: fields of its start event, as from `run_metadata.build_run_metadata`.
    """

    def __init__(self, log: EventLog, metadata: dict[str, Any]) -> None:
        self._log, self._metadata = log, metadata
        self._points: list[MetricPoint] = []
        self._already_logged = log.read_metric_values()
        self._last_flush = self._epoch_start = time.monotonic()
        # The first sample of the system's load comes with the first flush.
        self._last_system_sample = self._last_flush - SYSTEM_METRICS_INTERVAL_S + FLUSH_INTERVAL_S
        self._images = self._step = 0
        psutil.cpu_percent()  # the first call has nothing to compare with
        log.on_flush = self.flush

    def on_start(self, start: TrainStart) -> None:
        model_params = {f"optimizer.{key}": value for key, value in start.hyperparameters.items()}
        model_params |= {"model.parameters": start.n_parameters, "steps_per_epoch": start.steps_per_epoch}
        self._params = {key: str(value) for key, value in (self._metadata["params"] | model_params).items()}
        self._log.log_start_or_resume(self._metadata | {"params": self._params}, start.steps_done)
        self._epoch_start = time.monotonic()

    def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
        # MLflow stores an infinite value as 1.8e308, which ruins a chart; not-a-number leaves a gap.
        self._add_points([("step/loss", loss if math.isfinite(loss) else math.nan, get_current_time_ms(), step)])
        self._images += images
        self._step = step
        if time.monotonic() - self._last_flush > FLUSH_INTERVAL_S:
            self.flush()

    def on_validation(self, validation: ValidationMetrics) -> None:
        self._add_points(make_validation_points(validation.model_dump(), get_current_time_ms()))

    def on_epoch(self, epoch: EpochMetrics) -> None:
        timestamp_ms, elapsed = get_current_time_ms(), time.monotonic() - self._epoch_start
        speed = self._images / elapsed or None  # None if an earlier process did all its steps
        metrics = epoch.model_dump() | {"images_per_second": speed}
        self._add_points(make_epoch_points(metrics, timestamp_ms, self._params))
        self.flush()
        self._images, self._epoch_start = 0, time.monotonic()

    def flush(self) -> None:
        """Write the buffered points."""
        if time.monotonic() - self._last_system_sample > SYSTEM_METRICS_INTERVAL_S:
            self._add_points(_measure_system(self._step))
            self._last_system_sample = time.monotonic()
        if self._points:
            self._log.log_metrics(self._points)
            self._points = []
        self._last_flush = time.monotonic()

    def _add_points(self, points: list[MetricPoint]) -> None:
        self._points += [point for point in points if (point[0], point[3]) not in self._already_logged]


def describe_start(start: TrainStart) -> list[str]:
    """Return the lines to print before the first step."""
    lines = [f"{start.run}  {sentence}" for sentence in start.descriptions]
    if start.steps_done:
        lines.append(f"{start.run}  continues after step {start.steps_done}, where it was interrupted")
    return lines


def _format_epoch(epoch: EpochMetrics) -> str:
    if epoch.running_loss is None:
        return "the loss is not finite"
    if epoch.validation_accuracy is None:
        return f"running loss {epoch.running_loss:.1f}"
    return (
        f"training loss {epoch.train_loss:.4f}, validation loss {epoch.validation_loss:.4f}, "
        f"validation accuracy {epoch.validation_accuracy:.2%}"
    )


def _measure_system(step: int) -> list[MetricPoint]:
    """Measure the load, under the names of MLflow's own monitor, for which its pages have a tab."""
    timestamp_ms, memory = get_current_time_ms(), psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    return [(key, value, timestamp_ms, step) for key, value in values.items()]
