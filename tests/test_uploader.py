"""The uploader daemon, and the logs of an older version that it and every stage take over."""

import json
import os
import queue
import socket
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import psutil
import pytest
from events import begun, complete

from optlab.system import locks
from optlab.tracking import event_log, mlflow_store, uploader_client, uploader_daemon
from optlab.tracking.event_log import EventLog, SyncState

HOLD = (
    "import sys; from optlab.system import locks\n"
    "with locks.hold_lock(sys.argv[1]):\n print('held', flush=True); sys.stdin.read()"
)


def count_sent(log):
    return SyncState.read(log.folder).events


def statuses():
    client = mlflow_store.connect()
    runs = client.search_runs([mlflow_store.get_or_create_experiment(client, "optlab")])
    return sorted(run.info.status for run in runs)


@pytest.fixture
def training(top):
    """A log whose run is at work: this process holds its lock."""
    with locks.hold_lock("optlab-adam-0"):
        yield begun()


def test_daemon_sends_grown_and_new_logs_unasked(training):
    daemon = uploader_daemon.UploaderDaemon()
    daemon.push_changes()
    assert count_sent(training) == 1 and statuses() == ["RUNNING"]
    training.log_metrics([("step/loss", 2.5, 1001, 0)])
    later = complete("sgd-0")
    daemon.push_changes()
    assert (count_sent(training), count_sent(later)) == (2, 4)
    assert statuses() == ["FINISHED", "RUNNING"]


def test_daemon_does_not_open_unchanged_logs(training, monkeypatch):
    daemon = uploader_daemon.UploaderDaemon()
    daemon.push_changes()
    monkeypatch.setattr(EventLog, "read_lines", lambda self: pytest.fail("was opened"))
    daemon.push_changes()


def test_daemon_leaves_growing_log_to_daemon_of_other_store(training):
    daemon = uploader_daemon.UploaderDaemon()
    daemon.push_changes()
    SyncState(store="http://elsewhere#1", events=1).write(training.folder)
    training.log_metrics([("step/loss", 2.5, 1001, 0)])
    daemon.push_changes()
    assert SyncState.read(training.folder) == SyncState(store="http://elsewhere#1", events=1)
    daemon.push_rest()  # at its end, it sends everything
    assert count_sent(training) == 2


def test_failed_push_is_repeated_later(training, monkeypatch, capsys):
    daemon = uploader_daemon.UploaderDaemon()
    daemon.push_changes()
    training.log_metrics([("step/loss", 2.5, 1001, 0)])
    with monkeypatch.context() as patch:
        patch.setattr("optlab.tracking.uploader.log_event", lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
        daemon.push_changes()
        daemon.push_changes()
    assert capsys.readouterr().err.count("warning: ") == 1
    assert count_sent(training) == 1
    daemon.push_changes()
    assert count_sent(training) == 2


def test_end_of_connection_ends_dead_run(top):
    log = begun()
    daemon = uploader_daemon.UploaderDaemon()
    with locks.hold_lock("optlab-adam-0"):
        daemon.push_changes()
        assert statuses() == ["RUNNING"]
    daemon.push_changes()
    assert statuses() == ["RUNNING"]  # the lock is not tried twice a second
    stage, end = Pipe()
    daemon.add_connection(end)
    stage.close()  # as when the stage is killed
    daemon.run()
    assert statuses() == ["KILLED"] and list(log.read_events())[-1]["killed"]


def test_daemon_answers_requests(top):
    complete()
    daemon = uploader_daemon.UploaderDaemon()
    stage, end = Pipe()
    daemon.add_connection(end)
    daemon.add_parent(2**22 + 1)  # no process
    requests = [{"push": True}, {"experiment": "optlab", "find_missing": [("adam-0", "abc"), ("sgd-0", "abd")]}]
    for message in (*requests, {"update_comparison": "optlab"}):
        stage.send_bytes(json.dumps(message).encode())
    while not stage.poll():
        daemon._receive(end)
    answers = [{"reached": True}, {"reached": True, "missing": ["sgd-0"]}, {"reached": False}]  # nothing was saved
    for index, answer in enumerate(answers):
        assert json.loads(stage.recv_bytes()) == answer
        if index < 2:
            daemon._receive(end)


def test_daemon_lasts_as_long_as_all_its_parents(top):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        daemon = uploader_client.start_daemon(str(parent.pid), stderr=subprocess.PIPE)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            connection = None
            while connection is None and daemon.poll() is None:
                connection = uploader_client.connect(str(other.pid))
            assert isinstance(connection, Connection)
            second = uploader_client.start_daemon(str(other.pid), stderr=subprocess.PIPE)
            assert second.wait(240) == 0  # one for each working tree and store
            connection.close()
            parent.communicate(b"\n")
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(2)
            other.communicate(b"\n")
            assert daemon.wait(240) == 0
    assert (daemon.stderr.read(), second.stderr.read()) == (b"", b"")
    assert list(Path(".optlab").glob("uploader-*.sock")) == []


def make_legacy(log):
    """Move a log to where older versions have it, with the paths of its files that they wrote."""
    folder = Path(".optlab") / "journal" / log.folder.name
    folder.parent.mkdir(exist_ok=True)
    log.folder.rename(folder)
    path = folder / "events.jsonl"
    path.write_text(path.read_text().replace(".optlab/event_logs/", ".optlab/journal/"))
    return EventLog(event_log.LOG_FOLDER / folder.name)


@pytest.mark.parametrize("both", [False, True], ids=["old folder", "both folders"])
def test_logs_of_older_version_are_taken_over_and_sent(top, both):
    weights = Path("adam-0.safetensors")
    weights.write_text("weights")
    log = begun()
    log.log_weights(weights, "abc")
    unsent = make_legacy(log)
    if both:
        complete("sgd-0")
    else:
        event_log.LOG_FOLDER.rmdir()
    assert event_log.find_by_weights("adam-0", "abc").folder == unsent.folder
    assert not Path(".optlab/journal").exists()
    uploader_daemon.UploaderDaemon().push_rest()
    client = mlflow_store.connect()
    runs = client.search_runs([mlflow_store.get_or_create_experiment(client, "optlab")])
    assert len(runs) == 1 + both
    (run,) = [each for each in runs if each.data.tags["optlab.run"] == "adam-0"]
    assert Path(client.download_artifacts(run.info.run_id, "weights/adam-0.safetensors")).read_text() == "weights"
    assert SyncState.read(unsent.folder).refused == 0


def test_log_that_older_version_still_writes_is_moved_later(top):
    logs = begun(), complete("sgd-0")
    running, done = map(make_legacy, logs)
    with subprocess.Popen([sys.executable, "-c", HOLD, "optlab-adam-0"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        assert [log.folder for log in event_log.list_logs()] == [done.folder]
        other.stdin.close()
    assert {log.folder for log in event_log.list_logs()} == {running.folder, done.folder}


def test_interrupted_run_of_older_version_is_resumable(top):
    log = EventLog.create("adam-0", "0" * 16)
    log.append("start", time=1000, name="adam", experiment="optlab", params={}, dataset=None, tags={})
    assert event_log.find_resumable("adam-0", "0" * 16).folder == make_legacy(log).folder


def test_client_moves_logs_before_stage_locks_its_run(top, monkeypatch):
    """In the same process, a held lock would pass for that of another one."""
    log = make_legacy(begun())
    monkeypatch.setenv(uploader_client.UPLOADER_PARENT_VARIABLE, uploader_client.NO_UPLOAD)
    uploader_client.UploaderClient()
    assert log.get_size()


def test_closing_client_replaces_killed_daemon(top, monkeypatch):
    """This may be the last stage: nobody else would send the rest."""
    started = []
    monkeypatch.setattr(uploader_client, "start_daemon", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setenv(uploader_client.UPLOADER_PARENT_VARIABLE, str(os.getpid()))
    path = uploader_client.get_socket_path()
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:  # a daemon's
        listener.bind(str(path))
        listener.listen()
        uploader_client.UploaderClient().close()
        client = uploader_client.UploaderClient()
        uploader_client.ensure_daemon(str(os.getpid()))
        assert started == []
    client.close()
    assert started == [(str(os.getpid()),)]
    uploader_client.ensure_daemon(str(os.getpid()))
    assert len(started) == 2


def test_warnings_of_daemon_are_printed_by_the_process_that_shows_progress(top, monkeypatch):
    printed = queue.Queue()
    monkeypatch.setattr(uploader_client, "print_stderr", printed.put)
    monkeypatch.setattr(
        uploader_client, "start_daemon", lambda *_, stderr, **__: os.write(stderr, b"\rwarning: one\nwarning: two")
    )
    uploader_client.ensure_daemon(str(os.getpid()))
    assert [printed.get(timeout=120), printed.get(timeout=120)] == ["warning: one", "warning: two"]


def test_client_without_upload_starts_nothing(top, monkeypatch):
    monkeypatch.setenv(uploader_client.UPLOADER_PARENT_VARIABLE, uploader_client.NO_UPLOAD)
    client = uploader_client.UploaderClient()
    assert client.request(push=True) is None
    client.close()
    started = [each for each in psutil.Process(os.getpid()).children() if "uploader_daemon" in " ".join(each.cmdline())]
    assert started == []
