"""Means over runs with 95 % confidence intervals, corrected neither for other means nor for looks."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

ALPHA = 0.05  # 1 - confidence level; family-wise for verdicts


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
    return MeanCI(n, mean, sd, -float(special.stdtrit(n - 1, ALPHA / 2)) * sd / math.sqrt(n))
