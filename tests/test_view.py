"""Which charts MLflow's page of a comparison opens with."""

import json

import pytest

from optlab.tracking import view


@pytest.mark.parametrize(
    ("chosen_by", "lines"),
    [
        ("validation_accuracy", ["epoch/validation_accuracy", "epoch/validation_loss", "epoch/train_loss"]),
        ("train_loss", ["epoch/train_loss", "epoch/running_loss"]),
    ],
)
def test_the_figures_that_decide_come_first_by_epoch(chosen_by, lines):
    state = json.loads(view.state(chosen_by))
    *curves, bar = state["compareRunCharts"]
    assert [(chart["type"], chart["metricKey"], chart["xAxisKey"]) for chart in curves] == [
        ("LINE", metric, "step") for metric in lines
    ]
    assert (bar["type"], bar["metricKey"]) == ("BAR", "test/accuracy")
    first = state["compareRunSections"][0]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {first["uuid"]}
    assert state["orderByKey"] == f"metrics.`epoch/{chosen_by}`"
    assert state["orderByAsc"] == (chosen_by == "train_loss")
