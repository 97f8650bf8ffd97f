"""A finished comparison in MLflow: the champion, the logged models and the addresses."""

import json

import pytest
from events import complete

from optlab.tracking import descriptions, replay, sending, server, shown, view
from optlab.tracking.shown import Shown

RUN, WEIGHTS = "adam-0", "abc"


@pytest.fixture
def client(top):
    complete()
    assert replay.push_pending()
    client = server.connect()
    run = server.find_run_ids("optlab", [(RUN, WEIGHTS)])[0]
    _log_model(client, run)
    return client


def _log_model(client, run):
    """As an earlier version has: without metrics and parameters."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param

    client.log_batch(run, [Metric("test/accuracy", 0.62, 5, 0)], [Param("optimizer.lr", "0.001")])
    model = client.create_logged_model(server.experiment(client, "optlab"), RUN, source_run_id=run)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])


def show(**changes):
    fields = {"experiment": "optlab", "runs": ((RUN, WEIGHTS),), "champion": RUN, "conditions": "the same",
              "chosen_by": "validation_accuracy", "summaries": ()}  # fmt: skip
    return shown.show(Shown(**fields | changes))


def test_the_champion_is_registered_once_and_described(client):
    for _ in range(3):
        said = show()
    (version,) = client.search_model_versions(f"name = '{shown.REGISTERED_MODEL}'")
    assert client.get_model_version_by_alias(shown.REGISTERED_MODEL, shown.CHAMPION).version == version.version
    run = server.find_run_ids("optlab", [(RUN, WEIGHTS)])[0]
    model = client.get_logged_model(sending.logged_model(client, run))
    assert [(metric.key, metric.value) for metric in model.metrics] == [("test/accuracy", 0.62)]
    assert model.params["optimizer.lr"] == "0.001"
    registered = [{"name": shown.REGISTERED_MODEL, "version": str(version.version)}]
    assert json.loads(model.tags["mlflow.modelVersions"]) == registered
    assert [point.timestamp for point in client.get_metric_history(run, "test/accuracy")] == [5]  # no second one
    assert said == 'MLflow has all runs: `optlab ui` (or `mlflow ui`, then "Model training", top left) opens its pages'


def test_an_experiment_is_described_unless_a_person_has_done_that(client):
    show(report="studies/x/reports/report.html")
    experiment = server.experiment(client, "optlab")
    said = client.get_experiment(experiment).tags[descriptions.TAG]
    assert "`studies/x/reports/report.html`" in said and "`running_loss`" in said
    client.set_experiment_tag(experiment, descriptions.TAG, "mine")
    show()
    assert client.get_experiment(experiment).tags[descriptions.TAG] == "mine"


def test_the_addresses_are_those_of_what_has_been_shown(client):
    assert shown.addresses(client, "optlab", "http://here", prepared=True) == {}
    show()
    found = shown.addresses(client, "optlab", "http://here", prepared=True)
    assert list(found.values())[:2] == [
        "http://here/#/experiments/1/runs?compareRunsMode=CHART", "http://here/#/experiments/1/runs"
    ]  # fmt: skip
    shared = shown.addresses(client, "optlab", "http://there", prepared=False)
    assert all(f"viewStateShareKey={view.NAME}&workflowType=machine_learning" in each for each in shared.values())


def _erase(client, run):
    """As `mlflow gc` does, after a person has deleted the run."""
    client.delete_run(run)
    client._tracking_client.store._hard_delete_run(run)


def test_an_alias_of_a_run_that_mlflow_has_erased_is_taken_away(client):
    show()
    _erase(client, server.find_run_ids("optlab", [(RUN, WEIGHTS)])[0])
    for _ in range(2):
        assert "all runs but adam-0, deleted there: " in show()
    assert client.get_registered_model(shown.REGISTERED_MODEL).aliases == {}


def test_a_champion_whose_model_was_deleted_in_mlflow_has_no_alias(client):
    show()
    client.delete_logged_model(sending.logged_model(client, server.find_run_ids("optlab", [(RUN, WEIGHTS)])[0]))
    for _ in range(2):
        show()
    assert client.get_registered_model(shown.REGISTERED_MODEL).aliases == {}
