"""Ranges of hyperparameters: what can be written, the values in them, and an entry with values in their place."""

import math

import pytest
from pydantic import ValidationError

from optlab.schema import search_space
from optlab.schema.optimizer import OptimizerSpec

LOG = search_space.parse_range({"log": [0.001, 1.0]})


@pytest.mark.parametrize(
    ("written", "values"),
    {
        "log": ({"log": [0.001, 1]}, [0.001, 0.0316228, 1.0]),
        "linear": ({"linear": [0.5, 1.0]}, [0.5, 0.75, 1.0]),
        "whole numbers": ({"linear": [1, 4]}, [1, 3, 4]),
        "values": ({"choice": ["a", None, 3]}, ["a", None, 3]),
        "mappings": ({"choice": [{"momentum": 0}, {"momentum": 0.9, "nesterov": True}]},
                     [{"momentum": 0}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}]),
    }.values(),
)  # fmt: skip
def test_range_values_at_ends_and_middle(written, values):
    assert [search_space.parse_range(written).map_from_unit(place) for place in (0.0, 0.5, 1.0)] == values


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_rounded_values_stay_within_range_ends(scale):
    own = search_space.parse_range({scale: [0.12345678, 0.98765432]})
    assert (own.map_from_unit(0.0), own.map_from_unit(1.0)) == (0.123457, 0.987654)
    own = search_space.parse_range({scale: [0.12345612, 0.98765472]})
    assert (own.map_from_unit(0.0), own.map_from_unit(1.0)) == (0.12345612, 0.98765472)


def test_choices_and_integers_are_equally_likely():
    places = [(each + 0.5) / 1200 for each in range(1200)]
    for written in ({"choice": [1, 2, 3]}, {"linear": [1, 3]}):
        found = [search_space.parse_range(written).map_from_unit(place) for place in places]
        assert [found.count(each) for each in (1, 2, 3)] == [400, 400, 400]


def test_log_range_edges_are_outer_tenths():
    assert [LOG.find_edge(value) for value in (0.001, 0.00199, 0.002, 0.5, 0.502, 1.0)] == [-1, -1, 0, 0, 1, 1]
    assert search_space.parse_range({"linear": [0.0, 1.0]}).find_edge(1.0) == 0


def test_range_is_extended_by_one_decade():
    above, below = LOG.get_adjacent_decade(1), LOG.get_adjacent_decade(-1)
    assert (above.low, above.high, below.low, below.high) == (1.0, 10.0, pytest.approx(0.0001), 0.001)
    assert math.isclose(above.map_from_unit(0.5), math.sqrt(10), rel_tol=1e-5)


BAD = {
    "ends the wrong way round": ({"log": [1, 0.1]}, "log must be two numbers, the smaller one first"),
    "log from zero": ({"log": [0, 1]}, "log must be of numbers above 0"),
    "three ends": ({"linear": [0, 1, 2]}, "linear must be two numbers"),
    "a truth as an end": ({"linear": [False, True]}, "linear must be two numbers"),
    "one option": ({"choice": [0.1]}, "choice must be a list of two or more values"),
    "values and mappings": ({"choice": [0.1, {"momentum": 0.9}]}, "choice must be a list of two or more values"),
    "another word": ({"lg": [0.1, 1]}, r"a mapping here is a range, such as \{log: "),
    "two words": ({"log": [0.1, 1], "linear": [0, 1]}, "a mapping here is a range"),
    "infinity": ({"log": [0.1, math.inf]}, "log must be two numbers"),
}


@pytest.mark.parametrize(("written", "said"), BAD.values(), ids=BAD)
def test_invalid_range_is_rejected(written, said):
    with pytest.raises(ValidationError, match=said):
        OptimizerSpec.model_validate({"class": "SGD", "x": written})


SPEC = OptimizerSpec.model_validate(
    {
        "class": "Muon", "lr": {"log": [0.001, 1.0]}, "variant": {"choice": [{"momentum": 0.5}, {"nesterov": False}]},
        "groups": [{"match": "8.*", "lr": {"log": [0.01, 0.1]}, "default": {"lr": 0.05}}],
        "fallback": {"class": "AdamW", "lr": {"log": [1e-4, 1e-2]}, "weight_decay": 0.1},
    }
)  # fmt: skip


def test_ranges_are_listed_in_file_order():
    assert list(SPEC.ranges) == ["lr", "variant", "groups.0.lr", "fallback.lr"]


def test_values_replace_their_ranges():
    found = SPEC.replace_ranges({"lr": 0.1, "variant": {"nesterov": False}, "groups.0.lr": 0.02, "fallback.lr": 0.003})
    assert found.hyperparameters == {"lr": 0.1, "nesterov": False}
    assert found.groups[0].hyperparameters == {"lr": 0.02} and found.groups[0].match == "8.*"
    assert found.fallback.hyperparameters == {"lr": 0.003, "weight_decay": 0.1}
    assert not found.ranges and not found.groups[0].default


def test_default_omits_ranges_without_default_value():
    found = SPEC.replace_ranges({})
    assert found.hyperparameters == {}
    assert found.groups[0].hyperparameters == {"lr": 0.05}
    assert found.fallback.hyperparameters == {"weight_decay": 0.1}


def test_extreme_points_combine_choices_with_range_ends():
    first, *rest = SPEC.generate_extremes()
    assert first == SPEC.replace_ranges({})
    found = [(each.hyperparameters["lr"], each.fallback.hyperparameters["lr"], "momentum" in each.hyperparameters)
             for each in rest]  # fmt: skip
    assert found == [(0.001, 1e-4, True), (1.0, 1e-2, True), (0.001, 1e-4, False), (1.0, 1e-2, False)]


def test_optimizer_spec_round_trips_through_json():
    assert OptimizerSpec.model_validate(SPEC.model_dump(mode="json", by_alias=True)) == SPEC


LR = {"log": [0.1, 1.0]}
NEVER = {
    "too many combinations": (
        {f"x{number}": {"choice": [0, 1]} for number in range(9)},
        "choices have 512 combinations",
    ),
    "too many ranges": ({f"x{number}": {"log": [0.1, 1]} for number in range(17)}, "it has 17 ranges, more than 16"),
    "a default without a range": ({"default": {"lr": 0.1}}, r"default\.lr has no range here"),
    "a default of something else": (
        {"lr": LR, "momentum": 0.9, "default": {"momentum": 0}},
        r"default\.momentum has no ra",
    ),
    "a default that is no number": (
        {"lr": LR, "default": {"lr": "a"}},
        "with values of its ranges, lr must be a number",
    ),
    "a class among the options": (
        {"x": {"choice": [{"class": "Adam"}, {"momentum": 0.9}]}},
        "class is in a mapping of a",
    ),
    "a schedule among the options": ({"x": {"choice": [{"schedule": 1}, {"a": 0.9}]}}, "schedule is in a mapping of a"),
    "two ranges of one": (
        {"lr": LR, "x": {"choice": [{"lr": 0.1}, {"lr": 0.2}]}},
        "lr is in a mapping of a choice, and",
    ),
    "one name in two choices": (
        {"x": {"choice": [{"a": 1}, {"a": 2}]}, "y": {"choice": [{"b": 1}, {"a": 2}]}},
        "a is in mappings of both x and y: leave one",
    ),
    "an option that is no number": (
        {"x": {"choice": [{"lr": "a"}, {"lr": 0.2}]}},
        "with values of its ranges, lr must",
    ),
    "whole numbers as rates": (
        {"lr": {"linear": [0, 1]}},
        "lr has a range of whole numbers: write its ends as decimals",
    ),
    "a number of 400 digits": ({"lr": {"log": [1, 10**400]}}, "log must be two numbers"),
}


@pytest.mark.parametrize(("entry", "said"), NEVER.values(), ids=NEVER)
def test_unresolvable_entry_is_rejected(entry, said):
    with pytest.raises(ValidationError, match=said):
        OptimizerSpec.model_validate({"class": "SGD", **entry})
