"""The event log, and its replay into a real MLflow database."""

import collections
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from events import begun, complete, start
from mlflow.entities import ViewType

from optlab.records import Environment, EpochMetrics, EvalRecord, RunFiles, TrainRecord
from optlab.system import locks, repository
from optlab.system.errors import StorageError
from optlab.tracking import event_log, mlflow_store, mlflow_writer, run_metadata, uploader, uploader_daemon

EPOCH = EpochMetrics(epoch=1, train_loss=1.0, running_loss=7.0, validation_loss=1.0, validation_accuracy=0.4, lr=0.1)


def search_runs():
    client = mlflow_store.connect()
    runs = client.search_runs([mlflow_store.get_or_create_experiment(client, "optlab")])
    return client, runs


def fetch_losses(client, run):
    return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, "step/loss")]


def test_truncated_event_line_is_skipped(top):
    log = begun()
    with log.path.open("a") as file:
        file.write('{"event": "metr')
    assert [event["event"] for event in log.read_events()] == ["start"]
    log.log_metrics([("step/loss", 2.5, 1001, 0)])
    assert [event["event"] for event in log.read_events()] == ["start", "metrics"]
    assert uploader.push_pending()
    client, (run,) = search_runs()
    assert fetch_losses(client, run) == [(0, 2.5, 1001)]


_opened = None  # the paths of the files that are opened, while somebody asks


def _audit(event, arguments):
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_audit)


@contextlib.contextmanager
def record_opened_logs():
    """The files of event logs that are opened meanwhile."""
    global _opened
    _opened, paths = [], []
    try:
        yield paths
    finally:
        paths += [path for path in _opened if f"{event_log.LOG_FOLDER}/" in path]
        _opened = None


def test_fully_uploaded_logs_are_not_opened(top):
    """What a stage does with every event log there is must not cost more with every run that was ever made."""
    for _ in range(5):
        complete()
    assert len(list(uploader.push_all())) == 5
    own = begun()
    with record_opened_logs() as paths:
        assert list(uploader.push_all()) == [own.folder.name]
        event_log.end_abandoned("optlab-adam-0", own)
        assert event_log.find_by_weights("adam-0", "abd") is None
        assert event_log.find_by_weights("adam-0", "abc").folder != own.folder
    assert {path for path in paths if path.endswith("events.jsonl")} == {str(own.path)}
    read = collections.Counter(path for path in paths if str(own.folder) not in path)
    assert {Path(path).name for path in read} == {"synced.json"}
    assert max(read.values()) <= 4  # one for each of the lines above


def test_grown_event_log_is_read_again(top):
    log = complete()
    assert list(uploader.push_all()) == [log.folder.name]
    log.append("tags", tags={"weights.sha256": "abd"})
    assert event_log.find_by_weights("adam-0", "abd").folder == log.folder
    log.append("resume", time=3000, step=1, after="completed", number=1)
    event_log.end_abandoned("optlab-adam-0", begun())
    assert list(log.read_events())[-1]["event"] == "end"
    assert log.folder.name in list(uploader.push_all())
    assert "abd" in {run.data.tags.get("weights.sha256") for run in search_runs()[1]}


def test_sync_state_of_older_version_is_accepted(top):
    log = complete()
    assert list(uploader.push_all()) == [log.folder.name]
    note = json.loads((log.folder / "synced.json").read_text())
    (log.folder / "synced.json").write_text(json.dumps({key: note[key] for key in ("store", "run_id", "events")}))
    assert list(uploader.push_all()) == []
    assert uploader.get_uploaded_summary(log).status == "completed"


def test_uploaded_run_equals_event_log(top):
    log = begun()
    log.log_metrics([("step/loss", 2.5, 1001, 0), ("step/loss", 2.25, 1002, 1)])
    log.append("tags", tags={"weights.sha256": "abc"})
    log.append("end", status="completed", time=2000)
    uploader.LogUploader(log).push()
    client, (run,) = search_runs()
    assert (run.info.start_time, run.info.end_time, run.info.status) == (1000, 2000, "FINISHED")
    assert fetch_losses(client, run) == [(0, 2.5, 1001), (1, 2.25, 1002)]
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["weights.sha256"] == "abc"


def test_partial_or_repeated_upload_gives_one_run(top):
    log = begun()
    uploader.LogUploader(log).push()
    log.log_metrics([("step/loss", 2.5, 1001, 0)])
    uploader.LogUploader(log).push()
    # Killed after MLflow had everything, before that was noted: the whole event log is sent once more.
    (log.folder / "synced.json").unlink()
    log.log_metrics([("step/loss", 2.25, 1002, 1)])
    uploader.LogUploader(log).push()
    client, (run,) = search_runs()
    assert fetch_losses(client, run) == [(0, 2.5, 1001), (1, 2.25, 1002)]


def test_same_second_runs_of_two_clones_are_separate(top, monkeypatch, small_config):
    """Their event logs have the same name: the time, the run, and a digest of what decides it."""
    monkeypatch.setattr(event_log.time, "strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        log = event_log.EventLog.create("adam-0", "a key")
        log.append("start", **run_metadata.build_run_metadata(small_config(), Path(), "adam", 0, Environment()))
        log.log_metrics([("step/loss", 2.5, 1001, 0)])
        for _ in range(2):  # the second as after a kill: it is the same run
            assert uploader.push_pending()
            (log.folder / "synced.json").unlink()
        shutil.rmtree(log.folder)
    client, runs = search_runs()
    assert [fetch_losses(client, run) for run in runs] == [[(0, 2.5, 1001)]] * 2


def test_deleted_database_is_refilled(top):
    for name in ("adam-0", "sgd-0"):
        uploader.LogUploader(begun(name)).push()
    for path in top.glob("mlflow.db*"):
        path.unlink()
    # In another process: MLflow keeps a connection to the deleted file open.
    look = "from optlab.tracking import uploader, mlflow_store; uploader.push_pending(); "
    look += (
        "c = mlflow_store.connect(); print(len(c.search_runs([mlflow_store.get_or_create_experiment(c, 'optlab')])))"
    )
    result = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr


def test_permanently_refused_event_is_reported_once(top, capsys):
    """A run that somebody deleted in the UI takes no more metrics; that must not stop what comes after."""
    log = begun()
    uploader.LogUploader(log).push()
    client, (run,) = search_runs()
    client.delete_run(run.info.run_id)
    log.log_metrics([("step/loss", 2.5, 1001, 0)])
    begun("sgd-0")
    assert uploader.push_pending()
    assert "refuses the metrics" in capsys.readouterr().err
    assert uploader.push_pending()
    assert capsys.readouterr().err == ""
    assert len(search_runs()[1]) == 1


def test_deleted_run_stays_deleted_when_sent_again(top):
    log = complete()
    assert uploader.push_pending()
    client, (run,) = search_runs()
    client.delete_run(run.info.run_id)
    (log.folder / "synced.json").unlink()
    assert uploader.push_pending()
    experiment = mlflow_store.get_or_create_experiment(client, "optlab")
    (run,) = client.search_runs([experiment], run_view_type=ViewType.ALL)
    assert run.info.lifecycle_stage == "deleted"


def test_deleted_experiment_is_restored(top):
    log = begun()
    uploader.LogUploader(log).push()
    client, _ = search_runs()
    client.delete_experiment(mlflow_store.get_or_create_experiment(client, "optlab"))
    begun("sgd-0")
    assert uploader.push_pending()
    experiment = client.get_experiment_by_name("optlab")
    assert experiment.lifecycle_stage == "active"
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"adam", "sgd"}


def test_event_log_without_start_is_skipped(top):
    stopped = event_log.EventLog.create("sgd-0")
    stopped.append("end", status="interrupted", time=1)
    begun()
    assert uploader.push_pending()
    assert [run.info.run_name for run in search_runs()[1]] == ["adam"]


def test_run_stopped_before_its_start_starts_when_resumed(top):
    log = event_log.EventLog.create("adam-0", "a key")
    log.append("end", status="interrupted", time=1)
    assert uploader.push_pending()
    tags = {"optlab.run": "adam-0"}
    log.log_start_or_resume(
        {"time": 1000, "name": "adam", "experiment": "optlab", "params": {}, "tags": tags, "dataset": None}, 0
    )
    log.append("tags", tags={"weights.sha256": "abc"})
    log.end("completed")
    assert uploader.push_pending()
    assert [(run.info.run_name, run.info.status) for run in search_runs()[1]] == [("adam", "FINISHED")]
    assert event_log.find_by_weights("adam-0", "abc").folder == log.folder


def test_damaged_event_log_does_not_block_others(top, capsys):
    damaged = begun("sgd-0")
    damaged.path.write_text('{"event": "start"}\n')
    begun()
    uploader.push_pending()
    assert capsys.readouterr().err.count("warning") == 1
    assert len(search_runs()[1]) == 1


@pytest.mark.parametrize(
    ("status", "shown"),
    [("completed", "FINISHED"), ("diverged", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")],
)
def test_run_status_is_mapped_to_mlflow(top, status, shown):
    log = begun()
    log.append("end", status=status, time=2000)
    uploader.LogUploader(log).push()
    _, (run,) = search_runs()
    assert (run.info.status, run.data.tags["status"]) == (shown, status)


def test_diverged_evaluation_sets_status_tag(top):
    """The training ended as completed; its outputs on the test split are not finite."""
    log = begun()
    log.end("completed")
    trained = TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {}, "0" * 64)
    weights = top / "adam-0.safetensors"
    weights.touch()
    run_metadata.log_evaluation(log, "adam-0", weights, trained, EvalRecord(status="diverged"), "zilliax")
    uploader.LogUploader(log).push()
    _, (run,) = search_runs()
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "diverged")
    assert "model" not in [event["event"] for event in log.read_events()]


def test_mirrored_accuracy_is_logged_where_it_was_computed(top):
    trained = TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {}, "0" * 64)
    log, values = begun(), {}
    for accuracy in (None, 0.75):
        tested = EvalRecord(status="completed", test_accuracy=0.5, mirrored_test_accuracy=accuracy)
        run_metadata.log_evaluation(log, "adam-0", None, trained, tested, "zilliax")
        values[accuracy] = {key: value for (key, _), value in log.read_metric_values().items() if "test/" in key}
    assert values == {None: {"test/accuracy": 0.5}, 0.75: {"test/accuracy": 0.5, "test/mirrored_accuracy": 0.75}}


def test_answers_per_image_stay_out_of_event_log(top):
    """They are in the record, and nothing that MLflow could show."""
    log, trained = begun(), TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {}, "0" * 64)
    tested = EvalRecord(status="completed", test_accuracy=0.5, confusion=[[5, 2], [3, 0]], correct=["+AA="])
    run_metadata.log_evaluation(log, "adam-0", None, trained, tested, "zilliax")
    added = [event for event in log.read_events() if event["event"] != "start"]
    assert [event["event"] for event in added] == ["metrics", "figures"] and "+AA=" not in log.path.read_text()


def test_event_log_keeps_replaced_artifact(top):
    """DVC removes a stage's outputs and the stage writes new files: the run's own is still there to be sent."""
    log = begun()
    weights = top / "adam-0.safetensors"
    weights.write_text("mine")
    log.log_artifact(weights)
    weights.unlink()
    weights.write_text("another run's")
    uploader.LogUploader(log).push()
    client, (run,) = search_runs()
    assert Path(client.download_artifacts(run.info.run_id, "adam-0.safetensors")).read_text() == "mine"


def test_buffered_metrics_are_written_before_end(top):
    log = begun()
    log.on_flush = lambda: log.log_metrics([("step/loss", 2.5, 1001, 0)])
    with pytest.raises(KeyboardInterrupt), run_metadata.close_on_error(log):
        raise KeyboardInterrupt
    assert [event["event"] for event in log.read_events()] == ["start", "metrics", "end"]
    assert list(log.read_events())[-1]["status"] == "interrupted"


def test_find_returns_newest_log_with_weights(top):
    newer, other = begun(), begun("adam-01")
    older = begun()
    for log in (older, newer, other):
        log.append("tags", tags={"weights.sha256": "abc"})
    older.folder.rename(older.folder.with_name(f"20200101{older.folder.name[8:]}"))
    found = event_log.find_by_weights("adam-0", "abc")
    assert found is not None and found.folder == newer.folder
    assert event_log.find_by_weights("adam-0", "abd") is None


@pytest.mark.parametrize(
    ("digest", "conditions", "expected"),
    [
        ("abc", {}, "a CPU"),
        ("abd", {}, "unknown"),
        ("abc", {"conditions": Environment(cpu="given")}, "given"),
        (None, {}, "unknown"),
    ],
    ids=["of these weights", "of others", "given", "damaged"],
)
def test_log_from_record_has_conditions_of_its_weights(top, small_config, digest, conditions, expected):
    run = RunFiles(Path(), "adam", 0)
    Environment(cpu="a CPU", weights_sha256=digest).write(run.environment)
    if digest is None:
        run.environment.write_text("{")
    trained = TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {"lr": "0.1"}, "abc")
    log = run_metadata.create_log_from_record(small_config(), run, None, trained, **conditions)
    assert next(log.read_events())["tags"]["conditions.cpu"] == expected


@pytest.mark.parametrize("has_links", [True, False])
def test_stored_file_is_always_there_for_uploader(top, tmp_path, monkeypatch, has_links):
    """Training and evaluation keep the same weights; the uploader may read the first while the second is stored."""
    log, weights = begun(), tmp_path / "adam-0.safetensors"
    weights.write_bytes(b"weights")
    log.log_weights(weights, "abc")
    stored, link, was_there = log.folder / weights.name, os.link, []

    def record_and_link(*names):
        was_there.append(stored.exists())
        if not has_links:
            raise OSError
        link(*names)

    monkeypatch.setattr(os, "link", record_and_link)
    log.log_model(weights, "adam", "zilliax")
    weights.unlink()
    weights.write_bytes(b"other weights")
    log.log_weights(weights, "abd")
    assert was_there == [True, True]
    assert stored.read_bytes() == b"other weights"
    assert sorted(path.name for path in log.folder.iterdir()) == ["adam-0.safetensors", "events.jsonl"]


def test_sync_state_belongs_to_one_store(top, monkeypatch):
    log = begun()
    uploader.LogUploader(log).push()
    assert json.loads((log.folder / "synced.json").read_text())["events"] == 1
    assert uploader.get_uploaded_summary(log)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{top}/another.db")
    assert not uploader.get_uploaded_summary(log)


@pytest.fixture
def replace_store(top, monkeypatch):
    """Another store than the repository's own, as a server is one; a function that puts an empty one in its place."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{top}/another.db")
    shutil.copy("mlflow.db", "another.db")
    mlflow_store.invalidate_store_id()

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


def test_emptied_store_is_refilled(replace_store):
    log = begun()
    log.append("end", status="completed", time=2000)
    assert list(uploader.push_all()) == [log.folder.name]
    assert list(uploader.push_all()) == []
    replace_store()
    mlflow_store.invalidate_store_id()  # as in another process
    assert list(uploader.push_all()) == [log.folder.name]
    assert list(uploader.push_all()) == []
    assert len(search_runs()[1]) == 1


def test_store_emptied_during_training_is_refilled(replace_store):
    """The store knows nothing of the run then, and refuses what belongs to it."""
    log = begun()
    live = uploader.LogUploader(log)
    live.push()
    replace_store()
    log.log_metrics([("step/loss", 2.5, 1001, 0)])
    live.push()
    log.log_metrics([("step/loss", 2.25, 1002, 1)])
    live.push()
    client, (run,) = search_runs()
    assert fetch_losses(client, run) == [(0, 2.5, 1001), (1, 2.25, 1002)]


def test_store_id_is_requested_once(replace_store, monkeypatch):
    from mlflow import MlflowClient

    asked = []
    search = MlflowClient.search_experiments
    monkeypatch.setattr(MlflowClient, "search_experiments", lambda *a, **k: asked.append(1) or search(*a, **k))
    for name in ("adam-0", "adam-1", "sgd-0"):
        begun(name)
    assert len(list(uploader.push_all())) == 3
    for _ in range(2):
        assert list(uploader.push_all()) == []
    assert len(asked) == 1


def test_unreachable_server_is_pinged_once(top, monkeypatch):
    for name in ("adam-0", "adam-1", "sgd-0"):
        begun(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    knocks = []
    knock = mlflow_store._ping
    monkeypatch.setattr(mlflow_store, "_ping", lambda: knocks.append(1) or knock())
    with pytest.raises(ConnectionError):
        list(uploader.push_all())
    assert len(knocks) == 1


def test_unfinished_event_line_is_not_damaged(top):
    log = begun()
    with log.path.open("a") as file:
        file.write('{"event": "metrics", ')
        file.flush()
        seen = log.read_events()
        assert next(seen)["event"] == "start"
        assert list(seen) == []
        file.write('"points": []}\n')
    assert [event["event"] for event in log.read_events()] == ["start", "metrics"]


def test_dead_run_ends_at_last_metric_time(top):
    alive = begun("adam-0")
    alive.log_metrics([("step/loss", 2.5, 1500, 0)])
    hold = "import sys; from optlab.system import locks\nwith locks.hold_lock('optlab-adam-0'):\n"
    hold += " print('held', flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", hold + " sys.stdin.read()"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        alive.close_if_dead()
        assert list(alive.read_events())[-1]["event"] == "metrics"
        other.stdin.close()
    alive.close_if_dead()
    assert list(alive.read_events())[-1] == {"event": "end", "status": "interrupted", "time": 1500, "killed": True}
    alive.close_if_dead()
    assert len(list(alive.read_events())) == 3


def test_server_failure_is_not_permanent_refusal():
    """MLflow calls a lost or exhausted connection to its own database a bad request."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE

    assert not mlflow_writer.is_permanent(MlflowException("QueuePool limit", error_code=BAD_REQUEST))
    assert mlflow_writer.is_permanent(MlflowException("no such parameter", error_code=INVALID_PARAMETER_VALUE))


@pytest.mark.parametrize(("code", "expected"), [("INTERNAL_ERROR", set()), ("PERMISSION_DENIED", {"sgd-0"})])
def test_forbidden_logs_do_not_block_others(top, monkeypatch, code, expected):
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

    monkeypatch.setattr(uploader, "log_event", fail)
    with pytest.raises(MlflowException):
        list(uploader.push_all())
    assert set(sent) == expected


def test_log_of_other_user_does_not_block_others(top, monkeypatch):
    theirs, own = begun("sgd-0"), begun()
    theirs.folder.rename(theirs.folder.with_name(f"20200101{theirs.folder.name[8:]}"))  # so that it is the first
    close = event_log.EventLog.close_if_dead

    def refuse(log):
        if log.run == "sgd-0":
            raise StorageError("sgd-0 cannot be written")
        close(log)

    monkeypatch.setattr(event_log.EventLog, "close_if_dead", refuse)
    sent = []
    with pytest.raises(StorageError, match="sgd-0 cannot be written"):
        sent.extend(uploader.push_all())
    assert sent == [own.folder.name]
    daemon = uploader_daemon.UploaderDaemon()
    daemon._push_all()
    assert not daemon._full_push_due


def test_concurrently_created_experiment_is_reused(top, monkeypatch):
    client = mlflow_store.connect()
    expected = mlflow_store.get_or_create_experiment(client, "optlab")
    ask = type(client).get_experiment_by_name
    asked = []

    def late(self, name):  # it is not yet there when it is looked for
        asked.append(name)
        return ask(self, name) if len(asked) > 1 else None

    monkeypatch.setattr(type(client), "get_experiment_by_name", late)
    assert mlflow_store.get_or_create_experiment(client, "optlab") == expected


def test_equal_runs_of_two_pipelines_have_separate_logs(top):
    """It may be at work at the same time, or have been interrupted."""
    study = Path("studies") / "small"
    try:
        for folder, experiment in ((Path(), "optlab"), (study, "optlab-small")):
            repository.set_pipeline(folder)
            assert (
                event_log.find_resumable("adam-0", "a key") is None
                and event_log.find_by_weights("adam-0", "abc") is None
            )
            log = event_log.EventLog.create("adam-0", "a key")
            log.append("start", time=1, name="adam", experiment=experiment, params={}, tags={}, dataset=None)
            log.append("tags", tags={"weights.sha256": "abc"})
            assert event_log.find_resumable("adam-0", "a key").folder == log.folder
            assert event_log.find_by_weights("adam-0", "abc").folder == log.folder
    finally:
        repository.set_pipeline(Path())


def test_draft_event_log_is_not_listed(top):
    draft = event_log.EventLog.create("adam-0", "abc", draft=True)
    draft.append("start", time=1, name="adam", experiment="optlab", params={}, tags={}, dataset=None)
    assert event_log.list_logs() == []
    draft.commit_draft()
    assert [each.folder for each in event_log.list_logs()] == [draft.folder]
    assert len(list(draft.read_events())) == 1


def test_sync_state_ahead_of_log_is_ignored(top):
    """After a power failure the count of what was sent can be there while the lines are not."""
    log = begun()
    uploader.LogUploader(log).push()
    log.path.write_bytes(b"")
    start(log)
    state = json.loads((log.folder / "synced.json").read_text())
    (log.folder / "synced.json").write_text(json.dumps(state | {"events": 5}))
    log.log_metrics([("step/loss", 2.5, 1001, 0)])
    uploader.LogUploader(log).push()
    client, (run,) = search_runs()
    assert fetch_losses(client, run) == [(0, 2.5, 1001)]


def test_lock_of_other_user_gives_one_line_error(top, monkeypatch):
    def refuse(self, timeout):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    said = r"optlab-adam-0\.lock: cannot be written \(Permission denied\): see who may"
    with pytest.raises(StorageError, match=said), locks.hold_lock("optlab-adam-0"):
        pass
