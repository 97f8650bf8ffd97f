"""Test of the difference of two optimizers' means at one look: Welch's, or the paired t test where pairing pays.

Arrays may have leading dimensions: one per table of a simulation. The last dimension is the replicate (seed).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

POWER = 0.8
_CORRELATION_Z = 1.6449  # quantile of the one-sided 95 % bound of a correlation


@dataclass(frozen=True)
class Look:
    """Difference of two means and its distribution; each attribute has one value per table.

    Attributes:
        difference: first mean - second mean.
        error: standard error of the difference, above 0 where a value has a resolution.
        df: degrees of freedom of Student's t.
        is_paired: whether replicates with the same seed were subtracted from each other.
        correlation: Pearson's over the seeds; NaN where one of the two does not vary or the seeds differ.
    """

    difference: Array
    error: Array
    df: Array
    is_paired: NDArray[np.bool_]
    correlation: Array

    @property
    def p(self) -> Array:
        """Two-sided p, not corrected; 1 where difference and error are 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.difference) / self.error
        return 2 * special.stdtr(self.df, -np.where(np.isnan(t), 0.0, t))

    def compute_half_width(self, alpha: float) -> Array:
        """Return half the width of the two-sided interval that misses the true difference with probability `alpha`."""
        return compute_t_quantile(self.df, alpha / 2) * self.error


def compare_means(first: Array, second: Array, alpha: float, resolution: float = 0.0,
                    same_seeds: bool = True) -> Look:  # fmt: skip
    """Test the difference of two means.

    Welch's test (1947, Biometrika 34, with the degrees of freedom of Satterthwaite 1946) treats the two optimizers as
    independent: with a positive correlation its interval is wider than necessary, with a negative one too narrow. The
    paired t test uses the correlation and has half of the degrees of freedom. It is taken only where its interval is
    narrower even at the lower one-sided 95 % bound of the correlation (Fisher 1921, z transformation), or where both
    have the same values. So pairing is seldom chosen because of a correlation that is high by chance.

    Args:
        first: shape (..., n), n at least 2.
        second: shape (..., m), m at least 2.
        alpha: level of the interval that pairing must make narrower.
        resolution: smallest step between two values: 1 / m for a share of m images. Values often agree that far by
            chance, so a standard deviation counts as at least that of rounding, resolution / √12.
        same_seeds: whether the replicates have the same seeds, in the same order.
    """
    n, m = first.shape[-1], second.shape[-1]
    floor = resolution**2 / 12
    first_mean, second_mean = first.mean(-1), second.mean(-1)
    first_part = np.maximum(first.var(-1, ddof=1), floor) / n
    second_part = np.maximum(second.var(-1, ddof=1), floor) / m
    error, df = _apply_welch(first_part, second_part, n, m)
    look = Look(first_mean - second_mean, error, df, np.zeros(error.shape, bool), np.full(error.shape, np.nan))
    if not same_seeds:
        return look
    differences = first - second
    paired_error = np.sqrt(np.maximum(differences.var(-1, ddof=1), 2 * floor) / n)
    centred = (first - first_mean[..., None]) * (second - second_mean[..., None])
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = centred.sum(-1) / ((n - 1) * first.std(-1, ddof=1) * second.std(-1, ddof=1))
    varies = (np.ptp(first, axis=-1) > 0) & (np.ptp(second, axis=-1) > 0)
    correlation = np.where(varies, correlation, np.nan)
    pays = (differences == 0).all(-1) | _is_pairing_narrower(
        look, np.sqrt(first_part * second_part), correlation, n, alpha
    )
    return Look(
        look.difference, np.where(pays, paired_error, error), np.where(pays, n - 1.0, df), pays, correlation
    )  # fmt: skip


def _apply_welch(first_part: Array, second_part: Array, n: int, m: int) -> tuple[Array, Array]:
    """Return standard error and degrees of freedom from both variances of a mean."""
    total = first_part + second_part
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (first_part**2 / (n - 1) + second_part**2 / (m - 1))
    return np.sqrt(total), np.where(total == 0, float(min(n, m) - 1), df)


def _is_pairing_narrower(welch: Look, product: Array, correlation: Array, n: int, alpha: float) -> NDArray[np.bool_]:
    """Return whether the paired interval is narrower even if the correlation is only its lower 95 % bound."""
    if n <= 3:  # the bound needs a fourth replicate
        return np.zeros(correlation.shape, bool)
    z = np.arctanh(np.clip(np.nan_to_num(correlation), -1 + 1e-12, 1 - 1e-12))
    bound = np.tanh(z - _CORRELATION_Z / math.sqrt(n - 3))
    paired_error = np.sqrt(np.maximum(welch.error**2 - 2 * bound * product, 0))
    quantile = compute_t_quantile(np.array(n - 1.0), alpha / 2)
    return np.asarray((bound > 0) & (quantile * paired_error < compute_t_quantile(welch.df, alpha / 2) * welch.error))


def compute_t_quantile(df: Array, tail: float) -> Array:
    """Return the value of Student's t above which the probability is `tail`."""
    return -np.asarray(special.stdtrit(df, tail))


def compute_power(difference: float, sd: float, n: int, alpha: float) -> float:
    """Return the probability that a true difference is found in its direction by the t test of two groups.

    By the noncentral t distribution, for normal data with equal standard deviations, where Welch's test has nearly the
    same power (Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", chapter 2).

    Args:
        difference: the true difference of the means.
        sd: standard deviation of each optimizer's replicates.
        n: replicates of each.
        alpha: two-sided level.
    """
    if sd == 0:
        return 1.0
    df = 2.0 * (n - 1)
    shift = abs(difference) / (sd * math.sqrt(2 / n))
    return float(special.nctdtr(df, -shift, -compute_t_quantile(np.array(df), alpha / 2)))


def compute_detectable_effect(n: int, alpha: float) -> float:
    """Return the smallest difference that Welch's test finds with probability `POWER`.

    Its unit is the standard deviation of one optimizer's replicates.
    """
    df = 2.0 * (n - 1)
    shift = special.nctdtrinc(df, 1 - POWER, -special.stdtrit(df, alpha / 2))
    return float(shift * math.sqrt(2 / n))
