"""`optlab across`: scores of the optimizers that several studies have in common, with intervals from the replicates.

A study counts as one workload: a network, a data split, a training and a target accuracy. The time to the target of an
optimizer is that of the median replicate. A bootstrap draws the replicates of each study anew, the same for all
optimizers, because a seed is common to them (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter
8.3). The intervals are percentiles. Those of the differences between two optimizers are simultaneous over all pairs
(Bonferroni). They include the choice of the replicates, and not that of the workloads.
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
from optlab.ranking.costs import StepCost
from optlab.ranking.performance_profile import compute_log_scores, compute_ratios
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.system.errors import ConfigError

MIN_REPLICATES = 3  # of a study
N_RESAMPLES = 10_000
_SEED = 0  # of the bootstrap: the same records give the same bytes


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

    @property
    def max_coverage(self) -> float:
        """Probability that a median lies between the smallest and the largest of n replicates: 1 - 2^(1 - n)."""
        return float(1 - 0.5 ** (self.n - 1))


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
        place: the first and the last place that it may have by the simultaneous intervals of the scores' differences.
    """

    optimizer: str
    score: Estimate
    rank: Estimate
    ratios: tuple[float, ...]
    place: tuple[int, int]


def find_studies(folder: Path, reference: str) -> tuple[list[Path], dict[str, str]]:
    """Return the studies in a folder that can be compared, and study → reason for the others.

    Raises:
        ConfigError: a params.yaml cannot be used, or fewer than two studies can be compared.
    """
    usable, left_out = [], {}
    for path in sorted(each.parent for each in folder.glob(f"*/{PARAMS_FILE}")):
        config = loader.load(path / PARAMS_FILE)
        if config.verdict.target is None:
            left_out[path.name] = "has no target"
        elif len(config.seeds) < MIN_REPLICATES:
            left_out[path.name] = f"has fewer than {MIN_REPLICATES} replicates"
        elif reference not in config.optimizers:
            left_out[path.name] = f"does not have {reference}"
        else:
            usable.append(path)
    if len(usable) < 2:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise ConfigError(
            f"{folder}: two studies with a target (`verdict: {{target: 0.6}}`) and {reference} are needed, and "
            f"{len(usable)} can be used{f' ({reasons})' if reasons else ''}: name another folder or --reference"
        )
    return usable, left_out


def load_workload(folder: Path, costs: dict[str, StepCost]) -> Workload:
    """Read the record of a study that has a target.

    Args:
        costs: optimizer → cost of a step on the study's network; the times leave out the optimizers' own work unless
            all of the study's optimizers are there.

    Raises:
        ConfigError, RecordError: params.yaml or the record cannot be used.
    """
    compared = comparison.collect(loader.load(folder / PARAMS_FILE), folder)
    assert compared.target is not None
    names = list(compared.config.optimizers)
    known = {name: costs[name].share for name in names} if all(name in costs for name in names) else {}
    gradients = {row.optimizer: row.gradients_per_step or 1.0 for row in compared.rows}
    return Workload(
        folder.name,
        compared.config,
        compared.target.accuracy,
        {
            name: tuple(
                math.inf if steps is None else steps * (gradients[name] + known.get(name, 0.0))
                for steps in compared.target.steps[name]
            )
            for name in names
        },
        {name: _list_accuracies(compared, name) for name in names},
        bool(known),
    )


def _list_accuracies(compared: Comparison, optimizer: str) -> tuple[float, ...]:
    runs = [run for run in compared.runs if run.files.optimizer == optimizer]
    return tuple(compared.get_value(run) if run.status == "completed" else -math.inf for run in runs)


def list_common_optimizers(workloads: Sequence[Workload]) -> list[str]:
    """Return the optimizers that all workloads have, in the order of the first."""
    return [name for name in workloads[0].times if all(name in each.times for each in workloads)]


def compute_scores(workloads: Sequence[Workload], reference: str, n_resamples: int = N_RESAMPLES) -> list[Score]:
    """Compute the scores of the common optimizers, best score first.

    Args:
        workloads: at least one; each has the reference.
    """
    names = list_common_optimizers(workloads)
    generator = np.random.default_rng(_SEED)
    times, means = [], []  # the first sample is the record itself, the others are resamples
    for each in workloads:
        drawn = np.concatenate([[np.arange(each.n)], generator.integers(each.n, size=(n_resamples, each.n))])
        times.append(_compute_median_times(np.array([each.times[name] for name in names])[:, drawn]))
        means.append(np.array([each.accuracies[name] for name in names])[:, drawn].mean(-1))
    all_times = np.moveaxis(np.stack(times, -1), 1, 0)  # samples, optimizers, workloads
    ratios = compute_ratios(all_times, all_times[:, names.index(reference)])
    scores = compute_log_scores(ratios)
    ranks = np.stack([stats.rankdata(-each, axis=0) for each in means]).mean(0).T  # samples, optimizers
    places = _find_places(scores)
    found = [
        Score(name, _estimate(scores[:, i]), _estimate(ranks[:, i]), tuple(ratios[0, i].tolist()), places[i])
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda each: -each.score.value)


def _compute_median_times(times: np.ndarray) -> np.ndarray:
    """Return the times by which at least half of the replicates have reached the target; the last axis is theirs.

    This is the median of the Kaplan-Meier estimate (1958) for runs that are all observed for the same time.
    """
    half = math.ceil(times.shape[-1] / 2)
    return np.asarray(np.sort(times, axis=-1)[..., half - 1])


def _estimate(samples: np.ndarray) -> Estimate:
    low, high = np.quantile(samples[1:], [ALPHA / 2, 1 - ALPHA / 2])
    return Estimate(float(samples[0]), float(low), float(high))


def _find_places(scores: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last) place of each optimizer: 1 + the number of better ones, and all less the worse ones.

    One is better than another if the simultaneous interval of the difference of their scores lies above 0.
    """
    count = scores.shape[1]
    better = np.zeros((count, count), bool)
    tail = ALPHA / (2 * max(1, math.comb(count, 2)))
    for one, other in itertools.permutations(range(count), 2):
        better[one, other] = np.quantile(scores[1:, one] - scores[1:, other], tail) > 0
    return [(1 + int(better[:, i].sum()), count - int(better[i].sum())) for i in range(count)]
