"""Performance profiles, and AlgoPerf's published tables computed again."""

import csv
import math
from pathlib import Path

import numpy as np

from optlab.ranking.performance_profile import (
    compute_algoperf_ratios,
    compute_algoperf_scores,
    compute_log_scores,
    compute_profile,
    compute_ratios,
)

ALGOPERF = Path(__file__).parent / "data" / "algoperf"


def read_table(name):
    """The column heads, the row heads, and the numbers; an empty cell is a target that was not reached."""
    with (ALGOPERF / name).open() as file:
        header, *rows = csv.reader(file)
    return header[1:], [row[0] for row in rows], np.array([[float(cell or "inf") for cell in row[1:]] for row in rows])


def test_algoperf_scores_and_profiles_are_those_published():
    _, submissions, times = read_table("time_to_targets.csv")
    _, scored, scores = read_table("scores.csv")
    factors, profiled, profiles = read_table("performance_profile.csv")
    assert submissions == scored == profiled and len(submissions) == 17
    assert np.isinf(times).all(axis=0).sum() == 1
    np.testing.assert_allclose(compute_algoperf_scores(times), scores[:, 0], rtol=0, atol=1e-12)
    computed = compute_profile(compute_algoperf_ratios(times), [float(each) for each in factors])
    np.testing.assert_allclose(computed, profiles, rtol=0, atol=1e-12)


def test_workload_that_nobody_finishes_counts_for_nobody():
    assert compute_algoperf_scores(np.array([[1.0, math.inf], [8.0, math.inf]])).tolist() == [0.5, 0.0]


def test_log_score_is_mean_height_of_profile():
    generator = np.random.default_rng(0)
    ratios = np.exp(generator.normal(0, 1.5, size=(4, 6)))
    ratios[0, 0], ratios[1, 1] = math.inf, 0.0
    edges = np.linspace(-math.log(4), math.log(4), 200_001)
    profile = compute_profile(ratios, np.exp((edges[:-1] + edges[1:]) / 2))  # midpoints
    np.testing.assert_allclose(compute_log_scores(ratios), profile.mean(axis=1), atol=1e-5)


def test_log_score_limits_factors():
    ratios = np.array([[1.0], [0.5], [2.0], [0.25], [0.01], [4.0], [math.inf]])
    assert compute_log_scores(ratios).tolist() == [0.5, 0.75, 0.25, 1.0, 1.0, 0.0, 0.0]


def test_target_that_is_not_reached_has_infinite_ratio():
    times = np.array([[math.inf, math.inf, 3.0], [math.inf, 2.0, 6.0]])
    assert compute_ratios(times, times[0]).tolist() == [[math.inf, math.inf, 1.0], [math.inf, 0.0, 2.0]]
