"""The means over the seeds in MLflow: what they hold, and that each is there once."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from test_figures import collect_comparison

from optlab.analysis import mean_ci
from optlab.tracking import comparison_sync, comparison_view, mlflow_store
from optlab.tracking.comparison_view import SummaryRun

POINTS = (("train_loss/mean", 2.0, 1), ("train_loss/mean", 1.0, 2))
ADAM = SummaryRun(optimizer="adam", colour="#123456", params={"seeds": "0, 1"}, points=POINTS)
SGD = ADAM.model_copy(update={"optimizer": "sgd"})


def find_current_runs(client):
    """Name → the runs that pass for present ones."""
    experiment = client.get_experiment_by_name("optlab.summary").experiment_id
    found = {}
    for run in client.search_runs([experiment], "tags.summary = 'current'"):
        found.setdefault(run.info.run_name, []).append(run.info.run_id)
    return found


@pytest.fixture
def client(top):
    return mlflow_store.connect()


def show(client, *wanted):
    comparison_view.update_summary_runs(client, "optlab", wanted, has_validation=True)
    return find_current_runs(client)


def test_summary_run_contains_mean_and_interval(small_config, tmp_path):
    config = small_config(seeds=[0, 1])
    losses = {"sgd-0": [2.0, 1.0], "sgd-1": [2.2, 1.4], "adam-0": [2.3], "adam-1": [2.5]}
    seen = {"sgd-0": [0.2], "sgd-1": [0.3], "adam-0": [0.5], "adam-1": [0.6]}
    found = {
        each.optimizer: each
        for each in comparison_sync.build_view(collect_comparison(config, tmp_path, losses, seen), tmp_path).summaries
    }
    points = {(key, step): value for key, value, step in found["sgd"].points}
    for key, step, values in (
        ("train_loss", 1, [2.0, 2.2]), ("train_loss", 2, [1.0, 1.4]), ("validation_accuracy", 7, [0.2, 0.3]),
        ("test_accuracy", 0, [0.5, 0.5]),
    ):  # fmt: skip
        figure = mean_ci.compute_mean_ci(values)
        ends = [points[f"{key}/{end}", step] for end in ("mean", "lower", "upper")]
        assert ends == pytest.approx([figure.mean, figure.low, figure.high], abs=5e-5)  # as MLflow shows them
    assert found["adam"].params == {"optimizer": "adam", "class": "Adam", "seeds": "0, 1", "status": "completed"}


def test_parallel_coordinates_use_params_of_sampled_trials(client):
    """MLflow leaves out a trial that lacks one, as the one with the class's own values does."""
    trials = [
        ADAM.model_copy(update={"run": name, "params": {"class": "Adam"} | params, "tags": {"trial": name}})
        for name, params in (("default", {}), ("0", {"lr": "0.1", "beta": "0.9"}), ("1", {"lr": "0.2"}))
    ]  # fmt: skip
    comparison_view.update_trial_runs(client, "optlab", tuple(trials))
    tags = client.get_experiment_by_name("optlab-tuning").tags
    state = json.loads(comparison_view.decode_view_tag(tags[comparison_view.VIEW_TAG]))
    assert state["compareRunCharts"][0]["selectedParams"] == ["lr"]
    assert "`optlab`" in tags[comparison_view.DESCRIPTION_TAG]


def test_report_is_artifact_of_first_summary_run(client, top):
    """Once, and again where the page has changed."""
    page = top / "reports" / "report.html"
    page.parent.mkdir(exist_ok=True)
    for content in ("one", "one", "two"):
        page.write_text(content)
        found = show(client, ADAM, SGD)
        (path,) = [each.path for each in client.list_artifacts(found["adam"][0])]
        assert path == "report.html" and not client.list_artifacts(found["sgd"][0])
        assert Path(client.download_artifacts(found["adam"][0], path)).read_text() == content
    experiment = client.get_experiment_by_name("optlab.summary")
    assert "adam's run" in experiment.tags[comparison_view.DESCRIPTION_TAG]


def test_repeated_summary_upload_changes_nothing(client):
    first = show(client, ADAM, SGD)
    assert {name: len(runs) for name, runs in first.items()} == {"adam": 1, "sgd": 1}
    assert show(client, ADAM, SGD) == first
    history = client.get_metric_history(first["adam"][0], "train_loss/mean")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]


def test_changed_summary_is_replaced_and_stale_one_removed(client):
    first = show(client, ADAM, SGD)
    changed = ADAM.model_copy(update={"points": (*POINTS, ("train_loss/mean", 0.5, 3))})
    second = show(client, changed)
    assert list(second) == ["adam"] and second["adam"] != first["adam"]


def test_rejected_param_does_not_lose_other_summary_data(client):
    odd = ADAM.model_copy(update={"params": {"seeds": "0", "k+(1)": "2"}})
    (run,) = show(client, odd)["adam"]
    assert client.get_run(run).data.params == {"seeds": "0"}
    assert len(client.get_metric_history(run, "train_loss/mean")) == 2
    assert [each.path for each in client.list_artifacts(run)] == ["whole"]


def test_interrupted_summary_is_ignored_and_cleaned_up_later(client, monkeypatch):
    def cut(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_terminated", cut)
        with pytest.raises(KeyboardInterrupt):
            show(client, ADAM)
    assert find_current_runs(client) == {}
    assert len(find_all_runs(client)) == 1
    assert len(show(client, ADAM)["adam"]) == 1
    assert len(find_all_runs(client)) == 2  # another machine may be at work on it
    monkeypatch.setattr(comparison_view, "_MAX_BUILD_MS", 0)
    show(client, ADAM)
    assert find_all_runs(client) == find_current_runs(client)["adam"]


def find_all_runs(client):
    experiment = client.get_experiment_by_name("optlab.summary").experiment_id
    return [run.info.run_id for run in client.search_runs([experiment])]


def test_duplicate_summaries_are_merged(client):
    """As where two machines have made it at once."""
    first = show(client, ADAM)
    comparison_view._create_run(client, client.get_experiment_by_name("optlab.summary").experiment_id, ADAM)
    assert len(find_current_runs(client)["adam"]) == 2
    assert show(client, ADAM) == first


def test_undeletable_summary_is_tagged_earlier(client, monkeypatch):
    """As on a server with a login, where another member has made it."""

    def refused(*arguments):
        raise MlflowException("Permission denied")

    monkeypatch.setattr(mlflow.MlflowClient, "delete_run", refused)
    (old,) = show(client, SGD)["sgd"]
    assert list(show(client, ADAM)) == ["adam"]
    assert client.get_run(old).data.tags["summary"] == "earlier"
