"""`optlab across`: scores of the optimizers that several studies have in common, with intervals from the replicates.

A study counts as one workload: a network, a data split, a training and a target accuracy. The time to the target of an
optimizer is that of the median replicate.

Intervals of scores and ranks are percentiles of a bootstrap, which draws the replicates of each study anew, the same
for all optimizers, because they have the seeds in common (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapter 8.3). Places come from permutation tests: if two optimizers do not differ, their times with one seed
can be exchanged (Fisher 1935, "The Design of Experiments"; Pitman 1937). Both include the choice of the replicates, and
not that of the workloads.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from optlab.analysis import comparison
from optlab.analysis.comparison import Comparison
from optlab.analysis.mean_ci import ALPHA
from optlab.config import loader
from optlab.orchestration import versus
from optlab.ranking.costs import COSTS_FILE, compute_time, read_costs
from optlab.ranking.performance_profile import MAX_FACTOR, compute_log_scores, compute_ratios
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.system.errors import ConfigError, RecordError

MIN_REPLICATES = 5  # of a study: the range of four contains the median with a probability below 90 %
N_RESAMPLES = 10_000
_MAX_EXACT = 14  # replicates of all studies, for which all 2^n exchanges are tried
_SEED = 0  # of the bootstrap, and of random exchanges: the same records give the same bytes
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Workload:
    """One study, as far as the scores need it.

    Attributes:
        target: validation accuracy, a fraction.
        times: optimizer → time to the target of each replicate, in times of one gradient; infinite where it was not
            reached.
        accuracies: optimizer → test accuracy of each replicate, a fraction; -infinite where it diverged.
        has_costs: whether the times include the optimizers' own work.
    """

    name: str
    config: Config
    target: float
    times: dict[str, tuple[float, ...]]
    accuracies: dict[str, tuple[float, ...]]
    has_costs: bool

    @property
    def n(self) -> int:
        """Number of replicates."""
        return len(self.config.seeds)


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """One optimizer over all workloads.

    Attributes:
        score: mean height of its performance profile over log τ, from 0 to 1; the reference has 0.5.
        rank: mean rank of its mean test accuracy, from 1; equal means share a rank.
        ratios: for each workload, its time to the target over the reference's; infinite where it was not reached.
        place: the first and the last place that it may have, by simultaneous tests of all pairs.
    """

    optimizer: str
    score: Estimate
    rank: Estimate
    ratios: tuple[float, ...]
    place: tuple[int, int]


def load_workloads(folder: Path, reference: str) -> tuple[list[Workload], dict[str, str]]:
    """Read the studies in a folder; returns those that can be compared, and study → reason for the others.

    Raises:
        ConfigError: a params.yaml cannot be used, or fewer than two studies or optimizers can be compared.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder: name the one with the studies")
    compared: dict[str, Comparison] = {}
    left_out: dict[str, str] = {}
    for path in sorted(folder.glob(f"*/{PARAMS_FILE}")):
        try:
            compared[path.parent.name] = _collect(path.parent, loader.load(path), reference)
        except _NotComparableError as error:
            left_out[path.parent.name] = str(error)
    names = list_common_optimizers([list(each.config.optimizers) for each in compared.values()])
    workloads = [make_workload(name, each, names) for name, each in compared.items()]
    if len(workloads) < 2:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise ConfigError(
            f"{folder}: two studies with a target (`verdict: {{target: 0.6}}`) and `{reference}` are needed, and "
            f"{len(workloads)} can be used{f' ({reasons})' if reasons else ''}"
        )
    if len(names) < 2:
        raise ConfigError(f"{folder}: the studies have only `{reference}` in common: nothing can be compared")
    return workloads, left_out


class _NotComparableError(Exception):
    """Why a study cannot be compared with others."""


def _collect(folder: Path, config: Config, reference: str) -> Comparison:
    if versus.find_study(folder):
        raise _NotComparableError("compares one optimizer with a study")
    if config.verdict.target is None:
        raise _NotComparableError("has no target")
    if config.data.train_split != "train":
        raise _NotComparableError("is trained on the test split")
    if len(config.seeds) < MIN_REPLICATES:
        raise _NotComparableError(f"has fewer than {MIN_REPLICATES} seeds")
    if reference not in config.optimizers:
        raise _NotComparableError(f"does not have `{reference}`")
    try:
        compared = comparison.collect(config, folder)
    except RecordError:
        raise _NotComparableError("has no complete record") from None
    assert compared.target is not None
    if compared.target.compute_median_steps(reference) is None:
        raise _NotComparableError(f"has a target that `{reference}` does not reach")
    return compared


def list_common_optimizers(optimizers: Sequence[Sequence[str]]) -> list[str]:
    """Return the names that are in all lists, in the order of the first."""
    return [name for name in (optimizers[0] if optimizers else ()) if all(name in each for each in optimizers)]


def make_workload(name: str, compared: Comparison, names: Sequence[str]) -> Workload:
    """Return what the scores need of a study that has a target.

    Args:
        names: of the optimizers; the times leave out their own work unless it was measured for all of them.
    """
    assert compared.target is not None
    costs = read_costs(COSTS_FILE, compared.config)
    has_costs = all(name in costs for name in names)
    gradients = {row.optimizer: row.gradients_per_step or 1.0 for row in compared.rows}
    times = {
        each: tuple(
            math.inf if steps is None else compute_time(steps, gradients[each], costs[each] if has_costs else None)
            for steps in compared.target.steps[each]
        )
        for each in names
    }
    accuracies = {each: _list_accuracies(compared, each) for each in names}
    return Workload(name, compared.config, compared.target.accuracy, times, accuracies, has_costs)


def _list_accuracies(compared: Comparison, optimizer: str) -> tuple[float, ...]:
    runs = [run for run in compared.runs if run.files.optimizer == optimizer]
    return tuple(compared.get_value(run) if run.status == "completed" else -math.inf for run in runs)


def compute_scores(workloads: Sequence[Workload], reference: str) -> list[Score]:
    """Compute the scores of the common optimizers, best score first.

    Args:
        workloads: at least one; each has the reference, which reaches the target.
    """
    names = list_common_optimizers([list(each.times) for each in workloads])
    index = names.index(reference)
    generator = np.random.default_rng(_SEED)
    times, means = [], []  # the first sample is the record itself, the others are resamples
    for each in workloads:
        drawn = np.concatenate([[np.arange(each.n)], generator.integers(each.n, size=(N_RESAMPLES, each.n))])
        times.append(compute_median_times(np.array([each.times[name] for name in names])[:, drawn]))
        means.append(np.array([each.accuracies[name] for name in names])[:, drawn].mean(-1))
    all_times = np.moveaxis(np.stack(times, -1), 1, 0)  # samples, optimizers, workloads
    ratios = compute_ratios(all_times, all_times[:, index])
    neither = np.isinf(all_times) & np.isinf(all_times[:, index])[:, None, :]
    ratios = np.where(neither, 1.0, ratios)  # in a resample, the reference may not reach the target
    scores = compute_log_scores(ratios)
    ranks = np.stack([stats.rankdata(-each, axis=0) for each in means]).mean(0).T  # samples, optimizers
    places = find_places([[each.times[name] for name in names] for each in workloads])
    found = [
        Score(name, _estimate(scores[:, i]), _estimate(ranks[:, i]), tuple(ratios[0, i].tolist()), places[i])
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda each: (-round(each.score.value, 9), each.optimizer))


def compute_median_times(times: np.ndarray) -> np.ndarray:
    """Return the times by which at least half of the replicates have reached the target; the last axis is theirs.

    This is the median of the Kaplan-Meier estimate (1958) for runs that are all observed for the same time.
    """
    half = math.ceil(times.shape[-1] / 2)
    return np.asarray(np.sort(times, axis=-1)[..., half - 1])


def _estimate(samples: np.ndarray) -> Estimate:
    low, high = np.quantile(samples[1:], [ALPHA / 2, 1 - ALPHA / 2])
    return Estimate(float(samples[0]), float(low), float(high))


def find_places(times: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, int]]:
    """Return (first, last) place of each optimizer: 1 + the number of better ones, and all less the worse ones.

    One is better than another if the permutation test of the pair, corrected for all pairs (Holm 1979), says so.

    Args:
        times: for each workload, for each optimizer, the time of each replicate.
    """
    count = len(times[0])
    pairs = list(itertools.combinations(range(count), 2))
    exchanges = _list_exchanges(sum(len(each[0]) for each in times))
    tests = [_test_pair([(each[i], each[j]) for each in times], exchanges) for i, j in pairs]
    better = np.zeros((count, count), bool)
    for rank, number in enumerate(sorted(range(len(pairs)), key=lambda each: tests[each][1])):
        (i, j), (lead, p) = pairs[number], tests[number]
        if p * (len(pairs) - rank) > ALPHA:
            break
        better[(i, j) if lead > 0 else (j, i)] = True
    return [(1 + int(better[:, i].sum()), count - int(better[i].sum())) for i in range(count)]


def _list_exchanges(count: int) -> np.ndarray:
    """Return 1 for each replicate that stays, -1 for each that is exchanged: shape (exchanges, count), none first."""
    if count <= _MAX_EXACT:
        return 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    signs = np.random.default_rng(_SEED).choice([1, -1], size=(N_RESAMPLES, count))
    signs[0] = 1
    return signs


def _test_pair(times: Sequence[tuple[Sequence[float], Sequence[float]]], exchanges: np.ndarray) -> tuple[float, float]:
    """Return by how much the first is faster than the second, and the p value of the two-sided permutation test.

    The statistic is the mean over the workloads of the mean log ratio of the times with one seed, each limited to a
    factor of 4. With random exchanges, the given order counts as one of them, so that the test is valid (Phipson and
    Smyth 2010).

    Args:
        times: for each workload, the times of the first and of the second.
    """
    parts = [_compute_log_ratios(*map(np.array, pair)) / len(pair[0]) for pair in times]
    leads = exchanges @ np.concatenate(parts) / len(times)
    return float(leads[0]), float((np.abs(leads) >= abs(leads[0]) - _ROUNDING).mean())


def _compute_log_ratios(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return log(second / first) of each replicate, limited; 0 where neither reaches the target."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(np.isinf(first) & np.isinf(second), 1.0, second / first)
        return np.clip(np.log(ratios), -math.log(MAX_FACTOR), math.log(MAX_FACTOR))
