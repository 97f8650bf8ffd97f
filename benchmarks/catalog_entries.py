"""Train each ready entry on the tutorial's network, as `optlab add` writes it: a recipe that does not fit shows.

    python benchmarks/catalog_entries.py [--processes N] [--seeds N]          # writes benchmarks/CATALOG.md

Each training has a process of its own, with one thread. An entry that ends far below Adam is trained with other
learning rates as well, which are within the range of `optlab add --range`. What was measured is in .optlab, too: the
next call measures what is missing, and the entries that have changed.
"""

import argparse
import functools
import json
import math
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from typing import Any

import needs
import torch
from needs import TOP

from optlab.config import catalog
from optlab.data import cifar10
from optlab.environment import capture_environment
from optlab.preflight import model_check
from optlab.schema.parameters import Config
from optlab.system import files, repository
from optlab.system.errors import OptlabError, summarize_error
from optlab.training import determinism, loop

RESULTS = TOP / "benchmarks" / "CATALOG.md"
MEASURED = TOP / ".optlab" / "catalog_entries.json"
SETTINGS: dict[str, Any] = {
    "model": "zilliax",
    "data": {"train_size": 5000, "validation_size": 2500},
    "training": {
        "epochs": 3, "batch_size": 64, "threads": 1, "schedule": {"name": "cosine", "warmup_epochs": 0},
    },
}  # fmt: skip
REFERENCE, FAR = "adam", 0.15  # an entry that is so far below the reference gets other learning rates, times
FACTORS = (0.1, 3, 10, 100)
MOST_SEEDS = 5

Measurement = dict[str, Any]  # accuracy and loss, None if it diverged; seconds of the processor; failure, in words


@dataclass(frozen=True)
class Job:
    """One training: an entry, with its learning rate times a factor, and a seed."""

    entry: catalog.CatalogEntry
    seed: int
    factor: float = 1

    @property
    def values(self) -> dict[str, Any]:
        """Entry with the learning rate of this training."""
        values = self.entry.values
        owner = values if "lr" in values else values.get("base", {})
        if self.factor != 1:
            owner["lr"] *= self.factor
        return values

    @property
    def key(self) -> str:
        """All that decides the result but the code."""
        return _compute_key(self)


@functools.cache  # to parse the entry takes a while
def _compute_key(job: Job) -> str:
    return json.dumps([job.values, job.seed, SETTINGS])


def train(job: Job) -> tuple[Job, Measurement]:
    """Train in this process; `SPLITS` has the data."""
    settings = SETTINGS | {"seeds": [job.seed], "optimizers": {job.entry.name: job.values}}
    started = time.process_time()
    try:
        config = Config.model_validate(settings)
        device = determinism.configure_torch(config.training)
        result = loop.train(config, job.entry.name, job.seed, SPLITS[0], device)
    except OptlabError as error:
        return job, {"accuracy": None, "loss": None, "seconds": 0.0, "failure": summarize_error(error)}
    last = result.epochs[-1]
    is_complete = result.status == "completed"
    return job, {
        "accuracy": last.validation_accuracy if is_complete else None,
        "loss": last.train_loss if is_complete else None,
        "seconds": time.process_time() - started,
        "failure": None if is_complete else result.status,
    }


SPLITS: list[cifar10.Splits] = []  # filled before the processes are forked, which share it


class Table:
    """Measurements on disk and the page, both written after each training."""

    def __init__(self, entries: list[catalog.CatalogEntry]) -> None:
        self.entries = entries
        self.measured: dict[str, Measurement] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}

    def run(self, jobs: list[Job], processes: int) -> None:
        """Train the jobs that are not measured yet."""
        missing = [job for job in jobs if job.key not in self.measured]
        with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
            for number, (job, measurement) in enumerate(pool.imap_unordered(train, missing, chunksize=1), 1):
                self.measured[job.key] = measurement
                files.write_atomic(MEASURED, json.dumps(self.measured, indent=1).encode())
                RESULTS.write_text(self.render())
                print(f"{number}/{len(missing)} {job.entry.name} x{job.factor:g}: {measurement}", flush=True)

    def collect(self, entry: catalog.CatalogEntry, factor: float = 1) -> list[Measurement]:
        """Measurements of an entry with that factor, one a seed."""
        keys = (Job(entry, seed, factor).key for seed in range(MOST_SEEDS))
        return [self.measured[key] for key in keys if key in self.measured]

    def compute_accuracy(self, entry: catalog.CatalogEntry, factor: float = 1) -> float | None:
        """Return the mean over the seeds; None if any diverged, or none is measured."""
        values = [each["accuracy"] for each in self.collect(entry, factor)]
        return None if not values or None in values else statistics.mean(values)

    def find_far_entries(self) -> list[catalog.CatalogEntry]:
        """Entries with a learning rate that diverge, or end far below the reference."""
        (reference,) = (self.compute_accuracy(each) for each in self.entries if each.name == REFERENCE)
        measured = [each for each in self.entries if each.lr_range and self.collect(each)]
        return [each for each in measured if (self.compute_accuracy(each) or 0) < (reference or 0) - FAR]

    def render(self) -> str:
        """Return the page in Markdown, the highest accuracy first."""
        data, training = SETTINGS["data"], SETTINGS["training"]
        measured = [each for each in self.entries if self.collect(each)]
        measured.sort(key=lambda each: -(self.compute_accuracy(each) or 0))
        seeds = max(len(self.collect(each)) for each in measured)
        return (
            "# What the ready entries reach\n\n"
            f"`python benchmarks/catalog_entries.py`: each entry of `optlab add`, as it writes it. {_find_cpu()}, "
            f"{training['threads']} thread, {SETTINGS['model']}, {training['epochs']} epochs of {data['train_size']:,} "
            f"images in batches of {training['batch_size']}, a cosine schedule where the entry has none; accuracy on "
            f"{data['validation_size']:,} validation images, loss as the mean over the last epoch, "
            f"{'one seed' if seeds == 1 else f'mean of {seeds} seeds'}. The time is that of the processor, as a "
            "multiple of sgd's. The learning rates are the entries' own and not tuned, so the table is no ranking: "
            f"it shows which entry does not work here as it stands. Entries more than {100 * FAR:.0f} points below "
            f"{REFERENCE} were trained with their rate times {', '.join(f'{each:g}' for each in FACTORS)}, too, seed "
            "0; the best of these is in the last column.\n\n"
            "| entry | lr | validation accuracy | training loss | time | with another rate |\n"
            "| --- | --- | --- | --- | --- | --- |\n"
            + "".join(f"| {' | '.join(self._render_row(each))} |\n" for each in measured)
        )

    def _render_row(self, entry: catalog.CatalogEntry) -> list[str]:
        measurements = self.collect(entry)
        accuracy = self.compute_accuracy(entry)
        failure = next((each["failure"] for each in measurements if each["failure"]), "")
        loss = "" if accuracy is None else f"{statistics.mean(each['loss'] for each in measurements):.2f}"
        (sgd,) = (self.collect(each) for each in self.entries if each.name == "sgd")
        ratios = [own["seconds"] / sgd[0]["seconds"] for own in measurements if sgd and own["accuracy"] is not None]
        return [
            entry.name,
            _format_lr(entry),
            failure if accuracy is None else f"{100 * accuracy:.1f} %",
            loss,
            f"{statistics.mean(ratios):.1f}" if ratios else "",
            self._render_other_rate(entry),
        ]

    def _render_other_rate(self, entry: catalog.CatalogEntry) -> str:
        if entry not in self.find_far_entries():
            return ""
        accuracies = {factor: self.compute_accuracy(entry, factor) or -math.inf for factor in FACTORS}
        best = max(accuracies, key=lambda factor: accuracies[factor])
        return f"{100 * accuracies[best]:.1f} % at {_format_lr(entry, best)}" if accuracies[best] > 0 else ""


@functools.cache
def _find_cpu() -> str:
    return capture_environment(torch.device("cpu")).cpu


def _format_lr(entry: catalog.CatalogEntry, factor: float = 1) -> str:
    lr = entry.values.get("lr", entry.values.get("base", {}).get("lr"))
    return "" if lr is None else f"{lr * factor:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, MOST_SEEDS + 1))
    options = parser.parse_args()
    needs.check(tuple(catalog.load().packages))
    torch.set_num_threads(1)  # before the fork, which has no other threads
    output = model_check.find_output_weight(SETTINGS["model"])
    table = Table([each.fill_in_output_weight(output) for each in catalog.load().entries])
    config = Config.model_validate(SETTINGS | {"seeds": [0], "optimizers": {"sgd": {"class": "SGD"}}})
    SPLITS.append(cifar10.load(TOP / repository.DATA, config.data, 0))
    MEASURED.parent.mkdir(exist_ok=True)
    for seed in range(options.seeds):
        table.run([Job(each, seed) for each in table.entries], options.processes)
    table.run([Job(each, 0, factor) for each in table.find_far_entries() for factor in FACTORS], options.processes)
    RESULTS.write_text(table.render())


if __name__ == "__main__":
    main()
