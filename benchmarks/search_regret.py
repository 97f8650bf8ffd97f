"""Measure how far from the best learning rate a search ends: its regret on a dense grid of recorded trainings.

    python benchmarks/search_regret.py grid          # trains what benchmarks/search_grid.jsonl does not have yet
    python benchmarks/search_regret.py replay        # searches on that grid, and writes benchmarks/SEARCH.md: a minute

The grid takes half an hour on two cores. It is written as it grows, and a killed command goes on where it was.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from needs import TOP
from scipy import special

from optlab.analysis import sequential
from optlab.analysis.mean_ci import ALPHA
from optlab.analysis.sequential import Plan
from optlab.config import loader
from optlab.data import cifar10
from optlab.data.cifar10 import Split, Splits
from optlab.records import ValidationMetrics
from optlab.schema.parameters import Config, TuningConfig
from optlab.schema.search_space import NumericRange, Range
from optlab.system import repository
from optlab.training import determinism, loop
from optlab.training.loop import TrainResult
from optlab.training.optimizer_driver import OptimizerDriver
from optlab.tuning import search
from optlab.tuning.search import Search, Trial

STUDY = TOP / "studies" / "optimizers"
GRID = TOP / "benchmarks" / "search_grid.jsonl"
RESULTS = TOP / "benchmarks" / "SEARCH.md"
OPTIMIZERS, N_RATES, SEEDS = ("sgd", "adam", "muon"), 32, (0, 1, 2)
DATA = {"train_size": 10_000, "validation_size": 5_000}
TRAINING = {"epochs": 2, "validations_per_epoch": 1, "numerics": "fast", "threads": 1}
SCHEDULE = {"warmup_epochs": 0.2}
CHECKPOINTS = (16, 8, 4, 2, 1)  # validations after these parts of the steps; the last two end an epoch
TABLES = 10_000  # of simulated accuracies
IMAGES = 10_000  # whose share an accuracy is
CHANCE = 0.1  # accuracy that counts for a training that diverged


# --- The grid -----------------------------------------------------------------------------------------------------


def load_study() -> Config:
    """Return the study's parameters with fewer images."""
    study = loader.load(STUDY / "params.yaml")
    schedule = study.training.schedule.model_copy(update=SCHEDULE)
    training = study.training.model_copy(update=TRAINING | {"schedule": schedule})
    return study.model_copy(update={"data": study.data.model_copy(update=DATA), "training": training})


@functools.cache
def load_splits() -> Splits:
    """Return the images, which are the same for every seed."""
    return cifar10.load(TOP / repository.DATA, load_study().data, 0)


def list_rates(own: NumericRange) -> list[float]:
    """Return the learning rates of the grid, evenly spaced in log from end to end of a range."""
    return [float(own.map_from_unit(index / (N_RATES - 1))) for index in range(N_RATES)]


class EarlyValidator(loop.Checkpointer):
    """Validates after some steps besides the ends of epochs, and stores no checkpoint."""

    def __init__(self, steps: set[int], split: Split) -> None:
        self._steps, self._split = steps, split

    def on_step_end(self, result: TrainResult, driver: OptimizerDriver) -> None:
        step = sum(map(len, result.step_losses))
        if step in self._steps:
            driver.eval()
            result.validations.append(loop.validate(step, result.model, self._split))
            result.model.train()
            driver.train()


def train_grid_point(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once, and return the line of the grid's file: accuracies and losses up to the step where it diverged."""
    config = load_study()
    spec = config.get_optimizer(name)
    values = {key: spec.get_default(key) for key in spec.ranges} | {"lr": lr}
    config = config.model_copy(update={"optimizers": {name: spec.replace_ranges(values)}})
    device = determinism.configure_torch(config.training)
    splits = load_splits()
    early = {math.ceil(config.total_steps / part) for part in CHECKPOINTS[:-2]}
    validator = EarlyValidator(early, splits.validation)
    result = loop.train(config, name, seed, splits, device, checkpointer=validator)
    finite = list(itertools.takewhile(lambda each: each.accuracy is not None, result.validations))
    return {
        "optimizer": name,
        "lr": lr,
        "seed": seed,
        "diverged": sum(map(len, result.step_losses)) if result.status == "diverged" else None,
        "steps": [each.step for each in finite],
        "accuracy": [round(each.accuracy, 4) for each in finite],
        "loss": [round(each.loss, 4) for each in finite],
    }


def train_grid(workers: int, only: int | None) -> None:
    """Train the points that the file does not have, and append them: every second rate first, seed by seed."""
    rates = {name: list_rates(load_study().get_optimizer(name).ranges["lr"]) for name in OPTIMIZERS}
    order = itertools.product((0, 1), SEEDS, OPTIMIZERS)
    every = [(name, lr, seed) for first, seed, name in order for lr in rates[name][first::2]]
    recorded = read_lines(GRID)
    GRID.write_text("".join(json.dumps(each) + "\n" for each in recorded))  # without a line that a kill has cut
    known = {(each["optimizer"], each["lr"], each["seed"]) for each in recorded}
    missing = [each for each in every if each not in known][:only]
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads can hang
    with ProcessPoolExecutor(workers, spawn) as pool, GRID.open("a") as file:
        for done in as_completed([pool.submit(train_grid_point, *each) for each in missing]):
            file.write(json.dumps(done.result()) + "\n")
            file.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the trainings of a grid's file, without a line that a kill has cut."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


@dataclass(frozen=True)
class Training:
    """Recorded training: its validations, up to its end or to the step where it diverged."""

    accuracy: list[float]
    loss: list[float]
    diverged: int | None

    @property
    def final_accuracy(self) -> float:
        """Accuracy at the end; chance level if it diverged."""
        return CHANCE if self.diverged else self.accuracy[-1]


class Grid:
    """Recorded trainings of one optimizer, which answer the requests of a search.

    Attributes:
        rates: learning rates, ascending and evenly spaced in log.
        seeds: of the trainings; each has all rates. Without one, there is nothing else.
        steps: of a whole training.
        accuracies: final ones, shape (rates, seeds).
        diverged: which trainings diverged, of the same shape.
        best: the accuracy that regrets are measured from, of the rate `best_index`: the highest of the means over
            seeds, each smoothed with its neighbours (weights 1 : 2 : 1), where no seed diverged.
    """

    def __init__(self, lines: list[dict[str, Any]], rates: Sequence[float]) -> None:
        recorded = {
            (each["lr"], each["seed"]): Training(each["accuracy"], each["loss"], each["diverged"]) for each in lines
        }
        self.rates, self.seeds = _choose_complete_part(list(recorded), rates)
        if not self.seeds:
            return
        self._checkpoints = max((each["steps"] for each in lines), key=len)
        self.steps = self._checkpoints[-1]
        self._trainings = [[recorded[lr, seed] for lr in self.rates] for seed in self.seeds]
        self.accuracies = np.array([[each.final_accuracy for each in own] for own in self._trainings]).T
        self.diverged = np.array([[each.diverged is not None for each in own] for own in self._trainings]).T
        smoothed = _smooth(self.accuracies.mean(axis=1), ~self.diverged.any(axis=1))
        self.best_index = int(smoothed.argmax())
        self.best = float(smoothed[self.best_index])

    def find_nearest(self, lr: float) -> int:
        """Return the index of the rate nearest to a learning rate, in log."""
        spacing = math.log(self.rates[-1] / self.rates[0]) / (len(self.rates) - 1)
        return min(max(round(math.log(lr / self.rates[0]) / spacing), 0), len(self.rates) - 1)

    def get_seed_index(self, seed: int) -> int:
        """Return which recorded seed stands for a trial's seed."""
        return seed % len(self._trainings)

    def train(self, lr: float, seed: int, until: int) -> ValidationMetrics:
        """Return a trial's outcome at the checkpoint nearest to a step; without an accuracy if it diverged before."""
        training = self._trainings[self.get_seed_index(seed)][self.find_nearest(lr)]
        number = min(range(len(self._checkpoints)), key=lambda index: abs(self._checkpoints[index] - until))
        if number >= len(training.accuracy):
            assert training.diverged is not None
            return ValidationMetrics(step=min(training.diverged, until), loss=None, accuracy=None)
        loss, accuracy = training.loss[number], training.accuracy[number]
        return ValidationMetrics.model_construct(step=until, loss=loss, accuracy=accuracy)

    def compute_regret(self, lr: float, seed: int) -> float:
        """Return how far a choice is below the best, by the mean of the seeds that its trial did not have."""
        accuracies = self.accuracies[self.find_nearest(lr)]
        others = np.delete(accuracies, self.get_seed_index(seed)) if len(accuracies) > 1 else accuracies
        return self.best - float(others.mean())


def _choose_complete_part(recorded: list[tuple[float, int]], rates: Sequence[float]) -> tuple[list[float], list[int]]:
    """Return all rates, or every second one if only these have two seeds, and the seeds that have them."""
    parts = [
        (list(part), sorted({seed for _, seed in recorded if all((lr, seed) in recorded for lr in part)}))
        for part in (rates, rates[::2])
    ]
    return max(parts, key=lambda part: (min(2, len(part[1])), len(part[0])))


def _smooth(values: np.ndarray, survived: np.ndarray) -> np.ndarray:
    """Return weighted means with both neighbours, 1 : 2 : 1, leaving out where a training diverged."""
    weights = np.convolve(survived, [1, 2, 1])[1:-1]
    sums = np.convolve(np.where(survived, values, 0), [1, 2, 1])[1:-1]
    return np.where(survived, sums / np.maximum(weights, 1), 0.0)


# --- Searches on the grid -----------------------------------------------------------------------------------------

SearchFunction = Callable[[int, dict[str, Range], TuningConfig, int, list[Trial]], Search]


@dataclass(frozen=True)
class Rule:
    """Search rule with its settings.

    Attributes:
        search: as `search.run_search`.
        changes: (object, attribute, value) to be set while the rule is replayed, to leave a part of it out.
    """

    name: str
    search: SearchFunction
    trials: int
    halving: int
    changes: tuple[tuple[object, str, object], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Result of one search.

    Attributes:
        regret: in accuracy, a fraction.
        rate: log10 of the chosen learning rate.
        steps: trained ones, as a multiple of a whole training.
    """

    regret: float
    rate: float
    steps: float


def run_on_grid(grid: Grid, rule: Rule, own: NumericRange, default: float, seed: int) -> Outcome:
    """Run one search, whose trainings are those of the grid."""
    trials: list[Trial] = []
    tuning = TuningConfig(trials=rule.trials, halving=rule.halving, seed=seed)
    with contextlib.ExitStack() as stack:
        for change in rule.changes:
            stack.enter_context(mock.patch.object(*change))
        requests = rule.search(0, {"lr": own}, tuning, grid.steps, trials)
        batch = next(requests, None)
        while batch is not None:
            outcomes = [grid.train(trial.values.get("lr", default), trial.seed, until) for trial, until in batch]
            try:
                batch = requests.send(list(outcomes))
            except StopIteration:
                batch = None
        chosen = search.find_best(trials, grid.steps)
    lr = chosen.values.get("lr", default) if chosen else default
    regret = grid.compute_regret(lr, chosen.seed if chosen else 0)
    return Outcome(regret, math.log10(lr), sum(each.max_steps for each in trials) / grid.steps)


def run_halving(number: int, ranges: dict[str, Range], tuning: TuningConfig, steps: int, trials: list[Trial]) -> Search:
    """Run plain successive halving, with points of the whole range of `lr`.

    If the best of the first three quarters of the trials lies at the edge of the range, the last quarter is drawn in
    the decade beyond it.
    """

    def add_trial(index: int, within: NumericRange) -> Trial:
        own_seed = search.derive_training_seed("trial", tuning.seed, number, index)
        drawn = index != search.DEFAULT_INDEX
        values = {"lr": within.map_from_unit(search.sample_point(tuning.seed, number, index)[0])} if drawn else {}
        trials.append(Trial(number, index, own_seed, values))
        return trials[-1]

    whole = within = ranges["lr"]
    assert isinstance(whole, NumericRange) and isinstance(within, NumericRange)
    default = [(add_trial(search.DEFAULT_INDEX, whole), steps)]
    n_first = tuning.trials - tuning.trials // 4
    for indices in (range(n_first), range(n_first, tuning.trials)):
        active = [add_trial(index, within) for index in indices]
        for end in search.compute_rungs(steps, tuning.halving):
            yield from search._request_training([*((each, end) for each in active), *default])
            n_next, default = max(1, math.ceil(len(active) / tuning.halving)), []
            active = sorted((each for each in active if each.failure is None), key=lambda each: each.rank)[:n_next]
        best = search.find_best((each for each in trials if each.values), steps)
        edge = whole.find_edge(best.values["lr"]) if best else 0
        within = whole.get_adjacent_decade(edge) if edge else whole


NEW = Rule("**new**, 16 trials", search.run_search, 16, 4)
OWN_RANGE = "The study's range"


def list_rules() -> list[Rule]:
    """Return the rules to compare, in the order of the table."""
    by_accuracy = (Trial, "early_rank", property(lambda trial: trial.rank))
    without_window = (search, "compute_window", lambda ranges, trials: [(0.0, 1.0)] * len(ranges))
    return [
        Rule("old, 16 trials", run_halving, 16, 4),
        NEW,
        Rule("new by accuracy", search.run_search, 16, 4, (by_accuracy,)),
        Rule("new without window", search.run_search, 16, 4, (without_window,)),
        Rule("new without margin", search.run_search, 16, 4, ((search, "DIVERGENCE_MARGIN", 0.0),)),
        Rule("old, 8 trials", run_halving, 8, 4),
        Rule("new, 12 trials", search.run_search, 12, 4),
        Rule("new, 8 trials", search.run_search, 8, 4),
        Rule("old, 3 trials", run_halving, 3, 4),
        Rule("new, 4 trials", search.run_search, 4, 4),
        Rule("old, 16 trials, `halving: 1`", run_halving, 16, 1),
        Rule("new, 16 trials, `halving: 1`", search.run_search, 16, 1),
        Rule("old, 7 trials, `halving: 1`", run_halving, 7, 1),
        Rule("new, 7 trials, `halving: 1`", search.run_search, 7, 1),
    ]


def list_ranges(grid: Grid, own: NumericRange) -> dict[str, NumericRange]:
    """Return the ranges to search: the study's, and parts of it that end short of the best rate."""
    best = grid.rates[grid.best_index]
    return {
        OWN_RANGE: own,
        "A range that ends 0.3 decades below the best rate": NumericRange(
            scale="log", low=own.low, high=best * 10**-0.3
        ),
        "A range that begins 0.3 decades above the best rate": NumericRange(
            scale="log", low=best * 10**0.3, high=own.high
        ),
    }


# --- Intervals with and without the variation between searches ---------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Test accuracies of one optimizer that is tuned by random searches and trained with random seeds.

    An accuracy is the mean at the rate that a search has chosen, plus the deviation of a seed.

    Attributes:
        means: of the recorded trainings that did not diverge, at the rate of each search.
        deviations: of recorded trainings from their rate's mean, scaled to the variance of single trainings.
    """

    means: np.ndarray
    deviations: np.ndarray

    @classmethod
    def from_searches(cls, grid: Grid, outcomes: Sequence[Outcome]) -> "Population":
        """Build it from searches on a grid."""
        chosen = [grid.find_nearest(10**each.rate) for each in outcomes]
        accuracies = np.where(grid.diverged, np.nan, grid.accuracies)[chosen]
        means = np.nanmean(accuracies, axis=1)
        n = (~np.isnan(accuracies)).sum(axis=1)
        scaled = (accuracies - means[:, None]) * np.sqrt(n / np.maximum(n - 1, 1))[:, None]
        return cls(means, scaled[n > 1][~np.isnan(scaled[n > 1])])

    @property
    def mean(self) -> float:
        """Mean over searches and seeds."""
        return float(self.means.mean())

    def draw(self, random: np.random.Generator, tables: int, seeds: int, searches: int) -> np.ndarray:
        """Return accuracies, shape (tables, seeds), of 1 search for all seeds of a table, or as many as seeds."""
        values = random.choice(self.means, (tables, searches)) + random.choice(self.deviations, (tables, seeds))
        return np.round(values * IMAGES) / IMAGES


def measure_coverage(populations: Sequence[Population], seeds: int, searches: int, tables: int) -> list[float]:
    """Return how often 95 % intervals contain the true value: of each mean, and of the differences of all pairs."""
    random = np.random.default_rng([seeds, searches])
    values = [each.draw(random, tables, seeds, searches) for each in populations]
    shares = []
    for population, own in zip(populations, values, strict=True):
        half_width = -special.stdtrit(seeds - 1, ALPHA / 2) * own.std(axis=1, ddof=1) / math.sqrt(seeds)
        shares.append(float((abs(own.mean(axis=1) - population.mean) <= half_width).mean()))
    pairs = list(itertools.combinations(range(len(populations)), 2))
    plan = Plan((seeds,), len(pairs), resolution=1 / IMAGES)
    found = sequential.judge([(values[a], values[b], True) for a, b in pairs], plan)
    truth = np.array([[populations[a].mean - populations[b].mean] for a, b in pairs])
    covered = (found.low <= truth) & (truth <= found.high)
    return [*shares, float(covered.all((1, 2)).mean())]


def format_coverage(populations: dict[str, Population], tables: int) -> str:
    """Return the table of coverages in per cent."""
    columns = ["searches", "seeds", *populations, "all differences"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for seeds, searches in ((5, 5), (8, 8), (5, 1), (8, 1)):
        shares = measure_coverage(list(populations.values()), seeds, searches, tables)
        kind = "one for each seed" if searches > 1 else "one for all seeds"
        lines.append(f"| {kind} | {seeds} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(lines) + "\n"


PAGE = """# Search

`python benchmarks/search_regret.py replay --rounds {rounds}`: {rounds:,} searches for each figure, with the values 0 to
{last:,} of `tuning.seed`, on recorded trainings ([search_grid.jsonl](search_grid.jsonl)) of the tutorial's network:
{images:,} images, two epochs of batches of 64 ({steps} steps), a cosine schedule after a warm-up of {warmup} epochs,
and learning rates from the ranges of [studies/optimizers](../studies/README.md). Only the
learning rate is searched: Muon's `adamw_lr` keeps its default.

| optimizer | learning rates | seeds | best one | its accuracy |
| --- | --- | --- | --- | --- |
{grids}
A trial takes the recorded training of the nearest rate, with one of the seeds.

- **Regret** of a search: the accuracy of the best rate minus that of the chosen one, in percentage points; the mean,
  and in brackets the 90 % quantile. For each rate with which no seed diverged, the mean over the seeds is smoothed
  with those of its neighbours (1 : 2 : 1); the highest of these is the accuracy of the best rate, so that the luckiest
  of many is not taken for the best. The accuracy of the chosen rate is the mean over the seeds other than the trial's
  own. So a regret can be below 0. A training that diverged counts as 10 %.
- **Steps** are those really trained, as a multiple of a whole training, the default's included.
- **sd** is the standard deviation of log₁₀ of the chosen rate over the searches.
- **old** is plain successive halving: points of the whole range, early rungs that compare accuracies, and a last
  quarter of the trials beyond the edge of the range if the best of the first three quarters lies at that edge.
- **new** is `search.run_search`. Three rows change it: "by accuracy" compares trials before the end by accuracy
  instead of loss, "without window" draws all points from the whole range, and "without margin" does not rank rates
  close to a diverged one last. `halving` is 4 where nothing else is said.

{tables}
## Intervals that include the search

How often 95 % intervals contain the true value, in per cent of {coverage_tables:,} simulated comparisons: those of each
mean, and all three differences at once (as in verdicts, with one look). The true mean of an optimizer is that over
searches and seeds. An accuracy is the mean at a rate that one of the searches above has chosen ("new", 16 trials, the
study's range), plus the deviation of a seed there; trainings that diverged are left out, as from
the means of a comparison. "One for
each seed" is `per_seed: true`; "one for all seeds" is `per_seed: false`, whose intervals contain the variation between
seeds only.

{coverage}"""


def replay(rounds: int) -> str:
    """Run every rule with seeds from 0 up, and return the page."""
    study, lines = load_study(), read_lines(GRID)
    grids, ranges, defaults = {}, {}, {}
    for name in OPTIMIZERS:
        spec = study.get_optimizer(name)
        own = spec.ranges["lr"]
        grid = Grid([each for each in lines if each["optimizer"] == name], list_rates(own))
        if grid.seeds:
            grids[name], ranges[name], defaults[name] = grid, list_ranges(grid, own), spec.default["lr"]
    if not grids:
        raise SystemExit(f"{GRID}: no optimizer has all learning rates with one seed")
    tables, populations = [], {}
    for which in next(iter(ranges.values())):
        rows = []
        for rule in list_rules():
            found = {
                name: [run_on_grid(grid, rule, ranges[name][which], defaults[name], seed) for seed in range(rounds)]
                for name, grid in grids.items()
            }
            rows.append(format_row(rule, found))
            if rule == NEW and which == OWN_RANGE:
                populations = {name: Population.from_searches(grids[name], each) for name, each in found.items()}
        tables.append(f"## {which}\n\n{format_header(list(grids))}{''.join(rows)}")
    return PAGE.format(
        rounds=rounds,
        last=rounds - 1,
        images=study.data.train_size,
        steps=study.total_steps,
        warmup=SCHEDULE["warmup_epochs"],
        grids="".join(map(format_grid, grids, grids.values())),
        tables="\n".join(tables),
        coverage=format_coverage(populations, TABLES),
        coverage_tables=TABLES,
    )


def format_grid(name: str, grid: Grid) -> str:
    """Return a line of the table of recorded trainings."""
    best = f"{grid.rates[grid.best_index]:.3g} | {100 * grid.best:.2f} %"
    return f"| {name} | {len(grid.rates)} | {len(grid.seeds)} | {best} |\n"


def format_header(optimizers: list[str]) -> str:
    """Return the first two lines of a table."""
    names = [f"{name} {column}" for name in optimizers for column in ("regret", "sd")]
    columns = ["rule", "steps", "mean regret", *names]
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"


def format_row(rule: Rule, found: dict[str, list[Outcome]]) -> str:
    """Return a line of a table: mean regrets in percentage points, with 90 % quantiles in brackets."""
    regrets = {name: [100 * each.regret for each in outcomes] for name, outcomes in found.items()}
    steps = statistics.fmean(each.steps for outcomes in found.values() for each in outcomes)
    cells = [rule.name, f"{steps:.2f}", f"{statistics.fmean(map(statistics.fmean, regrets.values())):.2f}"]
    for name, own in regrets.items():
        cells.append(f"{statistics.fmean(own):.2f} ({np.quantile(own, 0.9):.2f})")
        cells.append(f"{statistics.pstdev(each.rate for each in found[name]):.2f}")
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    grid = commands.add_parser("grid", help="train what the file lacks")
    grid.add_argument("--workers", type=int, default=2)
    grid.add_argument("--only", type=int, help="number of trainings")
    commands.add_parser("replay", help="search on the grid").add_argument("--rounds", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.command == "grid":
        train_grid(arguments.workers, arguments.only)
    else:
        RESULTS.write_text(replay(arguments.rounds))
        print(RESULTS.read_text())


if __name__ == "__main__":
    main()
