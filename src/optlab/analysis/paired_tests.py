"""What a few seeds allow to be said: a figure with its interval, and two optimizers' difference, paired by seed.

Every formula is for the seeds, on the test set at hand: what another test set would say is not part of it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import special

ALPHA = 0.05  # the chance of any "better" that is none, over all pairs
POWER = 0.8
MIN_N_FOR_OUTPERFORMING = (
    29  # seeds, from which on the probability of outperforming is shown (Bouthillier et al. 2021, appendix C)
)
MEANINGFUL_PROBABILITY = 0.75  # their γ
_MAX_SEEDS = 100_000

Verdict = Literal["better", "better, by less than the margin", "equivalent", "cannot be told apart"]


@dataclass(frozen=True)
class MeanCI:
    """A mean over runs.

    Attributes:
        n: how many runs.
        mean: over them.
        sd: the sample standard deviation; None for one run.
        half_width: half the width of the mean's 95 % interval; None for one run.
    """

    n: int
    mean: float
    sd: float | None
    half_width: float | None

    @property
    def low(self) -> float | None:
        """Where that interval begins."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Where it ends."""
        return None if self.half_width is None else self.mean + self.half_width


def compute_mean_ci(values: Sequence[float]) -> MeanCI:
    """Mean, standard deviation, and the mean's 95 % interval by Student's t.

    mean ± t(1 - α/2; n - 1) · sd / √n (Student 1908; NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2).

    Args:
        values: one of each run; at least one.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return MeanCI(n, mean, None, None)
    sd = statistics.stdev(values)
    return MeanCI(n, mean, sd, _compute_t_quantile(n, ALPHA / 2) * sd / math.sqrt(n))


@dataclass(frozen=True)
class ProbabilityOfOutperforming:
    """The probability that a run of the first is better than the second's with the same seed; a tie is half of one.

    Attributes:
        probability: the share of the seeds.
        low, high: its 95 % percentile bootstrap interval, of this pair alone, not corrected for others.
    """

    probability: float
    low: float
    high: float

    @property
    def is_meaningful(self) -> bool:
        """Whether it is told from a coin's, and may be as much as γ = 0.75 (Bouthillier et al. 2021, section 4)."""
        return self.low > 0.5 and self.high > MEANINGFUL_PROBABILITY

    def swap(self) -> "ProbabilityOfOutperforming":
        """The second's."""
        return ProbabilityOfOutperforming(1 - self.probability, 1 - self.high, 1 - self.low)


@dataclass(frozen=True)
class PairedComparison:
    """Two optimizers' values, paired by seed.

    Attributes:
        n: how many pairs of runs.
        difference: the mean of first - second.
        low, high: its 95 % interval, simultaneous with those of all other pairs.
        p: of the paired t test, corrected for the number of pairs.
        wins: in how many seeds the first is better; a tie counts half.
        correlation: Pearson's, between the two over the seeds; None where one of them does not vary.
        verdict: what that says.
        first_is_better: which of the two it is that is better, where one is.
        outperforming: of the first, from 29 seeds on.
        sd: of the differences, as it was counted with.
        pairs, margin: as they were given.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    wins: float
    correlation: float | None
    verdict: Verdict
    first_is_better: bool
    outperforming: ProbabilityOfOutperforming | None
    sd: float
    n_pairs: int
    margin: float | None

    @cached_property
    def needed(self) -> int | None:
        """How many seeds a difference of the margin would need; None beyond reach, or without a margin."""
        return None if self.margin is None else compute_seeds_needed(self.margin, self.sd, self.n_pairs)

    @property
    def is_significant(self) -> bool:
        """Whether one of the two is better, by whatever."""
        return self.verdict in ("better", "better, by less than the margin")

    def swap(self) -> "PairedComparison":
        """The same with the second first."""
        return replace(
            self, difference=-self.difference, low=-self.high, high=-self.low, wins=self.n - self.wins,
            first_is_better=not self.first_is_better,
            outperforming=self.outperforming and self.outperforming.swap(),
        )  # fmt: skip


def compare_pair(first: Sequence[float], second: Sequence[float], n_pairs: int, margin: float | None,
         higher_is_better: bool = True, resolution: float = 0.0) -> PairedComparison:  # fmt: skip
    """Compare two optimizers over the same seeds.

    The paired t test (Student 1908), its p and its interval both corrected by Bonferroni for the number of pairs, so
    that an interval without zero and p < α are the same statement (Dunn 1961, JASA 56, "Multiple comparisons among
    means"). Equivalence is two one-sided tests at α: the 90 % interval lies within the margin (Schuirmann 1987, J.
    Pharmacokinet. Biopharm. 15).

    Args:
        first: one value for each seed; at least two.
        second: the same of the other, in the same order of seeds.
        n_pairs: how many pairs of optimizers are compared in all.
        margin: how large a difference is of no importance, in the values' unit; None where nobody can say.
        higher_is_better: as of an accuracy; not so of a loss.
        resolution: the smallest step between two values, as 1 / m of a share of m images. Two seeds agree to that
            often enough by chance, so the standard deviation of the differences counts as no less than that of the
            rounding of two values, resolution / √6.
    """
    n = len(first)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, sd = statistics.fmean(differences), max(statistics.stdev(differences), resolution / math.sqrt(6))
    error = sd / math.sqrt(n)
    half_width = _compute_t_quantile(n, ALPHA / (2 * n_pairs)) * error
    p = _compute_p_value(mean, error, n, n_pairs)
    gains = differences if higher_is_better else [-each for each in differences]
    half_width_90 = _compute_t_quantile(n, ALPHA) * error
    return PairedComparison(
        n, mean, mean - half_width, mean + half_width, p,
        wins=sum((gain > 0) + 0.5 * (gain == 0) for gain in gains),
        correlation=_compute_correlation(first, second),
        verdict=_choose_verdict(p, abs(mean) + half_width, abs(mean) + half_width_90, margin),
        first_is_better=sum(gains) > 0,
        outperforming=estimate_outperforming(gains) if n >= MIN_N_FOR_OUTPERFORMING else None,
        sd=sd, n_pairs=n_pairs, margin=margin,
    )  # fmt: skip


def estimate_outperforming(gains: Sequence[float]) -> ProbabilityOfOutperforming:
    """How likely a gain is above zero, with the percentile bootstrap's interval.

    As Bouthillier et al. (2021, MLSys, "Accounting for Variance in Machine Learning Benchmarks") recommend; the
    interval is that of Efron and Tibshirani (1993, "An Introduction to the Bootstrap", chapter 13). The sum of n draws
    from the seeds has a distribution that can be computed: it is that of endlessly many resamples, and needs no random
    numbers. Near 0 and 1 this interval is too narrow, as theirs is.

    Args:
        gains: of each seed, how much better the first is.
    """
    n = len(gains)
    outcome_counts = [
        sum(gain < 0 for gain in gains),
        sum(gain == 0 for gain in gains),
        sum(gain > 0 for gain in gains),
    ]
    distribution = np.ones(1)
    for _ in range(n):
        distribution = np.convolve(distribution, np.array(outcome_counts) / n)  # of the resamples, by twice their wins
    cumulative = np.cumsum(distribution)
    low, high = (int(np.searchsorted(cumulative, tail)) / (2 * n) for tail in (ALPHA / 2, 1 - ALPHA / 2))
    return ProbabilityOfOutperforming((outcome_counts[1] / 2 + outcome_counts[2]) / n, low, high)


def _compute_p_value(mean: float, standard_error: float, n: int, n_pairs: int) -> float:
    """Two-sided; where all differences are the same, they leave no doubt, or there is none."""
    if standard_error == 0:
        return float(mean == 0)
    return min(1.0, n_pairs * 2 * float(special.stdtr(n - 1, -abs(mean) / standard_error)))


def _choose_verdict(p: float, largest_difference: float, largest_difference_90: float, margin: float | None) -> Verdict:
    if p < ALPHA:
        return "better" if margin is None or largest_difference >= margin else "better, by less than the margin"
    return "equivalent" if margin is not None and largest_difference_90 < margin else "cannot be told apart"


def compute_seeds_needed(difference: float, sd: float, n_pairs: int) -> int | None:
    """The smallest number of seeds with which such a difference is found in `POWER` of all cases.

    The power of the two-sided paired t test at the corrected level, by the noncentral t distribution (Cohen 1988,
    "Statistical Power Analysis for the Behavioral Sciences", chapter 2).

    Args:
        difference: the true one.
        sd: the standard deviation of the differences within the pairs.
        n_pairs: how many pairs of optimizers are compared in all.

    Returns:
        At least 2; None if it is above 100,000.
    """
    if sd == 0:
        return 2

    def has_power(n: int) -> bool:
        return compute_power(difference, sd, n, n_pairs) >= POWER

    low, high = 1, 2
    while not has_power(high):
        low, high = high, 2 * high
        if low > _MAX_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if has_power(middle) else (middle, high)
    return high if high <= _MAX_SEEDS else None


def compute_power(difference: float, sd: float, n: int, n_pairs: int) -> float:
    """The probability that a true difference is found better with n seeds; arguments as for `compute_seeds_needed`."""
    critical_value, shift = _compute_t_quantile(n, ALPHA / (2 * n_pairs)), difference * math.sqrt(n) / sd
    return float(special.nctdtr(n - 1, -shift, -critical_value))


def compute_detectable_effect(n: int, n_pairs: int) -> float:
    """The smallest difference, in standard deviations of the paired differences, that n seeds show in `POWER` of cases.

    Args:
        n_pairs: how many pairs of optimizers are compared in all.
    """
    low, high = 0.0, 1000.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if compute_power(middle, 1.0, n, n_pairs) >= POWER else (middle, high)
    return high


def _compute_t_quantile(n: int, tail: float) -> float:
    """Of Student's t with n - 1 degrees of freedom: the value above which so much of it lies."""
    return -float(special.stdtrit(n - 1, tail))


def _compute_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return statistics.correlation(first, second)
