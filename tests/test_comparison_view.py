"""A finished comparison in MLflow: the champion, the logged models and the addresses."""

import json

import pytest
from events import complete

from optlab.tracking import comparison_view, mlflow_store, mlflow_writer, uploader
from optlab.tracking.comparison_view import ComparisonView

RUN, WEIGHTS = "adam-0", "abc"


@pytest.fixture
def client(top):
    complete()
    assert uploader.push_pending()
    client = mlflow_store.connect()
    run = mlflow_store.find_run_ids("optlab", [(RUN, WEIGHTS)])[0]
    _log_model(client, run)
    return client


def _log_model(client, run):
    """As an earlier version has: without metrics and parameters."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param

    client.log_batch(run, [Metric("test/accuracy", 0.62, 5, 0)], [Param("optimizer.lr", "0.001")])
    model = client.create_logged_model(mlflow_store.get_or_create_experiment(client, "optlab"), RUN, source_run_id=run)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])


def show(**changes):
    fields = {"experiment": "optlab", "runs": ((RUN, WEIGHTS),), "champion": RUN, "conditions": "the same",
              "chosen_by": "validation_accuracy", "summaries": ()}  # fmt: skip
    return comparison_view.update_comparison(ComparisonView(**fields | changes))


def test_champion_is_registered_once_and_described(client):
    for _ in range(3):
        said = show()
    (version,) = client.search_model_versions(f"name = '{comparison_view.REGISTERED_MODEL}'")
    assert (
        client.get_model_version_by_alias(comparison_view.REGISTERED_MODEL, comparison_view.CHAMPION_ALIAS).version
        == version.version
    )
    run = mlflow_store.find_run_ids("optlab", [(RUN, WEIGHTS)])[0]
    model = client.get_logged_model(mlflow_writer.find_logged_model_id(client, run))
    assert [(metric.key, metric.value) for metric in model.metrics] == [("test/accuracy", 0.62)]
    assert model.params["optimizer.lr"] == "0.001"
    registered = [{"name": comparison_view.REGISTERED_MODEL, "version": str(version.version)}]
    assert json.loads(model.tags["mlflow.modelVersions"]) == registered
    assert [point.timestamp for point in client.get_metric_history(run, "test/accuracy")] == [5]  # no second one
    assert said == 'MLflow has all runs: `optlab ui` (or `mlflow ui`, then "Model training", top left) opens its pages'


def test_experiment_description_keeps_user_edits(client):
    show(report="studies/x/reports/report.html")
    experiment = mlflow_store.get_or_create_experiment(client, "optlab")
    said = client.get_experiment(experiment).tags[comparison_view.DESCRIPTION_TAG]
    assert "`studies/x/reports/report.html`" in said and "`running_loss`" in said
    client.set_experiment_tag(experiment, comparison_view.DESCRIPTION_TAG, "mine")
    show()
    assert client.get_experiment(experiment).tags[comparison_view.DESCRIPTION_TAG] == "mine"


def test_page_urls_cover_published_comparisons(client):
    assert comparison_view.find_page_urls(client, "optlab", "http://here", preconfigured=True) == {}
    show()
    found = comparison_view.find_page_urls(client, "optlab", "http://here", preconfigured=True)
    assert list(found.values())[:2] == [
        "http://here/#/experiments/1/runs?compareRunsMode=CHART", "http://here/#/experiments/1/runs"
    ]  # fmt: skip
    shared = comparison_view.find_page_urls(client, "optlab", "http://there", preconfigured=False)
    assert all(
        f"viewStateShareKey={comparison_view.VIEW_NAME}&workflowType=machine_learning" in each
        for each in shared.values()
    )


def _erase(client, run):
    """As `mlflow gc` does, after a person has deleted the run."""
    client.delete_run(run)
    client._tracking_client.store._hard_delete_run(run)


def test_champion_alias_of_erased_run_is_removed(client):
    show()
    _erase(client, mlflow_store.find_run_ids("optlab", [(RUN, WEIGHTS)])[0])
    for _ in range(2):
        assert "all runs but adam-0, deleted there: " in show()
    assert client.get_registered_model(comparison_view.REGISTERED_MODEL).aliases == {}


def test_champion_alias_of_deleted_model_is_removed(client):
    show()
    client.delete_logged_model(
        mlflow_writer.find_logged_model_id(client, mlflow_store.find_run_ids("optlab", [(RUN, WEIGHTS)])[0])
    )
    for _ in range(2):
        show()
    assert client.get_registered_model(comparison_view.REGISTERED_MODEL).aliases == {}
