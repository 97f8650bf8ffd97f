"""Scores over several studies, their intervals, and the page."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from optlab.config import loader
from optlab.ranking import across, across_page
from optlab.ranking.across import Workload
from optlab.ranking.costs import StepCost, read_costs
from optlab.system.errors import ConfigError

TOP = Path(__file__).resolve().parents[1]


def make_workload(name, times, accuracies=None):
    """A workload with the given times, and seeds to their number."""
    config = loader.load(TOP / "studies" / "conv6" / "params.yaml")
    n = len(next(iter(times.values())))
    config = config.model_copy(update={"seeds": list(range(n))})
    accuracies = accuracies or {key: tuple(0.8 - 0.0001 * each for each in values) for key, values in times.items()}
    return Workload(name, config, 0.8, times, accuracies, has_costs=True)


A = make_workload("a", {"ref": (9, 10, 10, 10, 11), "fast": (4, 5, 5, 5, 6), "never": (math.inf,) * 5})
B = make_workload("b", {"ref": (10, 10, 10), "fast": (20, 5, 5), "never": (math.inf, math.inf, 1), "more": (1, 1, 1)})


def get_scores(workloads, reference="ref"):
    return {each.optimizer: each for each in across.compute_scores(workloads, reference)}


def test_scores_use_median_replicate_of_common_optimizers():
    scores = get_scores([A, B])
    assert list(scores) == ["fast", "ref", "never"]
    assert [each.score.value for each in scores.values()] == [0.75, 0.5, 0.0]
    assert scores["fast"].ratios == (0.5, 0.5) and scores["never"].ratios == (math.inf, math.inf)
    assert [each.rank.value for each in scores.values()] == [1.25, 1.75, 3.0]  # a tie in the second


def test_target_counts_as_reached_by_half_of_replicates():
    """As the median of the Kaplan-Meier estimate: two of four replicates suffice, one does not."""
    two = make_workload("x", {"ref": (1, 1, 1, 1), "other": (2, 2, math.inf, math.inf)})
    one = make_workload("x", {"ref": (1, 1, 1, 1), "other": (2, math.inf, math.inf, math.inf)})
    assert [get_scores([each])["other"].ratios for each in (two, one)] == [(2.0,), (math.inf,)]


def test_score_does_not_depend_on_other_optimizers():
    fewer = [
        Workload(
            each.name, each.config, 0.8, {k: v for k, v in each.times.items() if k != "never"}, each.accuracies, True
        )
        for each in (A, B)
    ]
    assert get_scores(fewer)["fast"].score == get_scores([A, B])["fast"].score


def test_intervals_contain_value_and_give_places():
    scores = get_scores([A, B])
    for each in scores.values():
        assert each.score.low <= each.score.value <= each.score.high
        assert each.rank.low <= each.rank.value <= each.rank.high
    assert scores["ref"].score.low == scores["ref"].score.high == 0.5
    # In a quarter of the resamples, `fast` needs 20 in b: (0.75 + 0.25) / 2.
    assert scores["fast"].score.low == pytest.approx(0.5)
    assert [each.place for each in scores.values()] == [(1, 2), (1, 3), (2, 3)]


def test_bootstrap_draws_same_replicates_for_all_optimizers():
    """A seed that is slow for both says nothing about their ratio."""
    paired = make_workload("x", {"ref": (10, 20, 40, 80, 160), "other": (5, 10, 20, 40, 80)})
    other = get_scores([paired])["other"]
    assert other.score.low == other.score.high == 0.75


def test_diverged_replicate_ranks_last():
    workload = make_workload("x", {"ref": (1, 1), "other": (1, 1)}, {"ref": (0.5, 0.5), "other": (0.9, -math.inf)})
    assert {name: each.rank.value for name, each in get_scores([workload]).items()} == {"ref": 1.0, "other": 2.0}


@pytest.fixture
def studies(tmp_path):
    """Two committed studies and a third without a target; the record is linked."""
    for name, target in (("conv6", 0.8), ("optimizers", 0.55), ("tuned", None)):
        folder = tmp_path / name
        folder.mkdir()
        text = (TOP / "studies" / name / "params.yaml").read_text()
        text = re.sub(r"target: [\d.]+, ", "", text)
        (folder / "params.yaml").write_text(text.replace("margin:", f"target: {target}, margin:") if target else text)
        for part in ("runs", "tuning"):
            (folder / part).symlink_to(TOP / "studies" / name / part)
    return tmp_path


def test_page_compares_recorded_studies(studies):
    text = across_page.write(studies, "adamw")
    assert (studies / "ACROSS.md").read_text() == text
    assert (studies / "across.png").read_bytes().startswith(b"\x89PNG")
    assert "**Over 2 studies, muon is the fastest to the target accuracy**" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert [(row[1], row[3]) for row in rows[1:]] == [("muon", "0.83"), ("adamw", "1.00"), ("nesterov", "1.00")]
    assert "Left out: tuned (has no target)." in text
    assert across_page.render(studies, "adamw")[0] == text


def test_page_names_reference_that_too_few_studies_have(studies):
    with pytest.raises(
        ConfigError, match=r"two studies .* and lion are needed, and 1 can be used .*conv6 does not have"
    ):
        across_page.render(studies, "lion")


def test_page_says_what_few_replicates_cover(studies):
    """Five replicates have a smallest and a largest that contain the median with 1 - 2 / 2^5."""
    text = across_page.render(studies, "adamw")[0]
    (conv6, optimizers) = (line for line in text.splitlines() if line.startswith("- ["))
    assert "The range of 5 replicates contains the median with a probability of 93.8 %" in conv6
    assert "The range of" not in optimizers


def test_times_include_gradients_and_own_work():
    folder = TOP / "studies" / "conv6"
    plain = across.load_workload(folder, {})
    costs = {name: StepCost(0, 0.25) for name in plain.times}
    dear = across.load_workload(folder, costs)
    assert (plain.has_costs, dear.has_costs) == (False, True)
    for name, times in plain.times.items():
        np.testing.assert_allclose(dear.times[name], np.array(times) * 1.25)
    assert not across.load_workload(folder, {"muon": costs["muon"]}).has_costs


def test_costs_belong_to_network(tmp_path):
    path = tmp_path / "COSTS.md"
    path.write_text("# T\n\n## one\n\n| sgd | 0.0 | 0.1 % (0 – 1) |\n\n## two\n\n| adam | 2.0 | 3.0 % (2 – 4) |\n")
    assert read_costs(path, "two") == {"adam": StepCost(2.0, 0.03)}
    assert read_costs(path, "three") == read_costs(tmp_path / "none", "two") == {}
    assert "muon" in read_costs(TOP / "benchmarks" / "COSTS.md", "zilliax")
