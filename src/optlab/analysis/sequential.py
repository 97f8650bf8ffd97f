"""Verdicts that hold at every planned look: tests corrected for looks and pairs, with intervals that agree.

The number of looks K is planned. Each look tests at α / K, so that the error over all looks is at most α however the
looks depend on each other (Bonferroni; an error-spending rule with equal shares which, unlike that of Lan and DeMets
1983, Biometrika 70, does not use the correlation of the looks). The smallest p so far, times K, is a sequential p-value
(Liu and Anderson 2008, J. Am. Stat. Assoc. 103): it never grows, so what was told stays told. Over the pairs, verdicts
are corrected by Holm (1979, Scand. J. Stat. 6) and intervals by Bonferroni.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optlab.analysis import pair_tests
from optlab.analysis.mean_ci import ALPHA
from optlab.analysis.outperforming import (
    MIN_N_FOR_OUTPERFORMING,
    ProbabilityOfOutperforming,
    estimate_outperforming,
)
from optlab.analysis.pair_tests import Array, Look

Verdict = Literal["better", "better, by less than the margin", "equivalent", "undecided"]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """What is tested, fixed before the data are seen.

    Attributes:
        looks: planned numbers of replicates, increasing.
        n_pairs: number of pairs of optimizers.
        margin: largest difference without practical importance, in the values' unit; None if unknown.
        higher_is_better: true for an accuracy, false for a loss.
        resolution: see `pair_tests.compare_means`.
        alpha: family-wise error of "better" and of the intervals over all looks and pairs, and of "equivalent" over all
            looks of one pair: 0.05, or its share for one of several attempts at a study.
    """

    looks: tuple[int, ...]
    n_pairs: int
    margin: float | None = None
    higher_is_better: bool = True
    resolution: float = 0.0
    alpha: float = ALPHA

    @property
    def look_alpha(self) -> float:
        """Error of one look at one pair."""
        return self.alpha / (len(self.looks) * self.n_pairs)

    def count_taken(self, n: int) -> int:
        """Return how many looks are taken with n replicates."""
        return sum(look <= n for look in self.looks)


@dataclass(frozen=True)
class PairComparison:
    """Two optimizers' values at the last planned look.

    Attributes:
        n: replicates of each at that look.
        difference: mean of the first - mean of the second, over these replicates.
        low, high: its interval at the level 1 - `Plan.alpha`, simultaneous over all pairs and looks: the intersection
            of the intervals of all looks so far, cut at 0 where only Holm's test shows which of the two is better,
            and extended to the difference if it ends short of it.
        p: corrected for looks and attempts by Bonferroni and for the pairs by Holm: told where it is at most 0.05.
        verdict: at that look.
        first_is_better: the better one, if the verdict has one; else the sign of the difference.
        wins: number of seeds with which the first is better, a tie counts half; None where the seeds differ.
        correlation: Pearson's, over the seeds; None where the seeds differ or one of the two does not vary.
        is_paired: whether the last look's test was paired.
        outperforming: probability that the first outperforms the second; None below 29 seeds, or where they differ.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    verdict: Verdict
    first_is_better: bool
    wins: float | None
    correlation: float | None
    is_paired: bool
    outperforming: ProbabilityOfOutperforming | None

    @property
    def is_better(self) -> bool:
        """True if one of the two is better, also by less than the margin."""
        return self.verdict in ("better", "better, by less than the margin")

    def get_better(self, names: Pair) -> str | None:
        """Return the name of the better one, if the verdict has one."""
        return names[not self.first_is_better] if self.is_better else None

    def swap(self) -> "PairComparison":
        """Return the comparison with the second optimizer first."""
        return replace(
            self, difference=-self.difference, low=-self.high, high=-self.low,
            wins=None if self.wins is None else self.n - self.wins, first_is_better=not self.first_is_better,
            outperforming=self.outperforming and self.outperforming.swap(),
        )  # fmt: skip


@dataclass(frozen=True)
class Verdicts:
    """Statements about all pairs at each look taken; arrays of shape (..., pairs, looks).

    Attributes:
        p: as in `PairComparison`.
        sign: 1 where the first mean is told to be higher, -1 where it is told to be lower, 0 where neither.
        low, high: ends of the intervals of the difference, not cut at 0.
        is_equivalent: whether the difference is told to be within the margin.
        last: tests of the last look, one per pair.
    """

    p: Array
    sign: NDArray[np.int8]
    low: Array
    high: Array
    is_equivalent: NDArray[np.bool_]
    last: list[Look]


def judge(values: Sequence[tuple[Array, Array, bool]], plan: Plan) -> Verdicts:
    """Judge all pairs at each look that their replicates suffice for.

    Args:
        values: of each pair the first and second optimizer's values, shape (..., n) in the order of the seeds, n at
            least the first look; and whether both have the same seeds. A pair with fewer looks than another keeps its
            last one.
    """
    tests = [_test_at_looks(*each, plan) for each in values]
    most = max(map(len, tests))
    tests = [looks + looks[-1:] * (most - len(looks)) for looks in tests]
    p = np.stack([_accumulate_p([look.p for look in looks], plan) for looks in tests], -2)
    adjusted = _adjust_holm(p, plan.n_pairs)
    differences = np.stack([np.stack([look.difference for look in looks], -1) for looks in tests], -2)
    sign = _keep_told(adjusted <= plan.alpha, p, differences)
    low, high = _intersect(tests, plan.look_alpha)
    is_equivalent = np.zeros(p.shape, bool)
    if plan.margin is not None:  # two one-sided tests, each at α, for this pair alone (Schuirmann 1987)
        lower, upper = _intersect(tests, 2 * plan.alpha / len(plan.looks))
        is_equivalent = (lower > -plan.margin) & (upper < plan.margin)
    return Verdicts(adjusted, sign, low, high, is_equivalent, [looks[-1] for looks in tests])


def _test_at_looks(first: Array, second: Array, same_seeds: bool, plan: Plan) -> list[Look]:
    taken = plan.looks[: plan.count_taken(min(first.shape[-1], second.shape[-1]))]
    return [
        pair_tests.compare_means(first[..., :n], second[..., :n], plan.look_alpha, plan.resolution, same_seeds)
        for n in taken
    ]


def _accumulate_p(p_of_looks: Sequence[Array], plan: Plan) -> Array:
    """Return sequential p-values, shape (..., looks): the smallest p so far, times the number of planned looks."""
    smallest = np.minimum.accumulate(np.stack(p_of_looks, -1), -1)
    return np.asarray(np.minimum(1.0, len(plan.looks) * smallest))


def _adjust_holm(p: Array, n_pairs: int) -> Array:
    """Return p, shape (..., pairs, looks), corrected for all pairs of the plan, also those without replicates."""
    order = np.argsort(p, axis=-2, kind="stable")
    factors = np.arange(n_pairs, n_pairs - p.shape[-2], -1, dtype=float)[:, None]
    steps = np.minimum(1.0, np.maximum.accumulate(np.take_along_axis(p, order, -2) * factors, -2))
    adjusted = np.empty_like(steps)
    np.put_along_axis(adjusted, order, steps, -2)
    return adjusted


def _keep_told(is_told: NDArray[np.bool_], p: Array, differences: Array) -> NDArray[np.int8]:
    """Return the sign of each told difference at the look that told it, kept at all later looks."""
    sign = np.zeros(p.shape, np.int8)
    for look in range(p.shape[-1]):
        strongest = np.argmin(p[..., : look + 1], -1)[..., None]  # the look with the smallest p so far
        own = np.sign(np.take_along_axis(differences, strongest, -1)[..., 0]).astype(np.int8)
        before = sign[..., look - 1] if look else np.zeros_like(own)
        sign[..., look] = np.where(before != 0, before, np.where(is_told[..., look], own, 0))
    return sign


def _intersect(tests: Sequence[Sequence[Look]], alpha: float) -> tuple[Array, Array]:
    """Return both ends of the intervals at `alpha`, shape (..., pairs, looks), each cut to those of earlier looks.

    A look that contradicts the earlier ones leaves their interval as it is.
    """
    lows, highs = [], []
    for looks in tests:
        half_widths = [look.compute_half_width(alpha) for look in looks]
        ends = [(look.difference - half, look.difference + half) for look, half in zip(looks, half_widths, strict=True)]
        low, high = ends[0]
        common = [(low, high)]
        for next_low, next_high in ends[1:]:
            new_low, new_high = np.maximum(low, next_low), np.minimum(high, next_high)
            is_kept = new_low <= new_high
            low, high = np.where(is_kept, new_low, low), np.where(is_kept, new_high, high)
            common.append((low, high))
        lows.append(np.stack([each for each, _ in common], -1))
        highs.append(np.stack([each for _, each in common], -1))
    return np.stack(lows, -2), np.stack(highs, -2)


def cut_at_zero(low: Array, high: Array, sign: NDArray[np.int8]) -> tuple[Array, Array]:
    """Return both ends of intervals without their part on the other side of 0 than `sign`; a sign of 0 cuts nothing."""
    floor, ceiling = np.where(sign > 0, 0.0, -np.inf), np.where(sign < 0, 0.0, np.inf)
    return np.clip(low, floor, ceiling), np.clip(high, floor, ceiling)


def compare_pairs(values: Mapping[str, Sequence[float]], pairs: Sequence[Pair], plan: Plan,
                  seeds: Mapping[str, Sequence[int]]) -> dict[Pair, PairComparison]:  # fmt: skip
    """Compare pairs of optimizers, each at the last look that its replicates suffice for.

    Args:
        values: optimizer → one value per replicate, in the order of params.yaml.
        seeds: optimizer → seeds of the replicates.

    Returns:
        the pairs for which at least one look is taken.
    """
    looked_at = {}
    for a, b in pairs:
        taken = plan.count_taken(min(len(values[a]), len(values[b])))
        if taken:
            n = plan.looks[taken - 1]
            same_seeds = list(seeds[a][:n]) == list(seeds[b][:n])
            looked_at[a, b] = np.array(values[a][:n], float), np.array(values[b][:n], float), same_seeds
    if not looked_at:
        return {}
    verdicts = judge(list(looked_at.values()), plan)
    return {pair: _describe_pair(*looked_at[pair], verdicts, index, plan) for index, pair in enumerate(looked_at)}


def _describe_pair(
    first: Array, second: Array, same_seeds: bool, verdicts: Verdicts, index: int, plan: Plan
) -> PairComparison:
    look, sign = verdicts.last[index], int(verdicts.sign[index, -1])
    low, high = cut_at_zero(verdicts.low[index, -1], verdicts.high[index, -1], verdicts.sign[index, -1])
    if sign * look.difference >= 0:  # an intersection with earlier looks may end short of the present difference
        low, high = np.minimum(low, look.difference), np.maximum(high, look.difference)
    gains = (first - second) * (1 if plan.higher_is_better else -1)
    correlation = float(look.correlation)
    return PairComparison(
        n=len(first),
        difference=float(look.difference),
        low=float(low),
        high=float(high),
        p=min(1.0, float(verdicts.p[index, -1]) * ALPHA / plan.alpha),
        verdict=_choose_verdict(sign != 0, bool(verdicts.is_equivalent[index, -1])),
        first_is_better=(sign > 0) == plan.higher_is_better if sign else float(gains.mean()) > 0,
        wins=float(((gains > 0) + 0.5 * (gains == 0)).sum()) if same_seeds else None,
        correlation=None if np.isnan(correlation) else correlation,
        is_paired=bool(look.is_paired),
        outperforming=(
            estimate_outperforming(gains.tolist()) if same_seeds and len(first) >= MIN_N_FOR_OUTPERFORMING else None
        ),
    )


def _choose_verdict(is_told: bool, is_equivalent: bool) -> Verdict:
    if is_told:
        return "better, by less than the margin" if is_equivalent else "better"
    return "equivalent" if is_equivalent else "undecided"
