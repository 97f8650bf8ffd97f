"""The journal, and its replay into a real MLflow database."""

import collections
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from events import begun, complete, start

from optlab.record.contents import Conditions, Epoch, Evaluated, Trained
from optlab.system import locks, repository
from optlab.system.errors import StorageError
from optlab.tracking import facts, journal, refusals, replay, server


def logged():
    client = server.connect()
    runs = client.search_runs([server.experiment(client, "optlab")])
    return client, runs


def losses(client, run):
    return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, "step/loss")]


def test_a_line_cut_by_a_kill_is_left_out_and_the_next_is_whole(top):
    log = begun()
    with log.path.open("a") as file:
        file.write('{"event": "metr')
    assert [event["event"] for event in log.events()] == ["start"]
    log.metrics([("step/loss", 2.5, 1001, 0)])
    assert [event["event"] for event in log.events()] == ["start", "metrics"]
    assert replay.push_pending()
    client, (run,) = logged()
    assert losses(client, run) == [(0, 2.5, 1001)]


_opened = None  # the paths of the files that are opened, while somebody asks


def _audit(event, arguments):
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_audit)


@contextlib.contextmanager
def opened():
    """The files of journals that are opened meanwhile."""
    global _opened
    _opened, paths = [], []
    try:
        yield paths
    finally:
        paths += [path for path in _opened if f"{journal.JOURNALS}/" in path]
        _opened = None


def test_journals_that_mlflow_has_whole_are_not_opened(top):
    """What a stage does with every journal there is must not cost more with every run that was ever made."""
    for _ in range(5):
        complete()
    assert len(list(replay.push_all())) == 5
    own = begun()
    with opened() as paths:
        assert list(replay.push_all()) == [own.folder.name]
        journal.end_abandoned("optlab-adam-0", own)
        assert journal.find("adam-0", "abd") is None
        assert journal.find("adam-0", "abc").folder != own.folder
    assert {path for path in paths if path.endswith("events.jsonl")} == {str(own.path)}
    read = collections.Counter(path for path in paths if str(own.folder) not in path)
    assert {Path(path).name for path in read} == {"synced.json"}
    assert max(read.values()) <= 4  # one for each of the lines above


def test_a_journal_that_grew_since_is_read_again(top):
    log = complete()
    assert list(replay.push_all()) == [log.folder.name]
    log.append("tags", tags={"weights.sha256": "abd"})
    assert journal.find("adam-0", "abd").folder == log.folder
    log.append("resume", time=3000, step=1, after="completed", number=1)
    journal.end_abandoned("optlab-adam-0", begun())
    assert list(log.events())[-1]["event"] == "end"
    assert log.folder.name in list(replay.push_all())
    assert "abd" in {run.data.tags.get("weights.sha256") for run in logged()[1]}


def test_what_an_earlier_version_has_noted_is_not_sent_again(top):
    log = complete()
    assert list(replay.push_all()) == [log.folder.name]
    note = json.loads((log.folder / "synced.json").read_text())
    (log.folder / "synced.json").write_text(json.dumps({key: note[key] for key in ("store", "run_id", "events")}))
    assert list(replay.push_all()) == []
    assert replay.sent(log).status == "completed"


def test_what_comes_out_is_what_went_in_with_its_times(top):
    log = begun()
    log.metrics([("step/loss", 2.5, 1001, 0), ("step/loss", 2.25, 1002, 1)])
    log.append("tags", tags={"weights.sha256": "abc"})
    log.append("end", status="completed", time=2000)
    replay.Replay(log).push()
    client, (run,) = logged()
    assert (run.info.start_time, run.info.end_time, run.info.status) == (1000, 2000, "FINISHED")
    assert losses(client, run) == [(0, 2.5, 1001), (1, 2.25, 1002)]
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["weights.sha256"] == "abc"


def test_in_pieces_or_again_from_the_start_is_the_same_run(top):
    log = begun()
    replay.Replay(log).push()
    log.metrics([("step/loss", 2.5, 1001, 0)])
    replay.Replay(log).push()
    # Killed after MLflow had everything, before that was noted: the whole journal is sent once more.
    (log.folder / "synced.json").unlink()
    log.metrics([("step/loss", 2.25, 1002, 1)])
    replay.Replay(log).push()
    client, (run,) = logged()
    assert losses(client, run) == [(0, 2.5, 1001), (1, 2.25, 1002)]


def test_two_clones_that_begin_a_run_in_one_second_have_two_runs(top, monkeypatch, small_config):
    """Their journals have the same name: the time, the run, and a digest of what decides it."""
    monkeypatch.setattr(journal.time, "strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        log = journal.Journal.create("adam-0", "a key")
        log.append("start", **facts.facts(small_config(), Path(), "adam", 0, Conditions()))
        log.metrics([("step/loss", 2.5, 1001, 0)])
        for _ in range(2):  # the second as after a kill: it is the same run
            assert replay.push_pending()
            (log.folder / "synced.json").unlink()
        shutil.rmtree(log.folder)
    client, runs = logged()
    assert [losses(client, run) for run in runs] == [[(0, 2.5, 1001)]] * 2


def test_a_deleted_database_is_filled_again(top):
    for name in ("adam-0", "sgd-0"):
        replay.Replay(begun(name)).push()
    for path in top.glob("mlflow.db*"):
        path.unlink()
    # In another process: MLflow keeps a connection to the deleted file open.
    look = "from optlab.tracking import replay, server; replay.push_pending(); c = server.connect(); "
    look += "print(len(c.search_runs([server.experiment(c, 'optlab')])))"
    result = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr


def test_what_the_store_refuses_for_good_is_reported_once_and_passed_over(top, capsys):
    """A run that somebody deleted in the UI takes no more metrics; that must not stop what comes after."""
    log = begun()
    replay.Replay(log).push()
    client, (run,) = logged()
    client.delete_run(run.info.run_id)
    log.metrics([("step/loss", 2.5, 1001, 0)])
    begun("sgd-0")
    assert replay.push_pending()
    assert "refuses the metrics" in capsys.readouterr().err
    assert replay.push_pending()
    assert capsys.readouterr().err == ""
    assert len(logged()[1]) == 1


def test_a_deleted_experiment_comes_back(top):
    log = begun()
    replay.Replay(log).push()
    client, _ = logged()
    client.delete_experiment(server.experiment(client, "optlab"))
    begun("sgd-0")
    assert replay.push_pending()
    experiment = client.get_experiment_by_name("optlab")
    assert experiment.lifecycle_stage == "active"
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"adam", "sgd"}


def test_a_journal_that_never_started_holds_nothing_up(top):
    stopped = journal.Journal.create("sgd-0")
    stopped.append("end", status="interrupted", time=1)
    begun()
    assert replay.push_pending()
    assert [run.info.run_name for run in logged()[1]] == ["adam"]


def test_a_damaged_journal_is_named_and_the_others_are_sent(top, capsys):
    damaged = begun("sgd-0")
    damaged.path.write_text('{"event": "start"}\n')
    begun()
    replay.push_pending()
    assert capsys.readouterr().err.count("warning") == 1
    assert len(logged()[1]) == 1


@pytest.mark.parametrize(
    ("status", "shown"),
    [("completed", "FINISHED"), ("diverged", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")],
)
def test_every_status_is_shown(top, status, shown):
    log = begun()
    log.append("end", status=status, time=2000)
    replay.Replay(log).push()
    _, (run,) = logged()
    assert (run.info.status, run.data.tags["status"]) == (shown, status)


def test_an_evaluation_that_diverges_is_said(top):
    """The training ended as completed; its outputs on the test split are not finite."""
    log = begun()
    log.end("completed")
    epoch = Epoch(epoch=1, train_loss=1.0, running_loss=7.0, validation_loss=1.0, validation_accuracy=0.4, lr=0.1)
    trained = Trained.of("completed", [epoch], [], [[1.0]], {}, "0" * 64)
    weights = top / "adam-0.safetensors"
    weights.touch()
    facts.evaluation(log, "adam-0", weights, trained, Evaluated(status="diverged"), "zilliax")
    replay.Replay(log).push()
    _, (run,) = logged()
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "diverged")
    assert "model" not in [event["event"] for event in log.events()]


def test_a_file_is_kept_though_the_next_run_replaces_it(top):
    """DVC removes a stage's outputs and the stage writes new files: the run's own is still there to be sent."""
    log = begun()
    weights = top / "adam-0.safetensors"
    weights.write_text("mine")
    log.artifact(weights)
    weights.unlink()
    weights.write_text("another run's")
    replay.Replay(log).push()
    client, (run,) = logged()
    assert Path(client.download_artifacts(run.info.run_id, "adam-0.safetensors")).read_text() == "mine"


def test_figures_held_back_are_written_before_the_end(top):
    log = begun()
    log.before_end = lambda: log.metrics([("step/loss", 2.5, 1001, 0)])
    with pytest.raises(KeyboardInterrupt), facts.ending(log):
        raise KeyboardInterrupt
    assert [event["event"] for event in log.events()] == ["start", "metrics", "end"]
    assert list(log.events())[-1]["status"] == "interrupted"


def test_the_newest_journal_with_the_weights_is_found(top):
    newer, other = begun(), begun("adam-01")
    older = begun()
    for log in (older, newer, other):
        log.append("tags", tags={"weights.sha256": "abc"})
    older.folder.rename(older.folder.with_name(f"20200101{older.folder.name[8:]}"))
    found = journal.find("adam-0", "abc")
    assert found is not None and found.folder == newer.folder
    assert journal.find("adam-0", "abd") is None


def test_the_state_names_the_store_it_is_about(top, monkeypatch):
    log = begun()
    replay.Replay(log).push()
    assert json.loads((log.folder / "synced.json").read_text())["events"] == 1
    assert replay.sent(log)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{top}/another.db")
    assert not replay.sent(log)


@pytest.fixture
def elsewhere(top, monkeypatch):
    """Another store than the repository's own, as a server is one; a function that puts an empty one in its place."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{top}/another.db")
    shutil.copy("mlflow.db", "another.db")
    server.forget()

    def replace():
        with contextlib.closing(sqlite3.connect("another.db")) as database:
            tables = database.execute(
                "SELECT name FROM sqlite_master WHERE name != 'alembic_version' AND type = 'table'"
            )
            for (name,) in tables.fetchall():
                database.execute(f"DELETE FROM {name}")
            database.execute("ATTACH 'mlflow.db' AS fresh")
            database.execute("INSERT INTO experiments SELECT * FROM fresh.experiments")
            database.commit()

    return replace


def test_a_store_that_was_emptied_behind_its_address_is_filled_again(elsewhere):
    log = begun()
    log.append("end", status="completed", time=2000)
    assert list(replay.push_all()) == [log.folder.name]
    assert list(replay.push_all()) == []
    elsewhere()
    server.forget()  # as in another process
    assert list(replay.push_all()) == [log.folder.name]
    assert list(replay.push_all()) == []
    assert len(logged()[1]) == 1


def test_one_that_is_emptied_under_a_training_is_filled_again_by_it(elsewhere):
    """The store knows nothing of the run then, and refuses what belongs to it."""
    log = begun()
    live = replay.Replay(log)
    live.push()
    elsewhere()
    log.metrics([("step/loss", 2.5, 1001, 0)])
    live.push()
    log.metrics([("step/loss", 2.25, 1002, 1)])
    live.push()
    client, (run,) = logged()
    assert losses(client, run) == [(0, 2.5, 1001), (1, 2.25, 1002)]


def test_which_store_it_is_is_asked_once(elsewhere, monkeypatch):
    from mlflow import MlflowClient

    asked = []
    search = MlflowClient.search_experiments
    monkeypatch.setattr(MlflowClient, "search_experiments", lambda *a, **k: asked.append(1) or search(*a, **k))
    for name in ("adam-0", "adam-1", "sgd-0"):
        begun(name)
    assert len(list(replay.push_all())) == 3
    for _ in range(2):
        assert list(replay.push_all()) == []
    assert len(asked) == 1


def test_a_server_that_is_away_is_asked_once_for_all_journals(top, monkeypatch):
    for name in ("adam-0", "adam-1", "sgd-0"):
        begun(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    knocks = []
    knock = server._knock
    monkeypatch.setattr(server, "_knock", lambda: knocks.append(1) or knock())
    with pytest.raises(ConnectionError):
        list(replay.push_all())
    assert len(knocks) == 1


def test_a_line_that_is_still_being_written_is_not_taken_for_a_damaged_one(top):
    log = begun()
    with log.path.open("a") as file:
        file.write('{"event": "metrics", ')
        file.flush()
        seen = log.events()
        assert next(seen)["event"] == "start"
        assert list(seen) == []
        file.write('"points": []}\n')
    assert [event["event"] for event in log.events()] == ["start", "metrics"]


def test_a_run_is_ended_at_its_last_figure_once_its_process_is_dead(top):
    alive = begun("adam-0")
    alive.metrics([("step/loss", 2.5, 1500, 0)])
    hold = "import sys; from optlab.system import locks\nwith locks.holding('optlab-adam-0'):\n"
    hold += " print('held', flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", hold + " sys.stdin.read()"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        alive.close_if_dead()
        assert list(alive.events())[-1]["event"] == "metrics"
        other.stdin.close()
    alive.close_if_dead()
    assert list(alive.events())[-1] == {"event": "end", "status": "interrupted", "time": 1500, "killed": True}
    alive.close_if_dead()
    assert len(list(alive.events())) == 3


def test_a_server_that_fails_is_not_taken_for_one_that_refuses():
    """MLflow calls a lost or exhausted connection to its own database a bad request."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE

    assert not refusals.is_final(MlflowException("QueuePool limit", error_code=BAD_REQUEST))
    assert refusals.is_final(MlflowException("no such parameter", error_code=INVALID_PARAMETER_VALUE))


@pytest.mark.parametrize(("code", "expected"), [("INTERNAL_ERROR", set()), ("PERMISSION_DENIED", {"sgd-0"})])
def test_journals_that_the_server_does_not_permit_are_no_end_for_the_others(top, monkeypatch, code, expected):
    """But a server that fails at the second is not asked for the rest."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    for run in ("adam-0", "adam-1", "adam-2", "sgd-0"):
        begun(run)
    sent = []

    def fail(client, log, run_id, event, refused):
        if log.run != "sgd-0":
            raise MlflowException("no", error_code=getattr(databricks_pb2, code))
        sent.append(log.run)

    monkeypatch.setattr(replay, "send", fail)
    with pytest.raises(MlflowException):
        list(replay.push_all())
    assert set(sent) == expected


def test_an_experiment_that_another_machine_creates_at_the_same_time_is_the_same(top, monkeypatch):
    client = server.connect()
    expected = server.experiment(client, "optlab")
    ask = type(client).get_experiment_by_name
    asked = []

    def late(self, name):  # it is not yet there when it is looked for
        asked.append(name)
        return ask(self, name) if len(asked) > 1 else None

    monkeypatch.setattr(type(client), "get_experiment_by_name", late)
    assert server.experiment(client, "optlab") == expected


def test_an_equal_run_of_another_pipeline_has_a_journal_of_its_own(top):
    """It may be at work at the same time, or have been interrupted."""
    study = Path("studies") / "small"
    try:
        for folder, experiment in ((Path(), "optlab"), (study, "optlab-small")):
            repository.choose(folder)
            assert journal.resumable("adam-0", "a key") is None and journal.find("adam-0", "abc") is None
            log = journal.Journal.create("adam-0", "a key")
            log.append("start", time=1, name="adam", experiment=experiment, params={}, tags={}, dataset=None)
            log.append("tags", tags={"weights.sha256": "abc"})
            assert journal.resumable("adam-0", "a key").folder == log.folder
            assert journal.find("adam-0", "abc").folder == log.folder
    finally:
        repository.choose(Path())


def test_a_draft_is_not_seen(top):
    draft = journal.Journal.create("adam-0", "abc", draft=True)
    draft.append("start", time=1, name="adam", experiment="optlab", params={}, tags={}, dataset=None)
    assert journal.all_journals() == []
    draft.publish()
    assert [each.folder for each in journal.all_journals()] == [draft.folder]
    assert len(list(draft.events())) == 1


def test_a_state_that_is_ahead_of_the_journal_is_not_believed(top):
    """After a power failure the count of what was sent can be there while the lines are not."""
    log = begun()
    replay.Replay(log).push()
    log.path.write_bytes(b"")
    start(log)
    state = json.loads((log.folder / "synced.json").read_text())
    (log.folder / "synced.json").write_text(json.dumps(state | {"events": 5}))
    log.metrics([("step/loss", 2.5, 1001, 0)])
    replay.Replay(log).push()
    client, (run,) = logged()
    assert losses(client, run) == [(0, 2.5, 1001)]


def test_locks_that_are_another_user_s_are_one_line(top, monkeypatch):
    def refuse(self, timeout):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    said = r"optlab-adam-0\.lock: cannot be written \(Permission denied\): see who may"
    with pytest.raises(StorageError, match=said), locks.holding("optlab-adam-0"):
        pass
