"""Means, tests of differences and probabilities against scipy, published numbers and simulated seeds."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import simulation
from scipy import stats

from optlab.analysis import pair_tests, sequential
from optlab.analysis.mean_ci import ALPHA, compute_mean_ci
from optlab.analysis.outperforming import estimate_outperforming
from optlab.analysis.pair_tests import compare_means, compute_detectable_effect, compute_power
from optlab.analysis.sequential import Plan
from optlab.analysis.tables import format_p

MARGIN = 0.005


def draw(n, correlation, means, deviations=None, rounds=1):
    return np.concatenate([*simulation.draw(means, deviations or [0.01] * len(means), n, correlation, rounds)])


def compare(first, second, looks=None, n_pairs=1, same_seeds=True, **plan):
    """One pair, looked at once unless the looks are given."""
    plan = Plan(tuple(looks or [len(first)]), n_pairs, **({"margin": MARGIN} | plan))
    seeds = {"a": range(len(first)), "b": range(len(second)) if same_seeds else range(100, 100 + len(second))}
    return sequential.compare_pairs({"a": first, "b": second}, [("a", "b")], plan, seeds)["a", "b"]


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_ci_matches_scipy(n):
    values = draw(n, 0.0, [0.6])[0, 0]
    found = compute_mean_ci(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
    assert (found.n, found.mean, found.sd) == (n, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_single_run_has_no_interval():
    found = compute_mean_ci([0.5])
    assert (found.n, found.mean, found.sd, found.half_width) == (1, 0.5, None, None)


@pytest.mark.parametrize(("n", "n_pairs", "looks"), [(3, 1, [3]), (5, 3, [5]), (10, 36, [10]), (2, 1, [2])])
def test_unpaired_comparison_matches_scipy(n, n_pairs, looks):
    first, second = draw(n, 0.0, [0.612, 0.6], [0.01, 0.03])[0]
    found = compare(first, second, looks, n_pairs, same_seeds=False)
    there = stats.ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(min(1, n_pairs * there.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(there.confidence_interval(1 - ALPHA / n_pairs)))
    assert (found.wins, found.correlation, found.is_paired) == (None, None, False)


def test_interval_contains_difference_that_intersection_misses():
    """The first look says that the difference is large, the second one that it is less so."""
    later = [0.70, 0.7001, 0.6999] + [0.65] * 2
    found = compare(later, [0.60, 0.6001, 0.5999, 0.60, 0.6001], looks=[3, 5])
    assert compare(later[:3], [0.60, 0.6001, 0.5999], looks=[3, 5]).low > found.difference > 0
    assert found.low == found.difference < found.high and found.verdict == "better"


def test_unequal_numbers_of_seeds_match_scipy():
    first, second = draw(9, 0.0, [0.612, 0.6], [0.01, 0.03])[0]
    look = pair_tests.compare_means(first, second[:4], ALPHA, same_seeds=False)
    there = stats.ttest_ind(first, second[:4], equal_var=False)
    assert (look.p, look.df) == (pytest.approx(there.pvalue), pytest.approx(there.df))


def test_comparison_is_paired_where_correlation_is_high():
    """The lower bound of the correlation decides: 0.95 of twelve seeds is enough, and 0.6 is not."""
    first, second = draw(12, 0.95, [0.612, 0.6])[0]
    found, there = compare(first, second), stats.ttest_rel(first, second)
    assert (found.is_paired, found.correlation) == (True, pytest.approx(np.corrcoef(first, second)[0, 1]))
    assert found.p == pytest.approx(there.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(there.confidence_interval(0.95)))
    assert found.wins == sum(np.array(first) > np.array(second))
    unrelated = draw(12, 0.0, [0.612, 0.6])[0]
    assert not compare(*unrelated).is_paired
    assert not compare(first, second, same_seeds=False).is_paired


def test_pairing_uses_lower_bound_of_correlation():
    """A correlation of 0.5 would narrow the interval of eight seeds, its lower 95 % bound of -0.19 would not."""
    base, other = np.array([1.0, -1, 1, -1, 1, -1, 1, -1]), np.array([1.0, 1, -1, -1, 1, 1, -1, -1])
    second = 0.5 * base + np.sqrt(0.75) * other
    look = pair_tests.compare_means(base, second, ALPHA)
    assert (look.correlation, look.is_paired) == (pytest.approx(0.5), False)
    assert stats.ttest_rel(base, second).confidence_interval()[1] < look.compute_half_width(ALPHA)
    assert pair_tests.compare_means(np.tile(base, 8), np.tile(second, 8), ALPHA).is_paired


def test_p_is_multiplied_by_planned_looks_and_pairs_and_never_grows():
    first, second = draw(12, 0.0, [0.61, 0.6])[0]
    one, three = compare(first, second, [12]), compare(first, second, [12, 20, 30])
    assert three.p == pytest.approx(3 * one.p)
    assert compare(first, second, [12], n_pairs=5).p == pytest.approx(5 * one.p)
    looks = [3, 5, 8, 12]
    p = [compare(first[:n], second[:n], looks).p for n in looks]
    assert p == sorted(p, reverse=True)
    assert p[-1] == pytest.approx(min(4 * compare(first[:n], second[:n], [n]).p for n in looks))


def test_earlier_attempts_shrink_the_error():
    first, second = draw(12, 0.0, [0.61, 0.6])[0]
    alone, sixth = compare(first, second), compare(first, second, alpha=ALPHA / 6)
    assert sixth.p == pytest.approx(6 * alone.p)
    assert sixth.high - sixth.low > alone.high - alone.low


def test_seeds_beyond_a_look_wait_for_the_next():
    first, second = draw(12, 0.0, [0.65, 0.6])[0]
    assert compare(first[:11], second[:11], [3, 8, 12]) == compare(first[:8], second[:8], [3, 8, 12])
    assert compare(first, second, [3, 8, 12]).n == 12
    plan, seeds = Plan((3, 8), 1), {"a": range(2), "b": range(2)}
    assert sequential.compare_pairs({"a": [0.1, 0.2], "b": [0.1, 0.3]}, [("a", "b")], plan, seeds) == {}


def test_holm_adjustment_matches_published_example():
    """Holm's procedure as of R's `p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")`."""
    p = np.array([0.03, 0.01, 0.05, 0.02, 0.04])[:, None]
    assert sequential._adjust_holm(p, 5)[:, 0] == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert sequential._adjust_holm(p[:2], 5)[:, 0] == pytest.approx([0.12, 0.05])  # three pairs have no values


def test_interval_never_contradicts_the_verdict():
    """Over all looks: told stays told, intervals only shrink, and "better" never stands beside 0 within an interval."""
    for means, spread in itertools.product([(0.6, 0.602, 0.61), (0.61, 0.602, 0.6)], (0.004, 0.01)):
        found = simulation.judge(draw(30, 0.2, means, [spread] * 3, 300), margin=0.004)
        told, (low, high) = found.sign != 0, sequential.cut_at_zero(found.low, found.high, found.sign)
        width = high - low
        assert ((found.sign[..., 1:] == found.sign[..., :-1]) | ~told[..., :-1]).all()
        assert (np.diff(found.is_equivalent.astype(int)) >= 0).all()
        assert (np.diff(width) <= 1e-12).all()
        assert (width >= 0).all()
        assert (low >= 0)[found.sign > 0].all()
        assert (high <= 0)[found.sign < 0].all()
        is_told_by_interval = (found.low > 0) | (found.high < 0)
        assert (low == found.low)[is_told_by_interval].all()
        assert (high == found.high)[is_told_by_interval].all()
        assert (told == (found.p <= ALPHA))[..., 0].all()
        only_holm = told & ((low == 0) | (high == 0))
        assert told.any()
        assert only_holm.any()


def test_sign_that_was_told_survives_a_later_contradiction():
    first = np.array([0.70, 0.701, 0.699, *[0.2] * 17])
    second = np.array([0.60, 0.601, 0.599, *np.linspace(0.89, 0.91, 17)])
    early, late = (compare(first[:n], second[:n], [3, 20]) for n in (3, 20))
    assert (early.verdict, early.first_is_better) == ("better", True)
    assert (late.verdict, late.first_is_better) == ("better", True)
    assert late.difference < 0 <= late.low <= late.high


def test_equivalent_verdict_matches_two_one_sided_tests():
    margin, verdicts = 0.0125, set()
    for first, second in draw(10, 0.0, [0.6, 0.6], rounds=400):
        found = compare(first, second, same_seeds=False, margin=margin)
        low = stats.ttest_ind(first + margin, second, equal_var=False, alternative="greater").pvalue
        high = stats.ttest_ind(first - margin, second, equal_var=False, alternative="less").pvalue
        if found.p >= ALPHA:
            assert (found.verdict == "equivalent") == (max(low, high) < ALPHA)
        verdicts.add(found.verdict)
    assert {"equivalent", "undecided"} <= verdicts


def test_equivalence_is_corrected_for_looks():
    first, second = draw(10, 0.0, [0.6, 0.6], [0.005, 0.005])[0]
    margins = np.linspace(0.001, 0.02, 400)
    for looks in ([10], [10, 20, 30, 40]):
        smallest = next(m for m in margins if compare(first, second, looks, margin=m).verdict == "equivalent")
        there = stats.ttest_ind(first, second, equal_var=False).confidence_interval(1 - 2 * ALPHA / len(looks))
        assert smallest == pytest.approx(np.abs(there).max(), abs=1e-4)


CASES = {
    "better": ([0.70, 0.71, 0.72], [0.60, 0.61, 0.62001], "better", True),
    "worse": ([0.60, 0.61, 0.62001], [0.70, 0.71, 0.72], "better", False),
    "by little": ([0.6030, 0.6031, 0.6029], [0.600, 0.6001, 0.5999], "better, by less than the margin", True),
    "equivalent": ([0.6010, 0.6002, 0.6021], [0.601, 0.600, 0.602], "equivalent", True),
    "too noisy": ([0.60, 0.70, 0.65], [0.65, 0.60, 0.70], "undecided", False),
    "the same": ([0.6, 0.7], [0.6, 0.7], "equivalent", False),
}


@pytest.mark.parametrize(("first", "second", "verdict", "favours_first"), CASES.values(), ids=CASES)
def test_verdict_for_typical_cases(first, second, verdict, favours_first):
    found = compare(first, second)
    assert found.verdict == verdict
    if verdict.startswith("better"):
        assert found.first_is_better == favours_first


@pytest.mark.parametrize("n", [3, 5, 30])
def test_twins_with_the_same_seeds_are_equivalent(n):
    values = draw(n, 0.0, [0.6], [0.03])[0, 0]
    for first in (values, [0.6] * n):
        found = compare(first, first, [3, 5, 8, 12, 20, 30], resolution=1e-4)
        assert (found.verdict, found.difference, found.p) == ("equivalent", 0, 1)
        assert -MARGIN < found.low < 0 < found.high < MARGIN


def test_values_that_agree_by_chance_scatter_by_rounding():
    first, second = [0.7, 0.7], [0.6999, 0.6999]
    assert compare(first, second, n_pairs=45).verdict == "better, by less than the margin"
    found = compare(first, second, n_pairs=45, resolution=1e-4)
    half = stats.t.ppf(1 - ALPHA / 90, 2) * 1e-4 / np.sqrt(12)
    assert (found.low, found.high) == pytest.approx((1e-4 - half, 1e-4 + half))
    assert found.verdict == "equivalent"


def test_lower_loss_is_better_without_margin():
    found = compare([1.40, 1.41, 1.42], [1.50, 1.52, 1.51], margin=None, higher_is_better=False)
    assert (found.verdict, found.first_is_better, found.wins) == ("better", True, 3)
    assert found.difference < 0
    assert compare([1.0, 1.1], [1.1, 1.0], margin=None).verdict == "undecided"


def test_equal_values_with_a_rounded_mean_lack_correlation():
    """The mean of three 0.1 is not 0.1, so the deviations are not 0."""
    values = np.array([0.1] * 3)
    assert math.isnan(compare_means(values, values + 0.1, ALPHA).correlation)


def test_p_shows_on_which_side_of_its_limit_it_lies():
    assert [format_p(p) for p in (0.0504, 0.05, 0.0496, 0.17, 1.2e-7)] == ["0.0504", "0.05", "0.05", "0.17", "1.2e-07"]


def test_constant_values_lack_correlation_and_ties_count_half():
    found = compare([0.5, 0.5, 0.6], [0.5, 0.5, 0.5])
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
    assert compare(first[:28], second[:28]).outperforming is None
    assert compare(first, second, same_seeds=False).outperforming is None
    found = compare(first, second)
    there = compare(second, first).outperforming
    turned = found.swap()
    assert found.outperforming == estimate_outperforming(np.subtract(first, second))
    assert (turned.outperforming.probability, turned.outperforming.low) == pytest.approx((there.probability, there.low))
    assert (turned.difference, turned.low, turned.high, turned.wins) == pytest.approx(
        (-found.difference, -found.high, -found.low, 29 - found.wins)
    )
    assert (found.is_better, turned.first_is_better) == (True, False)
    assert dataclasses.replace(found.swap().swap(), outperforming=None) == dataclasses.replace(
        found, outperforming=None
    )


def test_coin_flip_outcomes_are_not_meaningful():
    assert not estimate_outperforming([1.0, -1.0] * 15).is_meaningful
    assert not estimate_outperforming(
        [1.0] * 190 + [-1.0] * 110
    ).is_meaningful  # told from a coin's, and surely below 0.75


@pytest.mark.parametrize(("effect", "n"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_power_matches_published_tables(effect, n):
    """Of the two-sided t test of two groups at 5 %, with 80 % power: n of each group in Cohen (1988), table 2.4.1."""
    assert compute_power(effect, 1.0, n - 1, ALPHA) < 0.8 <= compute_power(effect, 1.0, n, ALPHA)
    assert compute_detectable_effect(n, ALPHA) == pytest.approx(effect, abs=0.01)
    assert compute_power(effect, 0.0, 2, ALPHA) == 1


ROUNDS = 1000
MOST = simulation.most(ALPHA, ROUNDS)
TRUTHS = {
    "two": (2, "unequal", 0.0),
    "three": (3, "equal", 0.5),
    "three unequal": (3, "unequal", 0.0),
    "three heavy": (3, "heavy", 0.0),
}


@pytest.mark.parametrize(("count", "kind", "correlation"), TRUTHS.values(), ids=TRUTHS)
def test_errors_over_all_looks_are_bounded(count, kind, correlation):
    false_better, missed, either, at_margin, without = simulation.list_errors(count, kind, correlation, ROUNDS)
    assert 0 < false_better <= MOST
    assert 0 < missed <= MOST
    assert max(false_better, missed) <= either <= false_better + missed
    assert at_margin <= MOST
    assert without > MOST


def test_looking_without_correction_is_caught():
    """The simulation sees the error of a test that is repeated at each look at 5 %."""
    (table,) = simulation.draw([0.0] * 3, [0.01] * 3, 30, 0.0, ROUNDS)
    looks = [simulation.judge(table[..., :n], [n]).sign != 0 for n in simulation.LOOKS]
    assert np.concatenate(looks, -1).any((1, 2)).mean() > 2 * MOST


def test_sequential_verdicts_need_half_the_trainings():
    means, deviations = simulation.summarize_study(["adam", "adamw", "nesterov"])
    alone, equal, decided = simulation.measure_trainings(means, deviations, ROUNDS)
    fixed = 3 * simulation.find_fixed_design(means, deviations, decided, ROUNDS)
    assert decided > 0.98
    assert alone < 0.55 * fixed
    assert alone < equal < 0.75 * fixed
