"""Which points are tried, which trials go on, and what is chosen: without a training."""

import itertools

import pytest

from optlab.config import ranges
from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import Sensitivity, Tuning
from optlab.record.contents import Validation
from optlab.tuning import choice, points, search

LR = {"lr": ranges.read({"log": [0.001, 1.0]})}
STEPS = 1408
SEEDS = [0, 1]


def followed(told, tuning=None, given=LR, study=0):
    """The trials of a study, and what was trained in each round; `told` says a trial's accuracy after so many steps."""
    trials, rounds = [], []
    asking = search.study(study, given, tuning or Tuning(), STEPS, SEEDS, trials)
    tasks = next(asking)
    while True:
        rounds.append([(trial.index, until) for trial, until in tasks])
        answers = []
        for trial, until in tasks:
            found = told(trial, until)
            answers.append(found if isinstance(found, str) else Validation(step=until, loss=1 - found, accuracy=found))
        try:
            tasks = asking.send(answers)
        except StopIteration:
            return trials, rounds


def near(best):
    """The accuracy falls with the distance of the learning rate from the best one, on the logarithmic scale."""
    return lambda trial, until: 0.5 - abs(LR["lr"].place_of(trial.values.get("lr", 0.001)) - best) / 10


def test_a_point_is_a_function_of_seed_study_and_index():
    first = points.point(0, 0, 5)
    assert len(first) == points.DIMENSIONS and all(0 <= each < 1 for each in first)
    points.point.cache_clear()
    assert points.point(0, 0, 5) == first
    assert len({points.point(*each) for each in itertools.product((0, 1), (0, 1), (4, 5))}) == 8


def test_the_points_of_one_optimizer_are_those_of_another():
    """The first range takes the first coordinate, however many there are."""
    two = LR | {"momentum": ranges.read({"choice": [0.0, 0.9]})}
    for index in range(4):
        place = points.point(0, 0, index)
        assert points.values(two, place)["lr"] == points.values(LR, place)["lr"]


def test_the_first_sixteen_points_are_spread_evenly():
    """One in each sixteenth of the first coordinate: chance leaves a third of them empty."""
    assert sorted(int(16 * points.point(3, 0, index)[0]) for index in range(16)) == list(range(16))


def test_the_seeds_of_trials_are_none_of_those_that_confirm():
    every = [points.training_seed("trial", 0, 0, index, []) for index in range(-1, 16)]
    assert len(set(every)) == 17
    assert points.training_seed("trial", 0, 0, 3, [every[4]]) not in every[:4]
    assert points.training_seed("sensitivity", 0, 0, 3, []) not in every


def test_a_quarter_goes_on_after_a_sixteenth_and_a_quarter_of_the_steps():
    trials, rounds = followed(near(0.5))
    assert [[until for _, until in each] for each in rounds] == [
        [88] * 12 + [1408], [352] * 3, [1408], [88] * 4, [352], [1408]
    ]  # fmt: skip
    assert [trial.index for trial in trials] == [-1, *range(16)]
    ranked = sorted(trials[1:13], key=lambda trial: abs(LR["lr"].place_of(trial.values["lr"]) - 0.5))
    assert {index for index, _ in rounds[1]} == {trial.index for trial in ranked[:3]}
    assert rounds[2] == [(ranked[0].index, 1408)]


def test_without_halving_all_are_trained_to_the_end():
    _, rounds = followed(near(0.5), Tuning(halving=1, trials=4))
    assert [[until for _, until in each] for each in rounds] == [[1408] * 4, [1408]]


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(halving=1, trials=7), Tuning(halving=2, trials=3)])
def test_the_cost_is_what_is_trained(tuning):
    _, rounds = followed(near(0.5), tuning)
    far = {}
    for index, until in itertools.chain(*rounds):
        far[index] = max(far.get(index, 0), until)
    assert search.cost(tuning, STEPS) == sum(far.values())


def test_a_diverged_trial_counts_and_never_goes_on():
    trials, rounds = followed(lambda trial, until: "diverged" if trial.index % 2 else 0.3)
    assert len(trials) == 17 and sum(trial.ending == "diverged" for trial in trials) == 9  # the default, too
    assert all(index % 2 == 0 for index, _ in itertools.chain(*rounds[1:3]))


def test_all_diverged():
    trials, rounds = followed(lambda trial, until: "diverged")
    assert [len(each) for each in rounds] == [13, 4]
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1.0]}})
    found = choice.chosen(spec, trials, STEPS)
    assert (found.entry, found.trial, found.validation_accuracy) == ({"class": "SGD"}, None, None)


def test_the_best_at_the_edge_has_the_last_quarter_drawn_beyond_it():
    trials, _ = followed(near(1.1))
    assert [trial.beyond for trial in trials[1:]] == [[]] * 12 + [["lr"]] * 4
    assert all(1 <= trial.values["lr"] <= 10 for trial in trials[13:])
    for trial in trials[13:]:
        assert trial.values["lr"] == pytest.approx(10 ** points.point(0, 0, trial.index)[0], rel=1e-5)
    best = search.best(trials, STEPS)
    assert best.beyond == ["lr"] and search.still_at_edge(LR, best, trials) == []


def test_an_edge_beyond_which_it_is_worse_is_none():
    """The best of the first three quarters stays the best: the decade beyond it was looked at."""

    def told(trial, until):
        return 0.1 if trial.beyond else near(1.1)(trial, until)

    trials, _ = followed(told)
    best = search.best(trials, STEPS)
    assert not best.beyond and search.edges(LR, best) == {"lr": 1}
    assert search.still_at_edge(LR, best, trials) == []
    assert search.still_at_edge(LR, best, trials[:13]) == ["lr"]


@pytest.mark.parametrize(("best", "still"), [(0.5, []), (5.0, ["lr"]), (-3.0, ["lr"])])
def test_what_still_lies_at_an_edge_is_said(best, still):
    trials, _ = followed(near(best), Tuning(trials=64))
    assert search.still_at_edge(LR, search.best(trials, STEPS), trials) == still


def test_a_tie_goes_to_the_lower_loss_then_to_the_first():
    made = [search.Trial(0, index, 0, {}, looks=[Validation(step=STEPS, loss=loss, accuracy=0.5)])
            for index, loss in ((3, 0.2), (1, 0.1), (0, 0.1))]  # fmt: skip
    assert search.best(made, STEPS).index == 0
    assert search.best(made[:1], STEPS + 1) is None


def test_the_default_is_chosen_where_it_is_the_best():
    trials, _ = followed(lambda trial, until: 0.9 if trial.index == search.DEFAULT else 0.1)
    spec = OptimizerSpec.model_validate({"class": "SGD", "lr": {"log": [0.001, 1.0]}, "default": {"lr": 0.3}})
    found = choice.chosen(spec, trials, STEPS)
    assert (found.entry, found.trial, found.validation_accuracy) == ({"class": "SGD", "lr": 0.3}, None, 0.9)


def test_the_grid_of_the_sensitivity():
    chosen, grid, trials = (
        search.Trial(0, 2, 0, {"lr": 0.1, "momentum": 0.9}),
        Sensitivity(points=3, decades=2, seeds=2),
        [],
    )
    tasks = next(search.sensitivity("lr", chosen, grid, Tuning(), STEPS, SEEDS, trials))
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


def test_the_modules_that_an_entry_uses_and_no_others(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / "custom" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "custom" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    found = choice.modules(["zilliax", "torch.optim.SGD", "mine.Mine"])
    assert list(found) == [
        "custom/helpers/__init__.py", "custom/helpers/deeper.py", "custom/helpers/of_mine.py", "custom/mine.py"
    ]  # fmt: skip
    (tmp_path / "custom" / "other.py").write_text("changed = True\n")
    assert choice.modules(["mine.Mine"]) == found
    (tmp_path / "custom" / "helpers" / "deeper.py").write_text("changed = True\n")
    assert choice.modules(["mine.Mine"]) != found
    assert choice.modules(["zilliax", "SGD"]) == {}
