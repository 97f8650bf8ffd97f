"""Scores over several studies, their intervals, and the page."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from optlab.analysis import comparison
from optlab.config import loader
from optlab.ranking import across, across_page
from optlab.ranking.across import Workload
from optlab.ranking.costs import COSTS_FILE, StepCost, read_costs
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


def test_intervals_contain_value():
    scores = get_scores([A, B])
    for each in scores.values():
        assert each.score.low <= each.score.value <= each.score.high
        assert each.rank.low <= each.rank.value <= each.rank.high
    assert scores["ref"].score.low == scores["ref"].score.high == 0.5
    # In a quarter of the resamples, `fast` needs 20 in b: (0.75 + 0.25) / 2.
    assert scores["fast"].score.low == pytest.approx(0.5)


def test_places_come_from_exact_permutation_tests():
    """Of 2^n exchanges, only none and all give differences as large: p = 2 / 2^n, times three pairs."""
    fast, medium, slow = [1.0] * 7, [2.0] * 7, [3.0] * 7
    assert across.find_places([[medium, fast, slow]]) == [(2, 2), (1, 1), (3, 3)]  # 6 / 128
    assert across.find_places([[each[:6] for each in (medium, fast, slow)]]) == [(1, 3)] * 3  # 6 / 64
    never = [math.inf] * 7
    assert across.find_places([[fast, never, never]]) == [(1, 1), (2, 3), (2, 3)]


def test_equal_optimizers_get_different_places_rarely():
    """The family-wise error; a bootstrap of differences has 31 % here."""
    generator, wrong = np.random.default_rng(3), 0
    for _ in range(200):
        times = np.exp(0.1 * generator.standard_normal((2, 5, 5)))  # workloads, optimizers, replicates
        wrong += across.find_places(times.tolist()) != [(1, 5)] * 5
    assert wrong <= 20  # at 5 %, more than 20 of 200 have a probability of 0.1 %


def test_rounding_decides_no_place():
    times = np.array([[144.0, 38.0, 64.0], [38.0, 64.0, 144.0]])
    assert across.find_places([[[each] * 5 for each in column] for column in times.T.tolist()]) == [(1, 2), (1, 2)]


def test_bootstrap_draws_same_replicates_for_all_optimizers():
    """A seed that is slow for both says nothing about their ratio."""
    paired = make_workload("x", {"ref": (10, 20, 40, 80, 160), "other": (5, 10, 20, 40, 80)})
    other = get_scores([paired])["other"]
    assert other.score.low == other.score.high == 0.75


def test_reference_and_twin_are_equal_where_neither_reaches_target():
    """In about a third of the resamples of each study, at least three of five replicates do not."""
    times = (100, 100, 100, math.inf, math.inf)
    twin = get_scores([make_workload(name, {"ref": times, "twin": times}) for name in "xy"])["twin"]
    assert (twin.score.value, twin.score.low, twin.score.high) == (0.5, 0.5, 0.5)


def test_diverged_replicate_ranks_last():
    workload = make_workload("x", {"ref": (1, 1), "other": (1, 1)}, {"ref": (0.5, 0.5), "other": (0.9, -math.inf)})
    assert {name: each.rank.value for name, each in get_scores([workload]).items()} == {"ref": 1.0, "other": 2.0}


@pytest.fixture
def studies(tmp_path):
    """Two committed studies and a third without a target; the record is linked."""
    for name, target in (("conv6", 0.8), ("optimizers", 0.6), ("tuned", None)):
        folder = tmp_path / name
        folder.mkdir()
        text = (TOP / "studies" / name / "params.yaml").read_text()
        text = re.sub(r", target: [\d.]+", "", text)
        (folder / "params.yaml").write_text(text.replace("margin:", f"target: {target}, margin:") if target else text)
        for part in ("runs", "tuning"):
            (folder / part).symlink_to(TOP / "studies" / name / part)
    return tmp_path


def test_page_compares_recorded_studies(studies):
    text = across_page.write(studies, "adamw")
    assert (studies / "ACROSS.md").read_text() == text
    assert (studies / "across.png").read_bytes().startswith(b"\x89PNG")
    assert "**Over 2 studies, muon reaches the target accuracy fastest.**" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert [(row[1], row[3]) for row in rows[1:]] == [("muon", "0.84"), ("nesterov", "1.00"), ("adamw", "1.00")]
    assert "Left out: tuned (has no target)." in text
    assert across_page.render(studies, "adamw")[0] == text


def test_study_that_is_left_out_does_not_narrow_the_optimizers(studies):
    """A third one without a record has fewer optimizers."""
    (studies / "other").mkdir()
    text = (studies / "conv6" / "params.yaml").read_text()
    (studies / "other" / "params.yaml").write_text(re.sub(r"(?m)^  muon:.*\n(    .*\n)*", "", text))
    page = across_page.render(studies, "adamw")[0]
    assert "| muon |" in page and "other (has no complete record)" in page


def test_comparison_with_a_study_is_no_further_study(studies):
    """`optlab versus` writes such a pipeline; its other runs are those of the study."""
    folder = studies / "conv6-mine"
    shutil.copytree(studies / "conv6", folder, symlinks=True)
    (folder / "dvc.yaml").write_text("stages: {compare: {cmd: python pipeline/versus.py ../conv6}}\n")
    page = across_page.render(studies, "adamw")[0]
    assert "**Over 2 studies" in page and "conv6-mine (compares one optimizer with a study)" in page


def test_costs_belong_to_the_class_of_the_catalogue(monkeypatch, small_config):
    monkeypatch.chdir(TOP)
    training = {"batch_size": 64, "precision": "fp32"}
    entries = {
        "adam": {"class": "SGD"},
        "schedule_free": {"class": "SGD"},
        "muon": {"class": "pytorch_optimizer.Muon"},
        "nesterov": {"class": "SGD"},
    }
    config = small_config(training=training, optimizers=entries)
    assert set(read_costs(COSTS_FILE, config)) >= {"muon", "nesterov"}
    assert not {"adam", "schedule_free"} & set(read_costs(COSTS_FILE, config))


def test_committed_page_equals_records(monkeypatch):
    monkeypatch.chdir(TOP)
    assert (TOP / "studies" / "ACROSS.md").read_text() == across_page.render(Path("studies"), "adamw")[0]


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("conv6", "seeds: [20, 21, 22, 23, 24]", "seeds: [20, 21, 22, 23]", "fewer than 5 seeds"),
        ("conv6", "seeds: [20, 21, 22, 23, 24]", "seeds: [20, 21, 22, 23, 25]", "no complete record"),
        ("conv6", "target: 0.8", "target: 0.99", "a target that `adamw` does not reach"),
        ("conv6", "  adamw:", "  another:", "does not have `adamw`"),
    ],
)
def test_study_that_cannot_be_compared_is_named(studies, name, old, new, reason):
    path = studies / name / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=rf"and 1 can be used \(.*{name} (has )?{reason}"):
        across_page.render(studies, "adamw")


def test_missing_folder_and_lone_optimizer_are_errors(studies, tmp_path):
    with pytest.raises(ConfigError, match="nope: no such folder"):
        across_page.render(tmp_path / "nope", "adamw")
    path = studies / "optimizers" / "params.yaml"
    path.write_text(re.sub(r"(?m)^  (nesterov|muon):.*\n(    .*\n)*", "", path.read_text()))
    with pytest.raises(ConfigError, match="have only `adamw` in common"):
        across_page.render(studies, "adamw")


def test_times_include_gradients_and_own_work(tmp_path, monkeypatch):
    folder = TOP / "studies" / "conv6"
    config = loader.load(folder / "params.yaml")
    names, compared = list(config.optimizers), comparison.collect(config, folder)
    monkeypatch.setattr(across, "COSTS_FILE", tmp_path / "COSTS.md")
    plain = across.make_workload("conv6", compared, names)
    rows = "".join(f"| {name} | 1.0 | 25.0 % (1 – 2) |\n" for name in names[1:])
    (tmp_path / "COSTS.md").write_text(f"# T\n\n## conv6\n\nCPU, 1 thread, batch 128, fp32; x\n\n{rows}")
    assert not across.make_workload("conv6", compared, names).has_costs
    dear = across.make_workload("conv6", compared, names[1:])
    assert (plain.has_costs, dear.has_costs) == (False, True)
    for name in names[1:]:
        np.testing.assert_allclose(dear.times[name], np.array(plain.times[name]) * 1.25)


def test_costs_belong_to_network_batch_and_precision(tmp_path, small_config):
    path = tmp_path / "COSTS.md"
    head = "CPU, 1 thread, batch 16, fp32; 10 rounds\n\n"
    path.write_text(
        f"# T\n\n## zilliax\n\n{head}| adam | 2.0 | 3.0 % (2 – 4) |\n\n## two\n\n| sgd | 0.0 | 0.1 % (0 – 1) |\n"
    )
    assert read_costs(path, small_config()) == {"adam": StepCost(2.0, 0.03)}
    assert read_costs(path, small_config(training={"batch_size": 20})) == {}
    assert read_costs(path, small_config(model="conv6")) == read_costs(tmp_path / "none", small_config()) == {}
    assert "muon" in read_costs(TOP / "benchmarks" / "COSTS.md", loader.load(TOP / "studies/optimizers/params.yaml"))
