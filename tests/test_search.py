"""Which points are tried, which trials go on, and what is chosen: without a training."""

import itertools

import pytest

from optlab.records import ValidationMetrics
from optlab.schema import search_space
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import SensitivityConfig, TuningConfig
from optlab.tuning import search, selection

LR = {"lr": search_space.parse_range({"log": [0.001, 1.0]})}
STEPS = 1408
SEEDS = [0, 1]


def run_study(told, tuning=None, given=LR, study=0):
    """The trials of a study, and what was trained in each round; `told` says a trial's accuracy after so many steps."""
    trials, rounds = [], []
    asking = search.run_study(study, given, tuning or TuningConfig(), STEPS, SEEDS, trials)
    tasks = next(asking)
    while True:
        rounds.append([(trial.index, until) for trial, until in tasks])
        answers = []
        for trial, until in tasks:
            found = told(trial, until)
            answers.append(
                found if isinstance(found, str) else ValidationMetrics(step=until, loss=1 - found, accuracy=found)
            )
        try:
            tasks = asking.send(answers)
        except StopIteration:
            return trials, rounds


def accuracy_near(best):
    """The accuracy falls with the distance of the learning rate from the best one, on the logarithmic scale."""
    return lambda trial, until: 0.5 - abs(LR["lr"].map_to_unit(trial.values.get("lr", 0.001)) - best) / 10


def test_sobol_point_depends_on_seed_study_and_index():
    first = search.sample_point(0, 0, 5)
    assert len(first) == search.SOBOL_DIMENSIONS and all(0 <= each < 1 for each in first)
    search.sample_point.cache_clear()
    assert search.sample_point(0, 0, 5) == first
    assert len({search.sample_point(*each) for each in itertools.product((0, 1), (0, 1), (4, 5))}) == 8


def test_optimizers_share_sobol_points():
    """The first range takes the first coordinate, however many there are."""
    two = LR | {"momentum": search_space.parse_range({"choice": [0.0, 0.9]})}
    for index in range(4):
        place = search.sample_point(0, 0, index)
        assert search.map_point_to_ranges(two, place)["lr"] == search.map_point_to_ranges(LR, place)["lr"]


def test_first_sixteen_sobol_points_are_evenly_spread():
    """One in each sixteenth of the first coordinate: chance leaves a third of them empty."""
    assert sorted(int(16 * search.sample_point(3, 0, index)[0]) for index in range(16)) == list(range(16))


def test_trial_seeds_differ_from_confirmation_seeds():
    every = [search.derive_training_seed("trial", 0, 0, index, []) for index in range(-1, 16)]
    assert len(set(every)) == 17
    assert search.derive_training_seed("trial", 0, 0, 3, [every[4]]) not in every[:4]
    assert search.derive_training_seed("sensitivity", 0, 0, 3, []) not in every


def test_successive_halving_promotes_best_quarter_per_rung():
    trials, rounds = run_study(accuracy_near(0.5))
    assert [[until for _, until in each] for each in rounds] == [
        [88] * 12 + [1408], [352] * 3, [1408], [88] * 4, [352], [1408]
    ]  # fmt: skip
    assert [trial.index for trial in trials] == [-1, *range(16)]
    ranked = sorted(trials[1:13], key=lambda trial: abs(LR["lr"].map_to_unit(trial.values["lr"]) - 0.5))
    assert {index for index, _ in rounds[1]} == {trial.index for trial in ranked[:3]}
    assert rounds[2] == [(ranked[0].index, 1408)]


def test_trials_train_fully_without_halving():
    _, rounds = run_study(accuracy_near(0.5), TuningConfig(halving=1, trials=4))
    assert [[until for _, until in each] for each in rounds] == [[1408] * 4, [1408]]


@pytest.mark.parametrize(
    "tuning", [TuningConfig(), TuningConfig(halving=1, trials=7), TuningConfig(halving=2, trials=3)]
)
def test_search_cost_equals_trained_steps(tuning):
    _, rounds = run_study(accuracy_near(0.5), tuning)
    far = {}
    for index, until in itertools.chain(*rounds):
        far[index] = max(far.get(index, 0), until)
    assert search.compute_cost(tuning, STEPS) == sum(far.values())


def test_diverged_trial_counts_but_is_not_promoted():
    trials, rounds = run_study(lambda trial, until: "diverged" if trial.index % 2 else 0.3)
    assert len(trials) == 17 and sum(trial.failure == "diverged" for trial in trials) == 9  # the default, too
    assert all(index % 2 == 0 for index, _ in itertools.chain(*rounds[1:3]))


def test_default_is_selected_if_all_trials_diverge():
    trials, rounds = run_study(lambda trial, until: "diverged")
    assert [len(each) for each in rounds] == [13, 4]
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1.0]}})
    found = selection.select_values(spec, trials, STEPS)
    assert (found.entry, found.trial, found.validation_accuracy) == ({"class": "SGD"}, None, None)


def test_best_trial_at_edge_extends_range():
    trials, _ = run_study(accuracy_near(1.1))
    assert [trial.extended_ranges for trial in trials[1:]] == [[]] * 12 + [["lr"]] * 4
    assert all(1 <= trial.values["lr"] <= 10 for trial in trials[13:])
    for trial in trials[13:]:
        assert trial.values["lr"] == pytest.approx(10 ** search.sample_point(0, 0, trial.index)[0], rel=1e-5)
    best = search.find_best(trials, STEPS)
    assert best.extended_ranges == ["lr"] and search.find_ranges_at_edge(LR, best, trials) == []


def test_explored_edge_is_not_reported():
    """The best of the first three quarters stays the best: the decade beyond it was looked at."""

    def told(trial, until):
        return 0.1 if trial.extended_ranges else accuracy_near(1.1)(trial, until)

    trials, _ = run_study(told)
    best = search.find_best(trials, STEPS)
    assert not best.extended_ranges and search.find_edges(LR, best) == {"lr": 1}
    assert search.find_ranges_at_edge(LR, best, trials) == []
    assert search.find_ranges_at_edge(LR, best, trials[:13]) == ["lr"]


@pytest.mark.parametrize(("best", "still"), [(0.5, []), (5.0, ["lr"]), (-3.0, ["lr"])])
def test_best_trial_still_at_edge_is_reported(best, still):
    trials, _ = run_study(accuracy_near(best), TuningConfig(trials=64))
    assert search.find_ranges_at_edge(LR, search.find_best(trials, STEPS), trials) == still


def test_accuracy_tie_prefers_lower_loss_then_index():
    made = [search.Trial(0, index, 0, {}, validations=[ValidationMetrics(step=STEPS, loss=loss, accuracy=0.5)])
            for index, loss in ((3, 0.2), (1, 0.1), (0, 0.1))]  # fmt: skip
    assert search.find_best(made, STEPS).index == 0
    assert search.find_best(made[:1], STEPS + 1) is None


def test_best_default_is_selected():
    trials, _ = run_study(lambda trial, until: 0.9 if trial.index == search.DEFAULT_INDEX else 0.1)
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1.0]}, "default": {"lr": 0.3}})
    found = selection.select_values(spec, trials, STEPS)
    assert (found.entry, found.trial, found.validation_accuracy) == ({"class": "SGD", "lr": 0.3}, None, 0.9)


def test_sensitivity_grid_spans_learning_rates_and_seeds():
    chosen, grid, trials = (
        search.Trial(0, 2, 0, {"lr": 0.1, "momentum": 0.9}),
        SensitivityConfig(points=3, decades=2, seeds=2),
        [],
    )
    tasks = next(search.run_sensitivity_grid("lr", chosen, grid, TuningConfig(), STEPS, SEEDS, trials))
    assert [(trial.index, trial.values["lr"], until) for trial, until in tasks] == [
        (index, lr, STEPS) for index, lr in enumerate((0.01, 0.1, 1.0)) for _ in range(2)
    ]  # fmt: skip
    assert all(trial.values["momentum"] == 0.9 for trial in trials)
    assert len({trial.seed for trial in trials}) == 2


MODULES = {
    "mine.py": "import torch\nfrom helpers import of_mine\n",
    "helpers/__init__.py": "",
    "helpers/of_mine.py": "def late():\n    from . import deeper\n",
    "helpers/deeper.py": "import json\n",
    "other.py": "import mine\n",
}


def test_module_digests_cover_only_imported_modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / "custom" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "custom" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    found = selection.hash_modules(["zilliax", "torch.optim.SGD", "mine.Mine"])
    assert list(found) == [
        "custom/helpers/__init__.py", "custom/helpers/deeper.py", "custom/helpers/of_mine.py", "custom/mine.py"
    ]  # fmt: skip
    (tmp_path / "custom" / "other.py").write_text("changed = True\n")
    assert selection.hash_modules(["mine.Mine"]) == found
    (tmp_path / "custom" / "helpers" / "deeper.py").write_text("changed = True\n")
    assert selection.hash_modules(["mine.Mine"]) != found
    assert selection.hash_modules(["zilliax", "SGD"]) == {}
