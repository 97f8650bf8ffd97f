"""Performance profiles over several workloads, and scores from them.

A profile gives, for each factor τ, the share of the workloads on which an optimizer needs at most τ times as long as
the reference to reach the target (Dolan and Moré 2002, "Benchmarking optimization software with performance profiles").
AlgoPerf takes the fastest submission of each workload as the reference, and the mean height of the profile from τ = 1
to 4 as the score (Dahl et al. 2023, "Benchmarking Neural Network Training Algorithms", arXiv:2306.07179, section 4.5).
There, a score depends on the other submissions. `compute_log_scores` has one fixed optimizer as the reference.
"""

from collections.abc import Sequence

import numpy as np

MAX_FACTOR = 4.0  # AlgoPerf's τ_max
_ALGOPERF_POINTS = 100  # of its grid of τ


def compute_ratios(times: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the times as multiples of the reference's time.

    Args:
        times: time to the target; float64, shape (…, k optimizers, w workloads); infinite where it was not reached.
        reference: time of the reference; shape (…, w).

    Returns:
        Ratios of the shape of `times`; infinite where the target was not reached.
    """
    with np.errstate(invalid="ignore"):
        ratios = times / reference[..., None, :]
    return np.where(np.isinf(times), np.inf, ratios)


def compute_profile(ratios: np.ndarray, factors: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the share of the workloads whose ratio is at most each factor.

    Args:
        ratios: shape (k optimizers, w workloads).
        factors: shape (f,).

    Returns:
        Shares, float64, shape (k, f).
    """
    return np.asarray((ratios[:, :, None] <= np.asarray(factors)).mean(axis=1))


def compute_log_scores(ratios: np.ndarray) -> np.ndarray:
    """Return the mean height of each profile over log τ, from τ = 1/4 to 4.

    The integral of the step function is a mean over the workloads of 1/2 − log r / (2 log 4), with the ratio r limited
    to 1/4 and 4. The reference has 0.5, an optimizer that needs half the time everywhere 0.75, one that never reaches
    the target 0.

    Args:
        ratios: shape (…, k optimizers, w workloads).

    Returns:
        Scores from 0 to 1, shape (…, k).
    """
    limited = np.clip(ratios, 1 / MAX_FACTOR, MAX_FACTOR)
    return np.asarray((0.5 - np.log(limited) / (2 * np.log(MAX_FACTOR))).mean(axis=-1))


def compute_algoperf_scores(times: np.ndarray) -> np.ndarray:
    """Return the benchmark scores of AlgoPerf: the fastest of each workload is the reference.

    The mean height of each profile from τ = 1 to 4, by the trapezoidal rule on 100 equidistant points, as the scoring
    code of AlgoPerf 0.6 has it; without held-out variants of workloads.

    Args:
        times: shape (k submissions, w workloads); infinite where the target was not reached.

    Returns:
        Scores from 0 to 1, shape (k,); a workload whose target nobody reached counts 0 for everyone.
    """
    factors = np.linspace(1.0, MAX_FACTOR, _ALGOPERF_POINTS)
    return np.asarray(
        np.trapezoid(compute_profile(compute_algoperf_ratios(times), factors), factors) / (MAX_FACTOR - 1)
    )


def compute_algoperf_ratios(times: np.ndarray) -> np.ndarray:
    """Return the times as multiples of the fastest time of each workload; infinite where the target was not reached.

    Args:
        times: shape (k submissions, w workloads).
    """
    return compute_ratios(times, times.min(axis=0))
