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
LARGE = 29  # seeds, from which on the probability of outperforming is shown (Bouthillier et al. 2021, appendix C)
MEANINGFUL = 0.75  # their γ
_MOST_SEEDS = 100_000

Verdict = Literal["better", "better, by less than the margin", "equivalent", "cannot be told apart"]


@dataclass(frozen=True)
class Figure:
    """A mean over runs.

    Attributes:
        n: how many runs.
        mean: over them.
        sd: the sample standard deviation; None for one run.
        half: half the width of the mean's 95 % interval; None for one run.
    """

    n: int
    mean: float
    sd: float | None
    half: float | None

    @property
    def low(self) -> float | None:
        """Where that interval begins."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Where it ends."""
        return None if self.half is None else self.mean + self.half


def figure(values: Sequence[float]) -> Figure:
    """Mean, standard deviation, and the mean's 95 % interval by Student's t.

    mean ± t(1 - α/2; n - 1) · sd / √n (Student 1908; NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2).

    Args:
        values: one of each run; at least one.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Figure(n, mean, None, None)
    sd = statistics.stdev(values)
    return Figure(n, mean, sd, _quantile(n, ALPHA / 2) * sd / math.sqrt(n))


@dataclass(frozen=True)
class Outperforming:
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
        return self.low > 0.5 and self.high > MEANINGFUL

    def turned(self) -> "Outperforming":
        """The second's."""
        return Outperforming(1 - self.probability, 1 - self.high, 1 - self.low)


@dataclass(frozen=True)
class Pair:
    """Two optimizers' values, paired by seed.

    Attributes:
        n: how many pairs of runs.
        difference: the mean of first - second.
        low, high: its 95 % interval, simultaneous with those of all other pairs.
        p: of the paired t test, corrected for the number of pairs.
        wins: in how many seeds the first is better; a tie counts half.
        correlation: Pearson's, between the two over the seeds; None where one of them does not vary.
        verdict: what that says.
        favours_first: which of the two it is that is better, where one is.
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
    favours_first: bool
    outperforming: Outperforming | None
    sd: float
    pairs: int
    margin: float | None

    @cached_property
    def needed(self) -> int | None:
        """How many seeds a difference of the margin would need; None beyond reach, or without a margin."""
        return None if self.margin is None else seeds_needed(self.margin, self.sd, self.pairs)

    @property
    def is_told(self) -> bool:
        """Whether one of the two is better, by whatever."""
        return self.verdict in ("better", "better, by less than the margin")

    def turned(self) -> "Pair":
        """The same with the second first."""
        return replace(
            self, difference=-self.difference, low=-self.high, high=-self.low, wins=self.n - self.wins,
            favours_first=not self.favours_first,
            outperforming=self.outperforming and self.outperforming.turned(),
        )  # fmt: skip


def pair(first: Sequence[float], second: Sequence[float], pairs: int, margin: float | None,
         higher_is_better: bool = True, resolution: float = 0.0) -> Pair:  # fmt: skip
    """Compare two optimizers over the same seeds.

    The paired t test (Student 1908), its p and its interval both corrected by Bonferroni for the number of pairs, so
    that an interval without zero and p < α are the same statement (Dunn 1961, JASA 56, "Multiple comparisons among
    means"). Equivalence is two one-sided tests at α: the 90 % interval lies within the margin (Schuirmann 1987, J.
    Pharmacokinet. Biopharm. 15).

    Args:
        first: one value for each seed; at least two.
        second: the same of the other, in the same order of seeds.
        pairs: how many pairs of optimizers are compared in all.
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
    half = _quantile(n, ALPHA / (2 * pairs)) * error
    p = _p(mean, error, n, pairs)
    gains = differences if higher_is_better else [-each for each in differences]
    inside = _quantile(n, ALPHA) * error
    return Pair(
        n, mean, mean - half, mean + half, p,
        wins=sum((gain > 0) + 0.5 * (gain == 0) for gain in gains),
        correlation=_correlation(first, second),
        verdict=_verdict(p, abs(mean) + half, abs(mean) + inside, margin),
        favours_first=sum(gains) > 0,
        outperforming=outperforming(gains) if n >= LARGE else None,
        sd=sd, pairs=pairs, margin=margin,
    )  # fmt: skip


def outperforming(gains: Sequence[float]) -> Outperforming:
    """How likely a gain is above zero, with the percentile bootstrap's interval.

    As Bouthillier et al. (2021, MLSys, "Accounting for Variance in Machine Learning Benchmarks") recommend; the
    interval is that of Efron and Tibshirani (1993, "An Introduction to the Bootstrap", chapter 13). The sum of n draws
    from the seeds has a distribution that can be computed: it is that of endlessly many resamples, and needs no random
    numbers. Near 0 and 1 this interval is too narrow, as theirs is.

    Args:
        gains: of each seed, how much better the first is.
    """
    n = len(gains)
    halves = [sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains), sum(gain > 0 for gain in gains)]
    share = np.ones(1)
    for _ in range(n):
        share = np.convolve(share, np.array(halves) / n)  # of the resamples, by twice their wins
    below = np.cumsum(share)
    low, high = (int(np.searchsorted(below, tail)) / (2 * n) for tail in (ALPHA / 2, 1 - ALPHA / 2))
    return Outperforming((halves[1] / 2 + halves[2]) / n, low, high)


def _p(mean: float, error: float, n: int, pairs: int) -> float:
    """Two-sided; where all differences are the same, they leave no doubt, or there is none."""
    if error == 0:
        return float(mean == 0)
    return min(1.0, pairs * 2 * float(special.stdtr(n - 1, -abs(mean) / error)))


def _verdict(p: float, farthest: float, farthest_90: float, margin: float | None) -> Verdict:
    if p < ALPHA:
        return "better" if margin is None or farthest >= margin else "better, by less than the margin"
    return "equivalent" if margin is not None and farthest_90 < margin else "cannot be told apart"


def seeds_needed(difference: float, sd: float, pairs: int) -> int | None:
    """The smallest number of seeds with which such a difference is found in `POWER` of all cases.

    The power of the two-sided paired t test at the corrected level, by the noncentral t distribution (Cohen 1988,
    "Statistical Power Analysis for the Behavioral Sciences", chapter 2).

    Args:
        difference: the true one.
        sd: the standard deviation of the differences within the pairs.
        pairs: how many pairs of optimizers are compared in all.

    Returns:
        At least 2; None if it is above 100,000.
    """
    if sd == 0:
        return 2

    def enough(n: int) -> bool:
        return power(difference, sd, n, pairs) >= POWER

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if low > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= _MOST_SEEDS else None


def power(difference: float, sd: float, n: int, pairs: int) -> float:
    """The probability that a true difference is found better with n seeds; arguments as for `seeds_needed`."""
    border, shift = _quantile(n, ALPHA / (2 * pairs)), difference * math.sqrt(n) / sd
    return float(special.nctdtr(n - 1, -shift, -border))


def detectable(n: int, pairs: int) -> float:
    """The smallest difference, in standard deviations of the paired differences, that n seeds show in `POWER` of cases.

    Args:
        pairs: how many pairs of optimizers are compared in all.
    """
    low, high = 0.0, 1000.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, 1.0, n, pairs) >= POWER else (middle, high)
    return high


def _quantile(n: int, tail: float) -> float:
    """Of Student's t with n - 1 degrees of freedom: the value above which so much of it lies."""
    return -float(special.stdtrit(n - 1, tail))


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return statistics.correlation(first, second)
