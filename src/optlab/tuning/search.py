"""Search without training: sampled points, which trials are trained up to which step, and the best of them.

Half of the trials are spread over the whole ranges, and the others over a window half as wide about the best of them.
After a part of the steps only the trials with the lowest validation loss continue: successive halving (Jamieson and
Talwalkar 2016), synchronous, so that nothing depends on which trial ends first. Where one diverges, the next best takes
the steps that are left. Points of the unit cube are a pure function of (seed, number of the search, index).
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from optlab.records import ValidationMetrics
from optlab.schema.optimizer import MAX_RANGES
from optlab.schema.parameters import SEED_LIMIT_OF_RUNS, SensitivityConfig, TuningConfig
from optlab.schema.search_space import NumericRange, Range

# Constant, because scrambling depends on it. Each range takes one, in order.
SOBOL_DIMENSIONS = MAX_RANGES


@functools.cache
def sample_point(seed: int, number: int, index: int) -> tuple[float, ...]:
    """Return a point of the scrambled Sobol sequence (Owen 1998) in the unit cube."""
    from scipy.stats import qmc  # it takes a second

    sequence = qmc.Sobol(SOBOL_DIMENSIONS, scramble=True, rng=_hash_to_int("points", seed, number))
    if index:
        sequence.fast_forward(index)
    return tuple(sequence.random(1)[0].tolist())


Window = list[tuple[float, float]]  # of each range: positions of the two ends, 0 and 1 for those of the range


def map_position_to_ranges(ranges: dict[str, Range], position: tuple[float, ...]) -> dict[str, Any]:
    """Return the value of each range at a position: of a logarithmic one up to a decade beyond 0 and 1."""
    return {key: _map_position(own, each) for (key, own), each in zip(ranges.items(), position, strict=False)}


def _map_position(own: Range, position: float) -> Any:
    if 0 <= position <= 1 or not isinstance(own, NumericRange):
        return own.map_from_unit(position)
    edge = 1 if position > 1 else -1
    decades = min(1.0, (position - 1 if edge > 0 else -position) / _compute_decade(own))
    return own.get_adjacent_decade(edge).map_from_unit(decades if edge > 0 else 1 - decades)


def _compute_decade(own: Range) -> float:
    """Return the part of a range that is as wide as a decade; 0 unless it is logarithmic."""
    if isinstance(own, NumericRange) and own.scale == "log":
        return 1 / math.log10(own.high / own.low)
    return 0.0


def derive_training_seed(purpose: str, seed: int, number: int, index: int) -> int:
    """Return the seed of a trial's training, which is above those that the runs of tuned optimizers may have.

    Args:
        purpose: gives each kind of trial other seeds.
        index: of the trial; -1 for the default's.
    """
    return SEED_LIMIT_OF_RUNS + _hash_to_int(purpose, seed, number, index) % SEED_LIMIT_OF_RUNS


def _hash_to_int(purpose: str, *parts: int) -> int:
    """Return 64 bits of the SHA-256 of a purpose and numbers."""
    text = " ".join(["optlab", purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


WINDOW_WIDTH = 0.5  # as a part of each range
DIVERGENCE_MARGIN = 0.1  # decades between a learning rate and one that diverged
DEFAULT_INDEX = -1  # the index of the entry's default among the trials

TrialFailure = Literal["diverged", "failed"]


@dataclass
class Trial:
    """One point of the ranges, and the results of its training.

    Attributes:
        search: number of the search.
        values: of the ranges; empty for the default.
        extended_ranges: ranges beyond whose edge its value lies.
        validations: one at the end of each rung that it reached.
        target_step: step that it was to reach when it failed.
        end: the step at which it diverged, without loss and accuracy; None where that is not known.
        position: coordinate in each range: 0 and 1 at its edges; empty for the default.
    """

    search: int
    index: int
    seed: int
    values: dict[str, Any]
    extended_ranges: list[str] = field(default_factory=list)
    validations: list[ValidationMetrics] = field(default_factory=list)
    failure: TrialFailure | None = None
    target_step: int | None = None
    end: ValidationMetrics | None = None
    position: tuple[float, ...] = ()

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key among trials of equal steps, best first: by accuracy, then loss, then index."""
        last = self.validations[-1]
        assert last.accuracy is not None and last.loss is not None
        return -last.accuracy, last.loss, self.index

    @property
    def early_rank(self) -> tuple[float, int]:
        """Sort key before the end among trials of equal steps: loss tells trials apart earlier than accuracy does."""
        loss = self.validations[-1].loss
        assert loss is not None
        return loss, self.index

    @property
    def max_steps(self) -> int:
        """The number of its steps; a bound where it is not known when it failed."""
        if self.end:
            return self.end.step
        return self.target_step or (self.validations[-1].step if self.validations else 0)


TrialBatch = list[tuple[Trial, int]]  # trials to be trained up to a step, in any order
TrialOutcome = ValidationMetrics | TrialFailure  # metrics without an accuracy: it diverged at that step
TrialOutcomes = list[TrialOutcome]  # in the batch's order
Search = Generator[TrialBatch, TrialOutcomes, None]
Promotion = Generator[TrialBatch, TrialOutcomes, list[Trial]]  # returns the promoted trials


def compute_rungs(steps: int, halving: int) -> list[int]:
    """Return the steps after which only the best continue: a sixteenth, a quarter and all for a `halving` of 4."""
    return sorted({math.ceil(steps / halving**power) for power in (2, 1, 0)})


def _split_into_rounds(trials: int) -> list[range]:
    """Return the indices of each round's trials."""
    half = math.ceil(trials / 2)
    return [range(half), range(half, trials)]


def compute_cost(tuning: TuningConfig, steps: int) -> int:
    """Return the number of steps of one search, which it takes if nothing diverges, and never exceeds."""
    *early, _ = compute_rungs(steps, tuning.halving)
    if not early:
        return (tuning.trials + 1) * steps  # with the default's
    total = steps + max(1, tuning.trials // 8) * (steps - early[-1])
    sizes = map(len, _split_into_rounds(tuning.trials))
    return total + sum(_compute_round_cost(each, early, tuning.halving) for each in sizes)


def _compute_round_cost(n_active: int, early: list[int], halving: int) -> int:
    """Return the number of steps that as many trials take up to the last of the early rungs."""
    total = 0
    for before, end in itertools.pairwise([0, *early]):
        total += n_active * (end - before)
        n_active = math.ceil(n_active / halving)
    return total


def run_search(number: int, ranges: dict[str, Range], tuning: TuningConfig, steps: int, trials: list[Trial]) -> Search:
    """Run one search: yield batches to be trained, receive their results, and append to `trials`.

    Args:
        number: of the search, on which its points and the seeds of its trials depend.
        steps: of a whole training.
    """

    def add_trial(index: int, window: Window) -> Trial:
        own = derive_training_seed("trial", tuning.seed, number, index)
        point = sample_point(tuning.seed, number, index) if index != DEFAULT_INDEX else ()
        position = tuple(low + each * (high - low) for each, (low, high) in zip(point, window, strict=False))
        beyond = sorted(key for key, each in zip(ranges, position, strict=False) if not 0 <= each <= 1)
        trials.append(Trial(number, index, own, map_position_to_ranges(ranges, position), beyond, position=position))
        return trials[-1]

    key = find_learning_rate_key(ranges)
    *early, _ = compute_rungs(steps, tuning.halving)
    budget, default = compute_cost(tuning, steps), [(add_trial(DEFAULT_INDEX, []), steps)]
    for indices in _split_into_rounds(tuning.trials):
        window = compute_window(ranges, trials)
        active = [add_trial(index, window) for index in indices]
        first, *later = early or [steps]
        yield from _request_training([*((each, first) for each in active), *default])
        default = []
        for end in later:
            ahead = tuning.trials - len(trials) + 1  # not yet drawn
            kept = _compute_round_cost(ahead, early, tuning.halving) + steps - end  # for them and for one to the end
            active = yield from _promote(active, end, tuning.halving, trials, key, budget - kept)
    while finalists := _choose_finalists(trials, steps, key, budget - _count_steps(trials)):
        yield from _request_training(finalists)


def _promote(
    active: list[Trial], end: int, halving: int, trials: list[Trial], key: str | None, limit: int
) -> Promotion:
    """Train the best of the active trials up to the next rung, and the next best for each that fails before it.

    Args:
        trials: all of the search; with those that replace others, they take no more steps than `limit`.
        key: range of the learning rate.
    """
    missing, waiting, promoted = math.ceil(len(active) / halving), active, list[Trial]()
    while missing and waiting:
        waiting = _sort_survivors(waiting, trials, key)
        batch = [(each, end) for each in waiting[:missing]]
        if promoted:
            batch = _keep_affordable(batch, limit - _count_steps(trials))
        if not batch:
            break
        yield from _request_training(batch)
        promoted, waiting = [*promoted, *waiting[: len(batch)]], waiting[len(batch) :]
        missing = sum(each.failure is not None for each, _ in batch)
    return promoted


def _choose_finalists(trials: list[Trial], steps: int, key: str | None, left: int) -> TrialBatch:
    """Return the best trials that can be trained to the end with the steps that are left."""
    survivors = _sort_survivors(trials, trials, key)
    return _keep_affordable([(each, steps) for each in survivors if each.max_steps < steps], left)


def _keep_affordable(batch: TrialBatch, left: int) -> TrialBatch:
    """Return the trials of a batch that some steps suffice for, the first ones first."""
    kept = []
    for trial, until in batch:
        if until - trial.max_steps <= left:
            kept.append((trial, until))
            left -= until - trial.max_steps
    return kept


def _count_steps(trials: list[Trial]) -> int:
    return sum(each.max_steps for each in trials)


def compute_window(ranges: dict[str, Range], trials: list[Trial]) -> Window:
    """Return the part of the ranges in which the next points are drawn: all of them, or a window about the best trial.

    A window may reach up to a decade beyond the edges of a logarithmic range. That of the learning rate ends below the
    lowest rate that diverged, of those above all rates that were trained as far as the best.
    """
    sampled = [each for each in trials if each.position]
    if not sampled:
        return [(0.0, 1.0)] * len(ranges)
    lr_key = find_learning_rate_key(ranges)
    survivors = _sort_survivors(sampled, sampled, lr_key)
    window = []
    for number, (key, own) in enumerate(ranges.items()):
        low, high = -_compute_decade(own), 1 + _compute_decade(own)
        equals = [each.position[number] for each in survivors if len(each.validations) == len(survivors[0].validations)]
        if survivors:
            low, high = max(low, equals[0] - WINDOW_WIDTH / 2), min(high, equals[0] + WINDOW_WIDTH / 2)
        if key == lr_key:
            failed = [each.position[number] for each in sampled if each.failure]
            high = min([high, *(each for each in failed if each > max(equals, default=low))])
        window.append((low, high))
    return window


def find_learning_rate_key(ranges: dict[str, Range]) -> str | None:
    """Return the name of the learning rate's range: of the entry, or of its base."""
    return next((key for key in ("lr", "base.lr") if isinstance(ranges.get(key), NumericRange)), None)


def run_sensitivity_grid(
    number: int, key: str, chosen: Trial, grid: SensitivityConfig, tuning: TuningConfig, steps: int, trials: list[Trial]
) -> Search:
    """Run a grid over one value, the others as chosen, each point with several seeds; otherwise as `run_search`.

    Args:
        key: range of the value.
        chosen: trial with the values in the middle.
    """
    for index in range(grid.points):
        exponent = grid.decades * (index / (grid.points - 1) - 0.5)
        values = chosen.values | {key: float(f"{chosen.values[key] * 10**exponent:.6g}")}
        for each in range(grid.seeds):
            own = derive_training_seed("sensitivity", tuning.seed, number, each)
            trials.append(Trial(number, index, own, values))
    yield from _request_training([(each, steps) for each in trials])


def _sort_survivors(candidates: Iterable[Trial], trials: list[Trial], key: str | None) -> list[Trial]:
    """Return the candidates that did not fail: those of the last rung first, and of each rung the best first.

    Those whose learning rate is close to one that failed come last in their rung: another seed may diverge there.

    Args:
        trials: all of the search.
        key: range of the learning rate; None without one.
    """
    failed = [math.log10(each.values[key]) for each in trials if key and each.failure and key in each.values]

    def rank(trial: Trial) -> tuple[int, bool, tuple[float, int]]:
        rate = math.log10(trial.values[key]) if key and key in trial.values else math.inf
        is_close = any(abs(rate - each) < DIVERGENCE_MARGIN for each in failed)
        return -len(trial.validations), is_close, trial.early_rank

    return sorted((each for each in candidates if each.failure is None), key=rank)


def _request_training(batch: TrialBatch) -> Search:
    if batch:
        outcomes = yield batch
        for (trial, until), outcome in zip(batch, outcomes, strict=True):
            if not isinstance(outcome, ValidationMetrics):
                trial.failure, trial.target_step = outcome, until
            elif outcome.accuracy is None:
                trial.failure, trial.target_step, trial.end = "diverged", until, outcome
            else:
                trial.validations.append(outcome)


def find_best(trials: Iterable[Trial], steps: int) -> Trial | None:
    """Return the best trial of those that were trained to the end; None without one."""
    completed = [
        each for each in trials if each.failure is None and each.validations and each.validations[-1].step == steps
    ]
    return min(completed, key=lambda each: each.rank, default=None)


def find_edges(ranges: dict[str, Range], found: Trial | None) -> dict[str, int]:
    """Return range → edge (-1 or 1), of the ranges at or beyond whose edge a trial's value lies."""
    if found is None or not found.values:
        return {}
    logarithmic = {key: each for key, each in ranges.items() if isinstance(each, NumericRange)}
    all_of_them = {key: each.find_edge(found.values[key]) for key, each in logarithmic.items()}
    return {key: edge for key, edge in all_of_them.items() if edge}


def find_ranges_at_edge(ranges: dict[str, Range], found: Trial, trials: Iterable[Trial]) -> list[str]:
    """Return the ranges at or beyond whose edge the chosen value lies, without a trial further out."""
    drawn = [each for each in trials if each.values]
    edges = find_edges(ranges, found).items()
    return [key for key, edge in edges if all(edge * (each.values[key] - found.values[key]) <= 0 for each in drawn)]
