"""How MLflow's pages of a comparison open."""

import json
from types import SimpleNamespace

import pytest
from mlflow.store.entities import PagedList

from optlab.tracking import comparison_view
from optlab.tracking.comparison_view import ComparisonView, _tag_current_runs


@pytest.mark.parametrize(
    ("chosen_by", "lines"),
    [
        ("validation_accuracy", ["step/validation_accuracy", "step/validation_loss", "step/loss"]),
        ("train_loss", ["epoch/train_loss", "epoch/running_loss"]),
    ],
)
def test_selection_metrics_are_charted_first_by_step(chosen_by, lines):
    state = json.loads(comparison_view.build_runs_state(chosen_by))
    *curves, bar = state["compareRunCharts"]
    assert [(chart["type"], chart["metricKey"], chart["xAxisKey"]) for chart in curves] == [
        ("LINE", metric, "step") for metric in lines
    ]
    assert (bar["type"], bar["metricKey"]) == ("BAR", "test/accuracy")
    first = state["compareRunSections"][0]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {first["uuid"]}
    assert state["orderByKey"] == f"metrics.`{'epoch/train_loss' if chosen_by == 'train_loss' else 'test/accuracy'}`"
    assert state["orderByAsc"] == (chosen_by == "train_loss")
    assert state["runsHiddenMode"] == "SHOW_ALL"


def test_runs_table_starts_with_optimizer_rate_and_accuracy():
    state = json.loads(comparison_view.build_runs_state("validation_accuracy"))
    wanted = ["params.`optimizer`", "params.`optimizer.lr`", "metrics.`test/accuracy`"]
    assert state["selectedColumns"][:3] == wanted
    assert state["columnOrder"][2:5] == wanted  # after the name and the time, which MLflow pins
    assert set(state["columnWidths"]) == set(state["columnOrder"]) > set(state["selectedColumns"])


@pytest.mark.parametrize(
    ("validated", "figures"),
    [(True, ["validation_accuracy", "validation_loss", "train_loss"]), (False, ["train_loss"])],
)
def test_summary_charts_show_means(validated, figures):
    """The ends of their intervals, which MLflow draws as dashed lines, are columns of the table."""
    state = json.loads(comparison_view.build_summaries_state("summary", validated))
    *curves, bar = state["compareRunCharts"]
    assert [chart["selectedMetricKeys"] for chart in curves] == [[f"{figure}/mean"] for figure in figures]
    assert (bar["type"], bar["metricKey"]) == ("BAR", "test_accuracy/mean")
    assert {f"metrics.`test_accuracy/{part}`" for part in ("mean", "lower", "upper")} < set(state["selectedColumns"])
    assert state["searchFilter"] == "tags.summary = 'current'"
    assert (state["orderByKey"], state["orderByAsc"]) == (
        ("metrics.`test_accuracy/mean`", False) if validated else ("metrics.`train_loss/mean`", True)
    )


def test_saved_view_is_listed_by_mlflow():
    """Its menu has what has a name and a time; earlier versions of this program wrote the state alone."""
    state = comparison_view.build_runs_state("train_loss")
    saved = json.loads(comparison_view.encode_view_tag(state))
    assert saved["name"] == "Comparison" and saved["createdAt"] > 0
    assert (
        comparison_view.decode_view_tag(comparison_view.encode_view_tag(state))
        == comparison_view.decode_view_tag(state)
        == state
    )


def test_run_color_is_updated_for_current_comparison():
    """Another one may have given it the colour that a run beside it has now."""
    runs = {name: SimpleNamespace(info=SimpleNamespace(run_id=name), data=SimpleNamespace(tags={})) for name in "ab"}
    runs["a"].data.tags["mlflow.runColor"] = "#111111"
    runs["b"].data.tags["mlflow.runColor"] = "#111111"
    tagged = {}
    client = SimpleNamespace(
        search_runs=lambda experiments, wanted, **more: PagedList(
            [runs[name] for name in "ab" if f"'{name}-0'" in wanted], token=None
        ),
        set_tag=lambda run, key, value: tagged.setdefault((run, key), value),
    )
    own = {"a-0": "#111111", "b-0": "#222222", "c-0": "#333333"}  # the last is not in MLflow
    present = ComparisonView(
        experiment="optlab", runs=tuple((run, "") for run in own), champion=None, conditions="", chosen_by="",
        summaries=(), colours=own,
    )  # fmt: skip
    assert set(_tag_current_runs(client, "1", present)) == {"a-0", "b-0"}
    assert {run: value for (run, key), value in tagged.items() if key == "mlflow.runColor"} == {"b": "#222222"}
