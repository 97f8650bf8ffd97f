"""What of a comparison MLflow is to show, and that it shows it in the end."""

import pytest
from events import complete
from mlflow.exceptions import MlflowException
from test_summaries import ADAM

from optlab.tracking import pending, replay, server, shown
from optlab.tracking.shown import Shown

PRESENT = Shown(
    experiment="optlab", runs=(("adam-0", "abc"),), champion=None, conditions="the same", chosen_by="train_loss",
    summaries=(ADAM,),
)  # fmt: skip


def marks(client):
    runs = client.search_runs([client.get_experiment_by_name("optlab").experiment_id])
    return [run.data.tags.get("comparison") for run in runs]


def summaries(client):
    found = client.get_experiment_by_name("optlab.summary")
    return len(client.search_runs([found.experiment_id])) if found else 0


@pytest.mark.parametrize("trouble", ["away", "other"])
def test_a_comparison_that_a_store_has_not_shown_is_shown_later(top, monkeypatch, trouble):
    """The store was full, say, while it was published; or it was replaced by another one since."""
    complete()
    pending.Pending(shown=PRESENT).write()
    assert replay.push_pending()
    if trouble == "away":
        with monkeypatch.context() as patch:
            patch.setattr(shown, "show", lambda each: pytest.fail("full"))
            with pytest.raises(pytest.fail.Exception):
                list(pending.show_all())
    else:
        assert list(pending.show_all()) == ["optlab"]
        assert list(pending.show_all()) == []
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{top}/another.db")
        server.forget()
        assert replay.push_pending()
    assert list(pending.show_all()) == ["optlab"]
    assert list(pending.show_all()) == []
    client = server.connect()
    assert (marks(client), summaries(client)) == (["current"], 1)


def test_the_runs_beyond_the_first_page_lose_their_mark_too(top, monkeypatch):
    """MLflow answers a search with the first 1,000 runs."""
    client = server.connect()
    place = server.experiment(client, "optlab")
    for _ in range(5):
        client.create_run(place, tags={"comparison": "current"})
    search = type(client).search_runs
    monkeypatch.setattr(type(client), "search_runs", lambda *own, **named: search(*own, **{"max_results": 2} | named))
    shown.show(PRESENT)
    assert [run.data.tags["comparison"] for run in search(client, [place])] == ["earlier"] * 5


def test_a_damaged_one_is_no_trouble(top):
    pending.COMPARISONS.mkdir(parents=True)
    (pending.COMPARISONS / "optlab.json").write_text("{")
    assert list(pending.show_all()) == []


def test_where_nothing_completed_the_alias_stays_on_no_earlier_run(top):
    """Neither where the champion's weights are not at hand; another pipeline's champion stays."""
    complete(digest="earlier")
    complete()
    assert replay.push_pending()
    client = server.connect()
    (run,) = client.search_runs([server.experiment(client, "optlab")], "tags.`weights.sha256` = 'earlier'")
    client.create_registered_model(shown.REGISTERED_MODEL)
    version = client.create_model_version(shown.REGISTERED_MODEL, "mlruns/x", run.info.run_id).version

    def champion():
        client.set_registered_model_alias(shown.REGISTERED_MODEL, shown.CHAMPION, version)

    champion()
    shown.show(PRESENT.model_copy(update={"experiment": "optlab-tutorial", "runs": ()}))
    assert client.get_model_version_by_alias(shown.REGISTERED_MODEL, shown.CHAMPION).version == version
    for now in (None, "adam-0"):
        champion()
        shown.show(PRESENT.model_copy(update={"champion": now}))
        with pytest.raises(MlflowException, match="alias champion not found"):
            client.get_model_version_by_alias(shown.REGISTERED_MODEL, shown.CHAMPION)
