"""Search without training: sampled points, which trials are trained up to which step, and the best of them.

Points are a pure function of (seed, study, index), the same in the unit cube for every optimizer. Trials begin
together; after a part of the steps, only the best continue: successive halving (Jamieson and Talwalkar 2016),
synchronous, so that nothing depends on which trial ends first. If the best of the first three quarters lies at the edge
of a logarithmic range, the last quarter is drawn in the decade beyond it.
"""

import functools
import hashlib
import math
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from optlab.records import ValidationMetrics
from optlab.schema.optimizer import MAX_RANGES
from optlab.schema.parameters import SensitivityConfig, TuningConfig
from optlab.schema.search_space import NumericRange, Range

# Constant, because scrambling depends on it. Each range takes one, in order.
SOBOL_DIMENSIONS = MAX_RANGES


@functools.cache
def sample_point(seed: int, study: int, index: int) -> tuple[float, ...]:
    """Return a point of the scrambled Sobol sequence (Owen 1998) in the unit cube."""
    from scipy.stats import qmc  # it takes a second

    sequence = qmc.Sobol(SOBOL_DIMENSIONS, scramble=True, rng=_hash_to_int("points", seed, study))
    if index:
        sequence.fast_forward(index)
    return tuple(sequence.random(1)[0].tolist())


def map_point_to_ranges(
    ranges: dict[str, Range], point: tuple[float, ...], extended_edges: dict[str, int] | None = None
) -> dict[str, Any]:
    """Return the value of each range at a point of the unit cube.

    Args:
        extended_edges: ranges whose value is drawn in the decade beyond an edge: -1 for the lower one, 1 for the upper.
    """
    edges = extended_edges or {}
    found = {}
    for (key, each), coordinate in zip(ranges.items(), point, strict=False):
        within = each.get_adjacent_decade(edges[key]) if key in edges and isinstance(each, NumericRange) else each
        found[key] = within.map_from_unit(coordinate)
    return found


def derive_training_seed(purpose: str, seed: int, study: int, index: int, taken: Collection[int]) -> int:
    """Return the seed of a trial's training, which is none of the runs' that confirm the choice.

    Args:
        purpose: gives each kind of trial other seeds.
        index: of the trial; -1 for the default's.
        taken: the seeds of the runs.
    """
    for attempt in range(len(taken) + 1):
        found = _hash_to_int(purpose, seed, study, index, attempt) % 2**32
        if found not in taken:
            return found
    raise AssertionError("as many different numbers as attempts")


def _hash_to_int(purpose: str, *parts: int) -> int:
    """Return 64 bits of the SHA-256 of a purpose and numbers."""
    text = " ".join(["optlab", purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


DEFAULT_INDEX = -1  # the index of the entry's default among the trials

TrialFailure = Literal["diverged", "failed"]


@dataclass
class Trial:
    """One point of the ranges, and the results of its training.

    Attributes:
        values: of the ranges; empty for the default.
        extended_ranges: ranges whose value was drawn beyond their edge.
        validations: one at the end of each rung that it reached.
        target_step: step that it was to reach when it failed.
    """

    study: int
    index: int
    seed: int
    values: dict[str, Any]
    extended_ranges: list[str] = field(default_factory=list)
    validations: list[ValidationMetrics] = field(default_factory=list)
    failure: TrialFailure | None = None
    target_step: int | None = None

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key among trials of equal steps, best first: by accuracy, then loss, then index."""
        last = self.validations[-1]
        assert last.accuracy is not None and last.loss is not None
        return -last.accuracy, last.loss, self.index


TrialBatch = list[tuple[Trial, int]]  # trials to be trained up to a step, in any order
TrialOutcomes = list[ValidationMetrics | TrialFailure]  # in the batch's order
Search = Generator[TrialBatch, TrialOutcomes, None]


def compute_rungs(steps: int, halving: int) -> list[int]:
    """Return the steps after which only the best continue: a sixteenth, a quarter and all for a `halving` of 4."""
    return sorted({math.ceil(steps / halving**power) for power in (2, 1, 0)})


def compute_cost(tuning: TuningConfig, steps: int) -> int:
    """Return the number of steps of one study, if nothing diverges."""
    total, last = steps, tuning.trials // 4
    for n_active in (tuning.trials - last, last):
        before = 0
        for end in compute_rungs(steps, tuning.halving) if n_active else ():
            total += n_active * (end - before)
            n_active, before = max(1, math.ceil(n_active / tuning.halving)), end
    return total


def run_study(number: int, ranges: dict[str, Range], tuning: TuningConfig, steps: int, seeds: list[int],
          trials: list[Trial]) -> Search:  # fmt: skip
    """Run one study: yield batches to be trained, receive their results, and append to `trials`.

    Args:
        number: of the study.
        steps: of a whole training.
        seeds: of the runs that confirm the choice.
    """

    def add_trial(index: int, beyond: dict[str, int] | None = None) -> Trial:
        own = derive_training_seed("trial", tuning.seed, number, index, seeds)
        point = sample_point(tuning.seed, number, index) if index != DEFAULT_INDEX else ()
        drawn = map_point_to_ranges(ranges, point, beyond) if index != DEFAULT_INDEX else {}
        trials.append(Trial(number, index, own, drawn, sorted(beyond or {})))
        return trials[-1]

    ends = compute_rungs(steps, tuning.halving)
    default = [(add_trial(DEFAULT_INDEX), steps)]
    last = tuning.trials // 4
    first = [add_trial(index) for index in range(tuning.trials - last)]
    yield from _run_bracket(first, ends, tuning.halving, extra=default)
    beyond = find_edges(ranges, find_best(first, steps)) if last else {}
    rest = [add_trial(index, beyond) for index in range(tuning.trials - last, tuning.trials)]
    yield from _run_bracket(rest, ends, tuning.halving)


def find_learning_rate_key(ranges: dict[str, Range]) -> str | None:
    """Return the name of the learning rate's range: of the entry, or of its base."""
    return next((key for key in ("lr", "base.lr") if isinstance(ranges.get(key), NumericRange)), None)


def run_sensitivity_grid(
    key: str,
    chosen: Trial,
    grid: SensitivityConfig,
    tuning: TuningConfig,
    steps: int,
    seeds: list[int],
    trials: list[Trial],
) -> Search:
    """Run a grid over one value, the others as chosen, each point with several seeds; otherwise as `run_study`.

    Args:
        key: range of the value.
        chosen: trial with the values in the middle.
    """
    for index in range(grid.points):
        exponent = grid.decades * (index / (grid.points - 1) - 0.5)
        values = chosen.values | {key: float(f"{chosen.values[key] * 10**exponent:.6g}")}
        for each in range(grid.seeds):
            own = derive_training_seed("sensitivity", tuning.seed, 0, each, seeds)
            trials.append(Trial(0, index, own, values))
    yield from _request_training([(each, steps) for each in trials])


def _run_bracket(active: list[Trial], ends: list[int], halving: int, extra: TrialBatch | None = None) -> Search:
    for number, end in enumerate(ends):
        yield from _request_training([*((each, end) for each in active), *((extra or []) if number == 0 else [])])
        successful = sorted((each for each in active if each.failure is None), key=lambda each: each.rank)
        active = successful[: max(1, math.ceil(len(active) / halving))] if number + 1 < len(ends) else successful


def _request_training(batch: TrialBatch) -> Search:
    if batch:
        outcomes = yield batch
        for (trial, until), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, ValidationMetrics):
                trial.validations.append(outcome)
            else:
                trial.failure, trial.target_step = outcome, until


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
    """Return the ranges at whose edge the chosen value lies, extended by the decades that trials were drawn in."""
    drawn = [each for each in trials if each.values]
    still = []
    for key in find_edges(ranges, found):
        own = ranges[key]
        assert isinstance(own, NumericRange)
        beyond = [each.values[key] for each in drawn if key in each.extended_ranges]
        low = own.get_adjacent_decade(-1).low if any(value < own.low for value in beyond) else own.low
        high = own.get_adjacent_decade(1).high if any(value > own.high for value in beyond) else own.high
        if NumericRange(scale="log", low=low, high=high).find_edge(found.values[key]):
            still.append(key)
    return still
