"""The variance over seeds is split as simulations with a known truth have it."""

import numpy as np
import pytest

from optlab.analysis import scatter
from optlab.analysis.translation import use_language
from optlab.records import EvalRecord, encode_mask


def simulate(generator, m, quality):
    """Right or wrong, shape (n, m), of n networks that are so much better on all images; and the chance's variance."""
    p = generator.uniform(0.3, 0.7, m)
    return generator.random((len(quality), m)) < p + quality[:, None], float((p * (1 - p)).sum()) / m**2


def make_records(correct):
    return [
        EvalRecord(
            status="completed", confusion=[[int(row.sum()), int((~row).sum())], [0, 0]], correct=encode_mask(row)
        )
        for row in correct
    ]


def test_sd_is_that_of_accuracies():
    correct, _ = simulate(np.random.default_rng(0), 1000, np.array([0.0, 0.02, 0.03]))
    found = scatter.split_variance(correct)
    assert found.n == 3 and found.sd == pytest.approx(np.std(correct.mean(1), ddof=1))


def test_chance_is_unbiased_for_few_runs():
    """Three runs: without the factor 3/2 it would be a third too small."""
    correct, chance = simulate(np.random.default_rng(0), 10_000, np.array([-0.05, 0.0, 0.05]))
    found = scatter.split_variance(correct)
    assert found.sd**2 * (1 - found.networks_share) == pytest.approx(chance, rel=0.03)


@pytest.mark.parametrize("networks_sd", [0.0, 0.01, 0.02, 0.04])
def test_shares_of_known_truth(networks_sd):
    generator = np.random.default_rng(1)
    correct, chance = simulate(generator, 1000, generator.normal(0, networks_sd, 1000))
    truth = networks_sd**2 / (networks_sd**2 + chance)
    found = scatter.split_variance(correct)
    assert found.networks_share == pytest.approx(truth, abs=0.05) and found.low <= truth <= found.high


def test_networks_right_or_wrong_on_all_images():
    """All of the variance is the networks', but for each image's share in itself, 1/m."""
    assert scatter.split_variance(np.tile([[True], [False], [True]], 10)).networks_share == pytest.approx(0.9)


def test_share_is_at_least_zero():
    """Two runs that are right on other images, 10 and 9: less than chance would differ."""
    first = np.arange(19) < 10
    found = scatter.split_variance(np.stack([first, ~first]))
    assert found.sd > 0 and found.networks_share == found.low == 0 < found.high


def test_interval_covers_the_truth():
    generator, n_covered = np.random.default_rng(2), 0
    for _ in range(400):
        correct, chance = simulate(generator, 400, generator.normal(0, 0.025, 5))
        found = scatter.split_variance(correct)
        n_covered += found.low <= 0.025**2 / (0.025**2 + chance) <= found.high
    assert 0.93 < n_covered / 400 < 0.97


def test_records_without_answers_have_no_scatter():
    correct, _ = simulate(np.random.default_rng(0), 100, np.array([0.0, 0.1, 0.2]))
    whole = make_records(correct)
    assert scatter.compute_scatter(whole) == scatter.split_variance(correct)
    assert scatter.compute_scatter(whole[:1]) is None and scatter.compute_scatter([]) is None
    assert scatter.compute_scatter([*whole, EvalRecord(status="completed", test_accuracy=0.5)]) is None


def test_description_of_scatter():
    correct = np.zeros((3, 100), dtype=bool)
    correct[0, :60] = correct[1, :50] = correct[2, 10:50] = True
    # Accuracies of 60, 50 and 40 %: sd 10 points, chance in 10 images of (1, 1, 0) and 10 of (1, 0, 0): 1/3 each.
    records = {"adam": make_records(correct), "sgd": make_records(correct[[0, 0]]), "one": make_records(correct[:1])}
    assert scatter.describe(records) == (
        "Standard deviation of the seeds' test accuracies, and the share of that variance that is a real difference "
        "between the trained networks, with its 95 % interval: adam 10.00 points, 93 % (75 to 100 %). The rest is "
        "attributed to chance in single test images. More seeds narrow these intervals and those of the means; they "
        "make neither part smaller."
    )
    assert scatter.describe({"old": 2 * [EvalRecord(status="completed", test_accuracy=0.5)]}) == (
        "How much of the scatter of the seeds comes from the test images is not known for old: their records do not "
        "say which images are right."
    )
    assert scatter.describe({"one": make_records(correct[:1])}) == ""


def test_chinese_sentences_are_not_separated_by_spaces():
    correct, _ = simulate(np.random.default_rng(0), 100, np.array([0.0, 0.1, 0.2]))
    records = {"adam": make_records(correct), "old": 2 * [EvalRecord(status="completed", test_accuracy=0.5)]}
    with use_language("zh"):
        text = scatter.describe(records)
    assert "都不会因此变小。old 各种子" in text
