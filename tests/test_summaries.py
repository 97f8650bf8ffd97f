"""The means over the seeds in MLflow: what they hold, and that each is there once."""

import json

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from test_figures import compared

from optlab.results import statistics
from optlab.tracking import descriptions, publish, server, summaries, view
from optlab.tracking.summaries import Summary

POINTS = (("train_loss/mean", 2.0, 1), ("train_loss/mean", 1.0, 2))
ADAM = Summary(optimizer="adam", colour="#123456", params={"seeds": "0, 1"}, points=POINTS)
SGD = ADAM.model_copy(update={"optimizer": "sgd"})


def held(client):
    """Name → the runs that pass for present ones."""
    experiment = client.get_experiment_by_name("optlab.summary").experiment_id
    found = {}
    for run in client.search_runs([experiment], "tags.summary = 'current'"):
        found.setdefault(run.info.run_name, []).append(run.info.run_id)
    return found


@pytest.fixture
def client(top):
    return server.connect()


def show(client, *wanted):
    summaries.show(client, "optlab", wanted, validated=True)
    return held(client)


def test_a_summary_holds_the_mean_and_its_interval(small_config, tmp_path):
    config = small_config(seeds=[0, 1])
    losses = {"sgd-0": [2.0, 1.0], "sgd-1": [2.2, 1.4], "adam-0": [2.3], "adam-1": [2.5]}
    seen = {"sgd-0": [0.2], "sgd-1": [0.3], "adam-0": [0.5], "adam-1": [0.6]}
    found = {
        each.optimizer: each for each in publish.shown(compared(config, tmp_path, losses, seen), tmp_path).summaries
    }
    points = {(key, step): value for key, value, step in found["sgd"].points}
    for key, step, values in (
        ("train_loss", 1, [2.0, 2.2]), ("train_loss", 2, [1.0, 1.4]), ("validation_accuracy", 7, [0.2, 0.3]),
        ("test_accuracy", 0, [0.5, 0.5]),
    ):  # fmt: skip
        figure = statistics.figure(values)
        ends = [points[f"{key}/{end}", step] for end in ("mean", "lower", "upper")]
        assert ends == pytest.approx([figure.mean, figure.low, figure.high], abs=5e-5)  # as MLflow shows them
    assert found["adam"].params == {"optimizer": "adam", "class": "Adam", "seeds": "0, 1", "status": "completed"}


def test_the_coordinates_are_what_every_drawn_trial_has(client):
    """MLflow leaves out a trial that lacks one, as the one with the class's own values does."""
    trials = [
        ADAM.model_copy(update={"run": name, "params": {"class": "Adam"} | params, "tags": {"trial": name}})
        for name, params in (("default", {}), ("0", {"lr": "0.1", "beta": "0.9"}), ("1", {"lr": "0.2"}))
    ]  # fmt: skip
    summaries.show_trials(client, "optlab", tuple(trials))
    tags = client.get_experiment_by_name("optlab-tuning").tags
    state = json.loads(view.state(tags[view.TAG]))
    assert state["compareRunCharts"][0]["selectedParams"] == ["lr"]
    assert "`optlab`" in tags[descriptions.TAG]


def test_a_repetition_changes_nothing(client):
    first = show(client, ADAM, SGD)
    assert {name: len(runs) for name, runs in first.items()} == {"adam": 1, "sgd": 1}
    assert show(client, ADAM, SGD) == first
    history = client.get_metric_history(first["adam"][0], "train_loss/mean")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]


def test_what_has_changed_is_made_anew_and_what_is_gone_goes(client):
    first = show(client, ADAM, SGD)
    changed = ADAM.model_copy(update={"points": (*POINTS, ("train_loss/mean", 0.5, 3))})
    second = show(client, changed)
    assert list(second) == ["adam"] and second["adam"] != first["adam"]


def test_a_parameter_that_mlflow_refuses_costs_nothing_else(client):
    odd = ADAM.model_copy(update={"params": {"seeds": "0", "k+(1)": "2"}})
    (run,) = show(client, odd)["adam"]
    assert client.get_run(run).data.params == {"seeds": "0"}
    assert len(client.get_metric_history(run, "train_loss/mean")) == 2
    assert [each.path for each in client.list_artifacts(run)] == ["whole"]


def test_one_that_was_cut_short_passes_for_none_and_is_swept_away_later(client, monkeypatch):
    def cut(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_terminated", cut)
        with pytest.raises(KeyboardInterrupt):
            show(client, ADAM)
    assert held(client) == {}
    assert len(every(client)) == 1
    assert len(show(client, ADAM)["adam"]) == 1
    assert len(every(client)) == 2  # another machine may be at work on it
    monkeypatch.setattr(summaries, "_LONGEST_MS", 0)
    show(client, ADAM)
    assert every(client) == held(client)["adam"]


def every(client):
    experiment = client.get_experiment_by_name("optlab.summary").experiment_id
    return [run.info.run_id for run in client.search_runs([experiment])]


def test_two_of_the_same_become_one(client):
    """As where two machines have made it at once."""
    first = show(client, ADAM)
    summaries._make(client, client.get_experiment_by_name("optlab.summary").experiment_id, ADAM)
    assert len(held(client)["adam"]) == 2
    assert show(client, ADAM) == first


def test_one_that_may_not_be_deleted_is_an_earlier_one(client, monkeypatch):
    """As on a server with a login, where another member has made it."""

    def refused(*arguments):
        raise MlflowException("Permission denied")

    monkeypatch.setattr(mlflow.MlflowClient, "delete_run", refused)
    (old,) = show(client, SGD)["sgd"]
    assert list(show(client, ADAM)) == ["adam"]
    assert client.get_run(old).data.tags["summary"] == "earlier"
