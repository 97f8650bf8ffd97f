"""Scatter of the test accuracy over seeds: chance in single test images, and real differences between the networks.

With p_i the probability that a training classifies test image i of m correctly, the variance of the accuracy over seeds
is (1/m²) Σ_i p_i (1 - p_i) + (1/m²) Σ_(i≠j) Cov(i, j). The first sum is what remains if each image is decided
independently of the others. Over test sets, the second has the expectation (1 - 1/m) · the variance over seeds of the
accuracy on all images that a test set could have: it is the part that another test set would show, too (Jordan 2023,
"Calibrated Chaos", arXiv:2304.01910).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from optlab.analysis.mean_ci import ALPHA
from optlab.analysis.translation import join_items, join_phrases, join_sentences, translate
from optlab.records import EvalRecord


@dataclass(frozen=True)
class Scatter:
    """Scatter of one optimizer's test accuracy.

    Attributes:
        n: number of runs.
        sd: the sample standard deviation of the accuracy, a fraction.
        networks_share: share of the variance that is a difference between the networks, from 0 to 1; 0 where sd is 0.
        low, high: its 95 % interval; 0 and 1 where sd is 0.
    """

    n: int
    sd: float
    networks_share: float
    low: float
    high: float


def compute_scatter(tested: Sequence[EvalRecord]) -> Scatter | None:
    """Compute the scatter over one optimizer's completed runs; None for fewer than two, or without `correct` in one."""
    masks = [mask for mask in (record.correct_mask for record in tested) if mask is not None]
    return split_variance(np.stack(masks)) if len(masks) == len(tested) > 1 else None


def split_variance(correct: np.ndarray) -> Scatter:
    """Split the variance of the accuracy.

    Both parts are estimated without bias: k correct runs of n give p (1 - p) = k (n - k) / (n (n - 1)). The sums are of
    integers, so that the result does not depend on the machine. The interval is that of the variance of normally
    distributed accuracies (NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.3.1); the chance is known much better,
    from many images.

    Args:
        correct: whether a run classifies an image correctly; bool, shape (n runs, m images), n at least 2.
    """
    n, m = correct.shape
    per_run, per_image = (correct.sum(axis, dtype=np.int64) for axis in (1, 0))
    total = n * int((per_run**2).sum()) - int(per_run.sum()) ** 2
    chance = int((per_image * (n - per_image)).sum())
    sd = math.sqrt(total / (n * (n - 1))) / m
    if total == 0:
        return Scatter(n, sd, 0.0, 0.0, 1.0)
    # True variance = estimate · factor.
    factors = [(n - 1) / float(special.chdtri(n - 1, tail)) for tail in (ALPHA / 2, 1 - ALPHA / 2)]
    low, high = (max(0.0, 1 - chance / (total * factor)) for factor in factors)
    return Scatter(n, sd, max(0.0, 1 - chance / total), low, high)


def describe(records: Mapping[str, Sequence[EvalRecord]]) -> str:
    """Return sentences for a report on the scatter of each optimizer's completed runs; empty without a scatter.

    Args:
        records: optimizer → evaluations of its completed runs.
    """
    several = {name: tested for name, tested in records.items() if len(tested) > 1}
    scatters = {name: compute_scatter(tested) for name, tested in several.items()}
    known = [_format_scatter(name, each) for name, each in scatters.items() if each and each.sd > 0]
    unknown = [name for name, each in scatters.items() if each is None]
    parts = []
    if known:
        template = (
            "Standard deviation of the seeds' test accuracies, and the share of that variance that is a real "
            "difference between the trained networks, with its 95 % interval: {scatters}. The rest is attributed to "
            "chance in single test images. More seeds narrow these intervals and those of the means; they make "
            "neither part smaller."
        )
        parts.append(translate(template, scatters=join_items(known)))
    if unknown:
        template = (
            "How much of the scatter of the seeds comes from the test images is not known for {names}: their records "
            "do not say which images are right."
        )
        parts.append(translate(template, names=join_phrases(unknown)))
    return join_sentences(parts)


def _format_scatter(optimizer: str, scatter: Scatter) -> str:
    networks, low, high = (round(100 * each) for each in (scatter.networks_share, scatter.low, scatter.high))
    template = "{name} {sd} points, {networks} % ({low} to {high} %)"
    return translate(template, name=optimizer, sd=f"{100 * scatter.sd:.2f}", networks=networks, low=low, high=high)
