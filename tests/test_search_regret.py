"""The regret of a search on recorded trainings: what counts as the best, which steps are counted."""

import json

import numpy as np
import pytest
import search_regret
from search_regret import Grid, Outcome, Population, Rule

from optlab.schema.search_space import NumericRange
from optlab.tuning import search
from optlab.tuning.search import Trial

STEPS = [1, 2, 4, 8, 16]
RATES = (0.01, 0.1, 1.0)
RANGE = NumericRange(scale="log", low=0.01, high=1.0)


def make_line(lr, seed, final, diverged=None):
    """A training whose accuracy is 0.2 before its end."""
    steps = [each for each in STEPS if diverged is None or each < diverged]
    accuracy = [0.2] * len(steps) if diverged else [0.2] * 4 + [final]
    return {"optimizer": "sgd", "lr": lr, "seed": seed, "diverged": diverged, "steps": steps, "accuracy": accuracy,
            "loss": [1 - each for each in accuracy]}  # fmt: skip


LINES = [
    make_line(0.01, 0, 0.4), make_line(0.1, 0, 0.6), make_line(1.0, 0, None, diverged=3),
    make_line(0.01, 1, 0.5), make_line(0.1, 1, 0.7), make_line(1.0, 1, 0.9),
]  # fmt: skip


def pick(*requests):
    """A rule that trains the (learning rate, seed) of each request up to its step."""

    def run(number, ranges, tuning, steps, trials):
        made = {}
        for lr, seed, until in requests:
            if (lr, seed) not in made:
                made[lr, seed] = Trial(0, len(made), seed, {"lr": lr})
                trials.append(made[lr, seed])
            yield from search._request_training([(made[lr, seed], until)])

    return Rule("pick", run, 1, 1)


def run(*requests):
    return search_regret.run_on_grid(Grid(LINES, RATES), pick(*requests), RANGE, 0.01, 0)


def test_best_accuracy_is_smoothed_where_no_seed_diverged():
    """The means are 0.45, 0.65 and, with a training at chance, 0.5: the last one counts nowhere."""
    grid = Grid(LINES, RATES)
    assert grid.accuracies.tolist() == [[0.4, 0.5], [0.6, 0.7], [0.1, 0.9]]
    assert grid.best == pytest.approx((0.45 + 2 * 0.65) / 3) and grid.rates[grid.best_index] == 0.1


@pytest.mark.parametrize(("lr", "seed", "others"), [(0.1, 0, 0.7), (0.1, 1, 0.6), (0.01, 4, 0.5), (1.0, 1, 0.1)])
def test_regret_of_known_choice_has_seeds_that_trial_did_not_have(lr, seed, others):
    outcome = run((lr, seed, 16))
    assert outcome.regret == pytest.approx(Grid(LINES, RATES).best - others)
    assert 10**outcome.rate == pytest.approx(lr)


def test_trial_takes_curve_of_nearest_rate():
    assert [Grid(LINES, RATES).find_nearest(lr) for lr in (0.001, 0.03, 0.04, 0.3, 0.4, 5.0)] == [0, 0, 1, 1, 2, 2]


def test_steps_of_resumed_trial_are_counted_once():
    assert run((0.1, 0, 16)).steps == 1
    assert run((0.1, 0, 4), (0.1, 0, 16)).steps == 1
    assert run((0.1, 0, 4), (0.01, 0, 16)).steps == 1.25


def test_diverged_trial_is_counted_up_to_its_divergence():
    assert run((1.0, 0, 16), (0.1, 0, 16)).steps == pytest.approx(1 + 3 / 16)
    assert run((1.0, 0, 2), (1.0, 0, 16), (0.1, 0, 16)).steps == pytest.approx(1 + 3 / 16)


def test_default_is_chosen_if_nothing_else_ended():
    outcome = run((1.0, 0, 16))
    assert outcome.rate == pytest.approx(-2)


@pytest.mark.parametrize(
    ("trials", "halving", "whole_runs"), [(16, 4, 4.25), (6, 4, 3.4375), (3, 4, 2.125), (16, 1, 17), (7, 1, 8)]
)
def test_halving_of_earlier_version_takes_its_budget(trials, halving, whole_runs):
    lines = [make_line(lr, 0, accuracy) for lr, accuracy in zip(RATES, (0.3, 0.5, 0.3), strict=True)]
    rule = Rule("halving", search_regret.run_halving, trials, halving)
    assert search_regret.run_on_grid(Grid(lines, RATES), rule, RANGE, 0.1, 0).steps == whole_runs


def test_incomplete_last_line_is_trained_again(tmp_path):
    path = tmp_path / "grid.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in LINES)[:-5])
    assert search_regret.read_lines(path) == LINES[:-1]


def test_seed_without_all_rates_is_left_out():
    extra = make_line(0.01, 2, 0.5)
    assert Grid([*LINES, extra], RATES).seeds == [0, 1]


def test_every_second_rate_is_used_if_two_seeds_have_only_these():
    grid = Grid([each for each in LINES if (each["lr"], each["seed"]) != (0.1, 1)], RATES)
    assert (grid.rates, grid.seeds) == ([0.01, 1.0], [0, 1])


def test_population_has_means_of_chosen_rates_and_scaled_deviations():
    """A rate at which one of two seeds diverged has the other's accuracy as its mean, and no deviation."""
    outcomes = [Outcome(0.0, rate, 1.0) for rate in (-2.0, -1.0, 0.0)]
    population = Population.from_searches(Grid(LINES, RATES), outcomes)
    assert population.means == pytest.approx([0.45, 0.65, 0.9])
    assert sorted(population.deviations) == pytest.approx([-0.05 * 2**0.5] * 2 + [0.05 * 2**0.5] * 2)


def test_interval_of_one_search_misses_where_searches_vary_more_than_seeds():
    populations = [Population(np.array([0.4, 0.5, 0.6]), np.array([-0.01, 0.0, 0.01]))] * 2
    *means, differences = search_regret.measure_coverage(populations, 8, 8, 2000)
    assert all(share == pytest.approx(0.95, abs=0.03) for share in means) and differences >= 0.94
    *means, differences = search_regret.measure_coverage(populations, 8, 1, 2000)
    assert all(share == pytest.approx(1 / 3, abs=0.05) for share in means) and differences < 0.5
