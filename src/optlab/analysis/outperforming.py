"""Probability that one optimizer outperforms another with the same seed (Bouthillier et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optlab.analysis.mean_ci import ALPHA

MIN_N_FOR_OUTPERFORMING = 29  # seeds, to show the probability of outperforming (Bouthillier et al. 2021, appendix C)
MEANINGFUL_PROBABILITY = 0.75  # their γ


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
