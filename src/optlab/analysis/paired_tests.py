"""Means with confidence intervals, and paired tests between two optimizers over the same seeds.

All statements are about other seeds with the same test set, not about other test sets.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import special

ALPHA = 0.05  # probability of at least one false "better" over all pairs
POWER = 0.8
MIN_N_FOR_OUTPERFORMING = 29  # seeds, to show the probability of outperforming (Bouthillier et al. 2021, appendix C)
MEANINGFUL_PROBABILITY = 0.75  # their γ
_MAX_SEEDS = 100_000

Verdict = Literal["better", "better, by less than the margin", "equivalent", "cannot be told apart"]


@dataclass(frozen=True)
class MeanCI:
    """One mean over runs.

    Attributes:
        n: number of runs.
        sd: the sample standard deviation; None for one run.
        half_width: half the width of the mean's 95 % interval; None for one run.
    """

    n: int
    mean: float
    sd: float | None
    half_width: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the 95 % interval; None for one run."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the 95 % interval; None for one run."""
        return None if self.half_width is None else self.mean + self.half_width


def compute_mean_ci(values: Sequence[float]) -> MeanCI:
    """Compute mean, standard deviation, and the mean's 95 % interval by Student's t.

    mean ± t(1 - α/2; n - 1) · sd / √n (Student 1908; NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2).

    Args:
        values: one per run; at least one.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return MeanCI(n, mean, None, None)
    sd = statistics.stdev(values)
    return MeanCI(n, mean, sd, _compute_t_quantile(n, ALPHA / 2) * sd / math.sqrt(n))


@dataclass(frozen=True)
class ProbabilityOfOutperforming:
    """Probability that the first optimizer beats the second with the same seed; a tie counts half.

    Attributes:
        probability: the share of the seeds.
        low, high: its 95 % percentile bootstrap interval, not corrected for other pairs.
    """

    probability: float
    low: float
    high: float

    @property
    def is_meaningful(self) -> bool:
        """True if significantly above 0.5 and possibly above γ = 0.75 (Bouthillier et al. 2021, section 4)."""
        return self.low > 0.5 and self.high > MEANINGFUL_PROBABILITY

    def swap(self) -> "ProbabilityOfOutperforming":
        """Return the second optimizer's probability."""
        return ProbabilityOfOutperforming(1 - self.probability, 1 - self.high, 1 - self.low)


@dataclass(frozen=True)
class PairedComparison:
    """Two optimizers' values, paired by seed.

    Attributes:
        n: number of seeds.
        difference: mean of first - second.
        low, high: its 95 % interval, simultaneous over all pairs of optimizers.
        p: of the paired t test, corrected for the number of pairs.
        wins: number of seeds with which the first is better; a tie counts half.
        correlation: Pearson's, over the seeds; None where one of the two does not vary.
        first_is_better: sign of the mean difference, whether or not it is significant.
        outperforming: probability that the first outperforms the second; None below 29 seeds.
        sd: standard deviation of the differences, after its lower limit.
        n_pairs, margin: arguments of `compare_pair`.
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
        """Seeds needed to detect a difference of the margin; None above 100,000 or without a margin."""
        return None if self.margin is None else compute_seeds_needed(self.margin, self.sd, self.n_pairs)

    @property
    def is_significant(self) -> bool:
        """True if one of the two is better, also by less than the margin."""
        return self.verdict in ("better", "better, by less than the margin")

    def swap(self) -> "PairedComparison":
        """Return the comparison with the second optimizer first."""
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
        first: one value per seed; at least two.
        second: the other optimizer's values, in the same order of seeds.
        n_pairs: number of pairs of optimizers that are compared.
        margin: largest difference without practical importance, in the values' unit; None if unknown.
        higher_is_better: true for an accuracy, false for a loss.
        resolution: smallest step between two values: 1 / m for a share of m images. Two seeds often agree that far by
            chance, so the standard deviation of the differences is at least that of the rounding of two values,
            resolution / √6.
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
        correlation=None if 1 in (len(set(first)), len(set(second))) else statistics.correlation(first, second),
        verdict=_choose_verdict(p, abs(mean) + half_width, abs(mean) + half_width_90, margin),
        first_is_better=sum(gains) > 0,
        outperforming=estimate_outperforming(gains) if n >= MIN_N_FOR_OUTPERFORMING else None,
        sd=sd, n_pairs=n_pairs, margin=margin,
    )  # fmt: skip


def estimate_outperforming(gains: Sequence[float]) -> ProbabilityOfOutperforming:
    """Estimate the probability that a gain is above zero, with its percentile bootstrap interval.

    Recommended by Bouthillier et al. (2021, MLSys, "Accounting for Variance in Machine Learning Benchmarks"); the
    interval is that of Efron and Tibshirani (1993, "An Introduction to the Bootstrap", chapter 13). The distribution of
    the sum of n draws from the seeds is computed exactly, without random numbers: it is the limit of infinitely many
    resamples. Near 0 and 1 the interval is too narrow, like theirs.

    Args:
        gains: how much better the first optimizer is with each seed.
    """
    n = len(gains)
    losses, ties = sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)
    wins = n - losses - ties
    distribution = np.ones(1)  # of the resamples, by twice their number of wins
    for _ in range(n):
        distribution = np.convolve(distribution, np.array([losses, ties, wins]) / n)
    cumulative = np.cumsum(distribution)
    low, high = (int(np.searchsorted(cumulative, tail)) / (2 * n) for tail in (ALPHA / 2, 1 - ALPHA / 2))
    return ProbabilityOfOutperforming((ties / 2 + wins) / n, low, high)


def _compute_p_value(mean: float, standard_error: float, n: int, n_pairs: int) -> float:
    """Return the two-sided p, corrected for the number of pairs; 0 or 1 where all differences are equal."""
    if standard_error == 0:
        return float(mean == 0)
    return min(1.0, n_pairs * 2 * float(special.stdtr(n - 1, -abs(mean) / standard_error)))


def _choose_verdict(p: float, largest_difference: float, largest_difference_90: float, margin: float | None) -> Verdict:
    if p < ALPHA:
        return "better" if margin is None or largest_difference >= margin else "better, by less than the margin"
    return "equivalent" if margin is not None and largest_difference_90 < margin else "cannot be told apart"


def compute_seeds_needed(difference: float, sd: float, n_pairs: int) -> int | None:
    """Return the smallest number of seeds with which a difference is significant with probability `POWER`.

    From the power of the two-sided paired t test at the corrected level, by the noncentral t distribution (Cohen 1988,
    "Statistical Power Analysis for the Behavioral Sciences", chapter 2).

    Args:
        difference: the true difference.
        sd: standard deviation of the paired differences.
        n_pairs: number of pairs of optimizers that are compared.

    Returns:
        At least 2; None above 100,000.
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
    """Return the probability that a true difference is significant with n seeds; args: `compute_seeds_needed`."""
    critical_value, shift = _compute_t_quantile(n, ALPHA / (2 * n_pairs)), difference * math.sqrt(n) / sd
    return float(special.nctdtr(n - 1, -shift, -critical_value))


def compute_detectable_effect(n: int, n_pairs: int) -> float:
    """Return the smallest difference that is significant with n seeds with probability `POWER`.

    Its unit is the standard deviation of the paired differences.
    """
    low, high = 0.0, 1000.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if compute_power(middle, 1.0, n, n_pairs) >= POWER else (middle, high)
    return high


def _compute_t_quantile(n: int, tail: float) -> float:
    """Return the value of Student's t with n - 1 degrees of freedom above which the probability is `tail`."""
    return -float(special.stdtrit(n - 1, tail))
