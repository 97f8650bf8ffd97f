"""What of a comparison MLflow is to show, and that it shows it in the end."""

from pathlib import Path

import pytest
from events import complete
from mlflow.exceptions import MlflowException
from test_figures import collect_comparison
from test_summary_runs import ADAM

from optlab.tracking import comparison_sync, comparison_view, mlflow_store, uploader
from optlab.tracking.comparison_view import ComparisonView

PRESENT = ComparisonView(
    experiment="optlab", runs=(("adam-0", "abc"),), champion=None, conditions="the same", chosen_by="train_loss",
    summaries=(ADAM,),
)  # fmt: skip


def comparison_tags(client):
    runs = client.search_runs([client.get_experiment_by_name("optlab").experiment_id])
    return [run.data.tags.get("comparison") for run in runs]


def summaries(client):
    found = client.get_experiment_by_name("optlab.summary")
    return len(client.search_runs([found.experiment_id])) if found else 0


@pytest.mark.parametrize("trouble", ["away", "other"])
def test_unpublished_comparison_is_published_later(top, monkeypatch, trouble):
    """The store was full, say, while it was published; or it was replaced by another one since."""
    complete()
    comparison_view.ComparisonSyncState(shown=PRESENT).write()
    assert uploader.push_pending()
    if trouble == "away":
        with monkeypatch.context() as patch:
            patch.setattr(comparison_view, "update_comparison", lambda each: pytest.fail("full"))
            with pytest.raises(pytest.fail.Exception):
                list(comparison_view.update_outdated_views())
    else:
        assert list(comparison_view.update_outdated_views()) == ["optlab"]
        assert list(comparison_view.update_outdated_views()) == []
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{top}/another.db")
        mlflow_store.invalidate_store_id()
        assert uploader.push_pending()
    assert list(comparison_view.update_outdated_views()) == ["optlab"]
    assert list(comparison_view.update_outdated_views()) == []
    client = mlflow_store.connect()
    assert (comparison_tags(client), summaries(client)) == (["current"], 1)


@pytest.mark.parametrize("answer", [None, {"reached": False}, {}], ids=["no daemon", "daemon", "slow daemon"])
def test_restored_runs_wait_for_optlab_show(top, small_config, monkeypatch, capsys, answer):
    """`optlab sync` has no log of them to send, and must not say that MLflow has everything."""

    class Client:
        def request(self, **message):
            return answer

    def fail(*arguments):
        raise ConnectionError("away")

    compared = collect_comparison(small_config(), Path(), {"sgd-0": [2.0], "adam-0": [2.3]})
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "find_missing_runs", fail)
        assert "`optlab show` sends the runs later" in comparison_sync.publish(compared, Path(), Client())
    assert ("away" in capsys.readouterr().err) == (answer is None)  # the daemon itself warns
    assert not comparison_view.get_state_path("optlab").exists()
    assert comparison_sync.publish(compared, Path()).startswith("MLflow has all runs")
    assert comparison_tags(mlflow_store.connect()) == ["current"] * 2


def test_comparison_tag_is_cleared_beyond_first_page(top, monkeypatch):
    """MLflow answers a search with the first 1,000 runs."""
    client = mlflow_store.connect()
    place = mlflow_store.get_or_create_experiment(client, "optlab")
    for _ in range(5):
        client.create_run(place, tags={"comparison": "current"})
    search = type(client).search_runs
    monkeypatch.setattr(type(client), "search_runs", lambda *own, **named: search(*own, **{"max_results": 2} | named))
    comparison_view.update_comparison(PRESENT)
    assert [run.data.tags["comparison"] for run in search(client, [place])] == ["earlier"] * 5


def test_damaged_pending_comparison_is_ignored(top):
    comparison_view.COMPARISON_FOLDER.mkdir(parents=True)
    (comparison_view.COMPARISON_FOLDER / "optlab.json").write_text("{")
    assert list(comparison_view.update_outdated_views()) == []


def test_champion_alias_is_removed_without_completed_run(top):
    """Neither where the champion's weights are not at hand; another pipeline's champion stays."""
    complete(digest="earlier")
    complete()
    assert uploader.push_pending()
    client = mlflow_store.connect()
    (run,) = client.search_runs(
        [mlflow_store.get_or_create_experiment(client, "optlab")], "tags.`weights.sha256` = 'earlier'"
    )
    client.create_registered_model(comparison_view.REGISTERED_MODEL)
    version = client.create_model_version(comparison_view.REGISTERED_MODEL, "mlruns/x", run.info.run_id).version

    def champion():
        client.set_registered_model_alias(comparison_view.REGISTERED_MODEL, comparison_view.CHAMPION_ALIAS, version)

    champion()
    comparison_view.update_comparison(PRESENT.model_copy(update={"experiment": "optlab-tutorial", "runs": ()}))
    assert (
        client.get_model_version_by_alias(comparison_view.REGISTERED_MODEL, comparison_view.CHAMPION_ALIAS).version
        == version
    )
    for now in (None, "adam-0"):
        champion()
        comparison_view.update_comparison(PRESENT.model_copy(update={"champion": now}))
        with pytest.raises(MlflowException, match="alias champion not found"):
            client.get_model_version_by_alias(comparison_view.REGISTERED_MODEL, comparison_view.CHAMPION_ALIAS)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "INTERNAL_ERROR"])
def test_alias_that_may_not_be_removed_does_not_stop_the_rest(top, monkeypatch, code):
    """On a server with logins, it takes more to remove an alias than to set it."""
    from mlflow.protos import databricks_pb2

    complete()
    assert uploader.push_pending()
    client = mlflow_store.connect()
    (run,) = client.search_runs([mlflow_store.get_or_create_experiment(client, "optlab")])
    client.create_registered_model(comparison_view.REGISTERED_MODEL)
    version = client.create_model_version(comparison_view.REGISTERED_MODEL, "mlruns/x", run.info.run_id).version
    client.set_registered_model_alias(comparison_view.REGISTERED_MODEL, comparison_view.CHAMPION_ALIAS, version)

    def refuse(*arguments):
        raise MlflowException("no", error_code=getattr(databricks_pb2, code))

    monkeypatch.setattr(type(client), "delete_registered_model_alias", refuse)
    if code == "PERMISSION_DENIED":
        assert comparison_view.update_comparison(PRESENT).startswith("MLflow has all runs")
    else:
        with pytest.raises(MlflowException):
            comparison_view.update_comparison(PRESENT)
    assert summaries(client) == (code == "PERMISSION_DENIED")
