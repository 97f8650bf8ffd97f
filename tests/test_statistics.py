"""Figures and differences against scipy, published numbers and simulated seeds."""

import numpy as np
import pytest
import simulation
from scipy import stats

from optlab.analysis import paired_tests
from optlab.analysis.paired_tests import (
    ALPHA,
    compute_mean_ci,
    compute_power,
    compute_seeds_needed,
    estimate_outperforming,
)

MARGIN = 0.005


def pair(first, second, pairs, margin=MARGIN, **more):
    return paired_tests.compare_pair(first, second, pairs, margin, **more)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_ci_matches_scipy(n):
    ((values,),) = simulation.drawn(n, 0.0, [0.0], 1)
    found = compute_mean_ci(values)
    low, high = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
    assert (found.n, found.mean, found.sd) == (n, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_single_run_has_no_interval():
    found = compute_mean_ci([0.5])
    assert (found.n, found.mean, found.sd, found.half_width) == (1, 0.5, None, None)


@pytest.mark.parametrize(("n", "pairs"), [(3, 1), (5, 3), (10, 36), (2, 1)])
def test_paired_comparison_matches_scipy(n, pairs):
    ((first, second),) = simulation.drawn(n, 0.5, [0.012, 0.0], 1)
    found = pair(first, second, pairs)
    there = stats.ttest_rel(first, second)
    assert found.p == pytest.approx(min(1, pairs * there.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(there.confidence_interval(1 - ALPHA / pairs)))
    assert found.correlation == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert found.wins == sum(np.array(first) > np.array(second))


def test_better_verdict_means_interval_excludes_zero():
    verdicts = set()
    for values in simulation.drawn(5, 0.0, [0.02, 0.0], 400):
        found = pair(*values, 3)
        verdicts.add(found.verdict)
        assert found.verdict.startswith("better") == (found.p < ALPHA) == (not found.low <= 0 <= found.high)
    assert {"better", "cannot be told apart"} <= verdicts


def test_equivalent_verdict_matches_two_one_sided_tests():
    margin, verdicts = 0.0125, set()
    for first, second in simulation.drawn(10, 0.0, [0.0, 0.0], 400):
        found = pair(first, second, 1, margin)
        differences = np.subtract(first, second)
        low = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        high = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        if found.p >= ALPHA:
            assert (found.verdict == "equivalent") == (max(low, high) < ALPHA)
        verdicts.add(found.verdict)
    assert {"equivalent", "cannot be told apart"} <= verdicts


CASES = {
    "better": ([0.70, 0.71, 0.72], [0.60, 0.61, 0.62001], "better", True),
    "worse": ([0.60, 0.61, 0.62001], [0.70, 0.71, 0.72], "better", False),
    "by little": ([0.6010, 0.6111, 0.6210], [0.600, 0.610, 0.620], "better, by less than the margin", True),
    "equivalent": ([0.6010, 0.6090, 0.6210], [0.600, 0.610, 0.620], "equivalent", True),
    "too noisy": ([0.60, 0.70, 0.65], [0.65, 0.60, 0.70], "cannot be told apart", False),
    "the same": ([0.6, 0.7], [0.6, 0.7], "equivalent", False),
    "always the same difference": ([0.75, 0.5], [0.5, 0.25], "better", True),
}


@pytest.mark.parametrize(("first", "second", "verdict", "favours_first"), CASES.values(), ids=CASES)
def test_verdict_for_typical_cases(first, second, verdict, favours_first):
    found = pair(first, second, 1)
    assert found.verdict == verdict
    if verdict.startswith("better"):
        assert found.first_is_better == favours_first


def test_two_identical_differences_are_inconclusive_among_many_pairs():
    first, second = [0.70, 0.71], [0.69, 0.70]
    assert [pair(first, second, 45, resolution=each).verdict for each in (0.0, 1e-4)] == [
        "better",
        "cannot be told apart",
    ]
    assert pair(first, second, 1, resolution=1e-4).verdict == "better"
    assert pair(first, first, 1, resolution=1e-4).verdict == "equivalent"


def test_lower_loss_is_better_without_margin():
    found = pair([1.40, 1.41, 1.42], [1.50, 1.52, 1.51], 1, margin=None, higher_is_better=False)
    assert (found.verdict, found.first_is_better, found.wins, found.needed) == ("better", True, 3, None)
    assert found.difference < 0
    assert pair([1.0, 1.1], [1.1, 1.0], 1, margin=None).verdict == "cannot be told apart"


def test_constant_values_lack_correlation_and_ties_count_half():
    found = pair([0.5, 0.5, 0.6], [0.5, 0.5, 0.5], 1)
    assert (found.correlation, found.wins) == (None, 2)


OUTCOMES = {"ties": [1.0] * 20 + [0.0] * 6 + [-1.0] * 6, "none": [1.0] * 24 + [-1.0] * 8}


@pytest.mark.parametrize("gains", OUTCOMES.values(), ids=OUTCOMES)
def test_outperforming_probability_matches_scipy_bootstrap_interval(gains):
    def wins(gains, axis):
        return (np.sign(gains) + 1).mean(axis) / 2

    found = estimate_outperforming(gains)
    drawn = stats.bootstrap((gains,), wins, n_resamples=100_000, method="percentile", rng=np.random.default_rng(0))
    assert found.probability == wins(np.array(gains), 0)
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.5 / len(gains))
    assert found.is_meaningful


def test_outperforming_probability_needs_29_seeds_and_swaps_sides():
    first, second = list(np.linspace(0.6, 0.7, 29)), [0.61] * 29
    assert pair(first[:28], second[:28], 1).outperforming is None
    found = pair(first, second, 1)
    there = pair(second, first, 1).outperforming
    turned = found.swap()
    assert found.outperforming == estimate_outperforming(np.subtract(first, second))
    assert (turned.outperforming.probability, turned.outperforming.low) == pytest.approx((there.probability, there.low))
    assert (turned.difference, turned.low, turned.high, turned.wins) == pytest.approx(
        (-found.difference, -found.high, -found.low, 29 - found.wins)
    )
    assert (found.is_significant, turned.first_is_better) == (True, False)


def test_coin_flip_outcomes_are_not_meaningful():
    assert not estimate_outperforming([1.0, -1.0] * 15).is_meaningful
    assert not estimate_outperforming(
        [1.0] * 190 + [-1.0] * 110
    ).is_meaningful  # told from a coin's, and surely below 0.75


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_required_seeds_match_published_tables(effect, n):
    """Of the two-sided paired t test at 5 %, with 80 % power; as G*Power gives them for Cohen's three effects."""
    assert compute_seeds_needed(effect, 1.0, 1) == n
    assert compute_power(effect, 1.0, n - 1, 1) < 0.8 <= compute_power(effect, 1.0, n, 1)


def test_required_seeds_have_limits():
    assert compute_seeds_needed(0.005, 0.0, 3) == 2
    assert compute_seeds_needed(0.005, 100.0, 3) is None
    assert compute_seeds_needed(0.5, 1.0, 3) > compute_seeds_needed(0.5, 1.0, 1)


ROUNDS = 1500
MOST = simulation.most(ALPHA, ROUNDS)


@pytest.mark.parametrize("correlation", simulation.CORRELATIONS)
@pytest.mark.parametrize("n", simulation.SEEDS)
def test_false_better_rate_is_bounded(n, correlation):
    assert 0 < simulation.false_better(n, correlation, ROUNDS) <= MOST


@pytest.mark.parametrize("n", simulation.SEEDS)
def test_simultaneous_intervals_cover_true_differences(n):
    assert 0 < simulation.missed(n, 0.5, ROUNDS) <= MOST


@pytest.mark.parametrize("n", simulation.SEEDS)
def test_difference_at_margin_is_rarely_equivalent(n):
    at_the_margin, without = (simulation.equivalent(n, 0.5, each, ROUNDS) for each in (simulation.MARGIN, 0.0))
    assert at_the_margin <= MOST < without
