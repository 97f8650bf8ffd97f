"""Which points are tried, which trials go on, and what is chosen: without a training."""

import itertools
import random

import pytest

from optlab.records import ValidationMetrics
from optlab.schema import search_space
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import SEED_LIMIT_OF_RUNS, SensitivityConfig, TuningConfig
from optlab.tuning import search, selection

LR = {"lr": search_space.parse_range({"log": [0.001, 1.0]})}
MIXED = LR | {
    "momentum": search_space.parse_range({"choice": [0.0, 0.9]}),
    "beta": search_space.parse_range({"linear": [0.5, 1.0]}),
}
STEPS = 1408


def run_study(told, tuning=None, given=LR, study=0):
    """The trials of a study, and what was trained in each batch; `told` says a trial's accuracy after so many steps."""
    trials, rounds = [], []
    asking = search.run_search(study, given, tuning or TuningConfig(), STEPS, trials)
    tasks = next(asking)
    while True:
        rounds.append([(trial.index, until) for trial, until in tasks])
        answers = []
        for trial, until in tasks:
            found = told(trial, until)
            answers.append(
                ValidationMetrics(step=until, loss=1 - found, accuracy=found) if isinstance(found, float) else found
            )
        try:
            tasks = asking.send(answers)
        except StopIteration:
            return trials, rounds


def get_distance(trial, best=0.5):
    """The distance of the learning rate from the best one on the logarithmic scale, as a part of the range."""
    return abs(LR["lr"].map_to_unit(trial.values.get("lr", 0.001)) - best)


def accuracy_near(best):
    """The accuracy falls with the distance of the learning rate from the best one."""
    return lambda trial, until: 0.5 - get_distance(trial, best) / 10


def test_sobol_point_depends_on_seed_study_and_index():
    first = search.sample_point(0, 0, 5)
    assert len(first) == search.SOBOL_DIMENSIONS and all(0 <= each < 1 for each in first)
    search.sample_point.cache_clear()
    assert search.sample_point(0, 0, 5) == first
    assert len({search.sample_point(*each) for each in itertools.product((0, 1), (0, 1), (4, 5))}) == 8


def test_optimizers_share_sobol_points():
    """The first range takes the first coordinate, however many there are."""
    for index in range(4):
        point = search.sample_point(0, 0, index)
        assert search.map_position_to_ranges(MIXED, point)["lr"] == search.map_position_to_ranges(LR, point)["lr"]


def test_position_beyond_edge_lies_in_adjacent_decade():
    """The range has three decades, and the edges are never left by more than one."""
    found = [search.map_position_to_ranges(LR, (each,))["lr"] for each in (-2, -1 / 3, -1 / 6, 0, 1, 7 / 6, 4 / 3, 2)]
    assert found == pytest.approx([1e-4, 1e-4, 10**-3.5, 1e-3, 1, 10**0.5, 10, 10], rel=1e-5)


def test_first_sixteen_sobol_points_are_evenly_spread():
    """One in each sixteenth of the first coordinate: chance leaves a third of them empty."""
    assert sorted(int(16 * search.sample_point(3, 0, index)[0]) for index in range(16)) == list(range(16))


def test_trial_seeds_differ_from_confirmation_seeds():
    every = [search.derive_training_seed("trial", 0, 0, index) for index in range(-1, 16)]
    assert len(set(every)) == 17
    assert all(SEED_LIMIT_OF_RUNS <= each < 2**32 for each in every)
    assert search.derive_training_seed("sensitivity", 0, 0, 3) not in every


def test_each_half_promotes_its_best_quarter():
    trials, rounds = run_study(accuracy_near(0.5))
    assert [[until for _, until in each] for each in rounds] == [
        [88] * 8 + [1408], [352] * 2, [88] * 8, [352] * 2, [1408] * 2
    ]  # fmt: skip
    assert [trial.index for trial in trials] == [-1, *range(16)]
    first, second = sorted(trials[1:9], key=get_distance)[:2], sorted(trials[9:], key=get_distance)[:2]
    assert [index for index, _ in rounds[1]] == [trial.index for trial in first]
    assert [index for index, _ in rounds[3]] == [trial.index for trial in second]
    assert [index for index, _ in rounds[4]] == [trial.index for trial in sorted(first + second, key=get_distance)[:2]]


def test_early_rungs_compare_losses():
    """Accuracies near chance level tell nothing: here they mislead."""

    def told(trial, until):
        far = get_distance(trial, 0.7)
        accuracy = 0.5 - far if until == STEPS else 0.1 + far / 100
        return ValidationMetrics(step=until, loss=2.3 + far / 100, accuracy=accuracy)

    trials, _ = run_study(told)
    assert search.find_best(trials, STEPS) == min(trials[1:], key=lambda trial: get_distance(trial, 0.7))


def test_trials_of_later_rung_precede_others_of_lower_loss():
    def told(trial, until):
        return ValidationMetrics(step=until, loss=until + get_distance(trial), accuracy=0.1)

    trials, rounds = run_study(told)
    promoted = {index for batch in (rounds[1], rounds[3]) for index, _ in batch}
    assert {index for index, _ in rounds[4]} < promoted
    best = min((trials[1 + index] for index, _ in rounds[1]), key=get_distance)
    assert all(abs(trial.position[0] - best.position[0]) <= 0.25 for trial in trials[9:])


def test_trials_train_fully_without_halving():
    _, rounds = run_study(accuracy_near(0.5), TuningConfig(halving=1, trials=4))
    assert [[until for _, until in each] for each in rounds] == [[1408] * 3, [1408] * 2]


@pytest.mark.parametrize(
    "tuning", [TuningConfig(), TuningConfig(halving=1, trials=7), TuningConfig(halving=2, trials=3)]
)
def test_search_cost_equals_trained_steps(tuning):
    _, rounds = run_study(accuracy_near(0.5), tuning)
    far = {}
    for index, until in itertools.chain(*rounds):
        far[index] = max(far.get(index, 0), until)
    assert search.compute_cost(tuning, STEPS) == sum(far.values())


@pytest.mark.parametrize(
    "tuning", [TuningConfig(), TuningConfig(halving=1, trials=7), TuningConfig(trials=13, halving=2)]
)
@pytest.mark.parametrize("chance", range(8))
def test_budget_holds_whatever_diverges(tuning, chance):
    draw = random.Random(chance).choice
    trials, rounds = run_study(lambda trial, until: draw(["diverged", 0.1, 0.2, 0.3]), tuning)
    far = dict(itertools.chain(*rounds))
    assert sum(far.values()) <= search.compute_cost(tuning, STEPS)
    assert [trial.index for trial in trials] == list(range(-1, tuning.trials))


def test_search_depends_on_seeds_and_results_alone():
    """Not on the order in which the trials of a batch end, for the search gets their results together."""
    once, again = (run_study(accuracy_near(0.3), given=MIXED) for _ in range(2))
    assert once == again
    for other in (run_study(accuracy_near(0.3), given=MIXED, study=1),
                  run_study(accuracy_near(0.3), TuningConfig(seed=1), MIXED)):  # fmt: skip
        assert not {str(trial.values) for trial in once[0][1:]} & {str(trial.values) for trial in other[0][1:]}
        assert not {trial.seed for trial in once[0]} & {trial.seed for trial in other[0]}


def test_diverged_trial_counts_but_is_not_promoted():
    trials, rounds = run_study(lambda trial, until: "diverged" if trial.index % 2 else 0.3)
    assert len(trials) == 17 and sum(trial.failure == "diverged" for trial in trials) == 9  # the default, too
    assert all(index % 2 == 0 for batch in rounds for index, until in batch if until > 88 and index >= 0)


def diverge_at(step):
    return ValidationMetrics(step=step, loss=None, accuracy=None)


@pytest.mark.parametrize(("rung", "end", "limit"), [(352, 100, 0.5), (1408, 400, 0.8)])
def test_next_best_trial_replaces_one_that_diverges(rung, end, limit):
    """The highest rates look best until they diverge: the best of the others is found with what is left."""

    def told(trial, until):
        too_high = trial.position and trial.position[0] > limit
        return diverge_at(end) if too_high and until >= rung else accuracy_near(1.0)(trial, until)

    trials, _ = run_study(told)
    assert limit - 0.15 < search.find_best(trials, STEPS).position[0] <= limit
    assert {trial.end.step for trial in trials if trial.failure} == {end}
    assert sum(trial.max_steps for trial in trials) <= search.compute_cost(TuningConfig(), STEPS)


def test_rate_close_to_one_that_diverged_is_trained_to_the_end_after_others():
    """The loss falls up to the rate at which trials diverge: the best ones are beside it."""

    def told(trial, until):
        return diverge_at(100) if trial.position and trial.position[0] > 0.55 else accuracy_near(1.0)(trial, until)

    trials, rounds = run_study(told)
    lowest = min(trial.position[0] for trial in trials if trial.failure)
    distances = {trial.index: lowest - trial.position[0] for trial in trials[1:] if len(trial.validations) > 1}
    far = {index for index, distance in distances.items() if distance >= search.DIVERGENCE_MARGIN / 3}  # three decades
    finalists = [index for index, until in rounds[-1]]
    assert far < set(distances) and set(finalists) <= far
    assert distances[finalists[0]] == min(distances[index] for index in far)


def test_replacements_leave_steps_for_one_trial_to_the_end():
    """Without the steps at which they diverged, each counts as trained up to the rung."""
    trials, rounds = run_study(lambda trial, until: "diverged" if until == 352 else accuracy_near(0.5)(trial, until))
    assert [[until for _, until in each] for each in rounds] == [
        [88] * 8 + [1408], [352] * 2, [352] * 2, [352] * 2, [88] * 8, [352] * 2
    ]  # fmt: skip
    assert search.compute_cost(TuningConfig(), STEPS) - sum(trial.max_steps for trial in trials) == 1408 - 352


def test_default_is_selected_if_all_trials_diverge():
    trials, rounds = run_study(lambda trial, until: "diverged")
    assert [len(each) for each in rounds] == [9, 8]
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1.0]}})
    found = selection.select_values(spec, trials, STEPS, {})
    assert (found.entry, found.trial, found.validation_accuracy) == ({"class": "SGD"}, None, None)


def test_second_half_lies_in_window_about_best():
    trials, _ = run_study(accuracy_near(0.4), given=MIXED)
    best = min(trials[1:9], key=lambda trial: get_distance(trial, 0.4))
    assert all(0 <= each < 1 for trial in trials[1:9] for each in trial.position)
    for number in range(3):
        low, high = (min(1, max(0, best.position[number] + sign * 0.25)) for sign in (-1, 1))
        drawn = [trial.position[number] for trial in trials[9:]]
        assert low <= min(drawn) and max(drawn) <= high and max(drawn) - min(drawn) > 0.7 * (high - low)
    assert all(trial.values == search.map_position_to_ranges(MIXED, trial.position) for trial in trials[1:])


@pytest.mark.parametrize(("best", "beyond"), [(-0.05, True), (0.5, False), (1.05, True)])
def test_window_reaches_beyond_edge_of_logarithmic_range(best, beyond):
    trials, _ = run_study(accuracy_near(best))
    assert not any(trial.extended_ranges for trial in trials[:9])
    outside = [trial for trial in trials if trial.values and not 0.001 <= trial.values["lr"] <= 1]
    assert bool(outside) == beyond and [trial for trial in trials if trial.extended_ranges == ["lr"]] == outside
    chosen = search.find_best(trials, STEPS)
    assert get_distance(chosen, best) < 0.1 and search.find_ranges_at_edge(LR, chosen, trials) == []


def test_window_ends_below_rates_that_diverge():
    def told(trial, until):
        return "diverged" if get_distance(trial, 0) > 0.45 else accuracy_near(1.0)(trial, until)

    trials, _ = run_study(told)
    lowest = min(trial.position[0] for trial in trials[1:9] if trial.failure)
    assert all(trial.position[0] <= lowest for trial in trials[9:])
    assert get_distance(search.find_best(trials, STEPS), 0.45) < 0.1


def test_window_lies_below_range_where_all_diverges():
    trials, _ = run_study(lambda trial, until: 0.3 if trial.position and trial.position[0] < -0.1 else "diverged")
    lowest = min(trial.position[0] for trial in trials[1:9])
    assert all(-1 / 3 <= trial.position[0] <= lowest for trial in trials[9:])
    assert search.find_best(trials, STEPS).extended_ranges == ["lr"]


def test_divergence_below_successful_rate_does_not_end_window():
    """As with a choice of momentum, with one of which a low learning rate diverges already."""

    def told(trial, until):
        is_lost = trial.values.get("momentum") == 0.9 and trial.position[0] > 0.2
        return "diverged" if is_lost else accuracy_near(0.8)(trial, until)

    trials, _ = run_study(told, given=MIXED)
    assert max(trial.position[0] for trial in trials[9:]) > 0.8


def test_divergence_ends_window_above_rates_of_last_rung():
    """A rate that only the first rung has shown to be harmless is no reason to go there."""

    def told(trial, until):
        if trial.position and trial.position[0] > (0.6 if until > 88 else 0.9):
            return "diverged"
        return accuracy_near(0.6)(trial, until)

    trials, _ = run_study(told)
    lowest = min(trial.position[0] for trial in trials[1:9] if trial.target_step == 352)
    assert any(trial.failure is None and trial.position[0] > lowest for trial in trials[1:9])
    assert max(trial.position[0] for trial in trials[9:]) <= lowest


def test_divergence_ends_window_of_learning_rate_alone():
    two = LR | {"weight_decay": LR["lr"]}

    def told(trial, until):
        if trial.position and trial.position[1] > 0.75:
            return "diverged"
        return 0.5 - abs(trial.position[1] - 0.75) / 10 if trial.position else 0.1

    trials, _ = run_study(told, given=two)
    assert any(trial.failure for trial in trials[1:9]) and max(trial.position[1] for trial in trials[9:]) > 0.85


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
    found = selection.select_values(spec, trials, STEPS, {})
    assert (found.entry, found.trial, found.validation_accuracy) == ({"class": "SGD", "lr": 0.3}, None, 0.9)


def test_sensitivity_grid_spans_learning_rates_and_seeds():
    chosen, grid, trials = (
        search.Trial(0, 2, 0, {"lr": 0.1, "momentum": 0.9}),
        SensitivityConfig(points=3, decades=2, seeds=2),
        [],
    )
    tasks = next(search.run_sensitivity_grid(0, "lr", chosen, grid, TuningConfig(), STEPS, trials))
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
