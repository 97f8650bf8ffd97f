"""Event logs that are removed, and those that stay: none goes that MLflow, the record or a training still needs."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import projects
import pytest
from events import begun, complete

from optlab.records import EpochMetrics, TrainRecord
from optlab.system import locks
from optlab.system.errors import BusyError, RecordError
from optlab.tracking import event_log, maintenance, uploader

EPOCH = EpochMetrics(epoch=1, train_loss=1, running_loss=1, validation_loss=1, validation_accuracy=1, lr=1)
NOT_SENT = "not ended, or not all in MLflow"
HOLD = """
import sys
from optlab.system import locks
with locks.hold_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def upload(*logs):
    """The event logs, all of them in MLflow."""
    for _ in uploader.push_all():
        pass
    assert all(uploader.get_uploaded_summary(log) for log in logs)
    return logs


def prune_logs():
    """The names of the removed, and why the others are kept."""
    found = list(maintenance.prune())
    return {each.name for each in found if not each.kept_reason}, {
        each.name: each.kept_reason for each in found if each.kept_reason
    }


def remaining_logs():
    return {path.name for path in event_log.LOG_FOLDER.iterdir()}


def test_prune_deletes_fully_uploaded_logs(top):
    old, reproduction = complete(), complete("reproduce-adam-0")
    upload(old, reproduction)
    waiting = complete("sgd-0")
    removed, kept = prune_logs()
    assert removed == {old.folder.name, reproduction.folder.name}
    assert kept == {waiting.folder.name: NOT_SENT}
    assert remaining_logs() == {waiting.folder.name}
    assert list(Path(".optlab").glob("removed*/*")) == []
    assert list(uploader.push_all()) == [waiting.folder.name]  # and what is removed is not missed


def test_prune_counts_only_unshared_bytes_as_freed(top):
    log = complete()
    for name, size in (("own", 1000), ("linked", 5000)):
        Path(name).write_bytes(b"0" * size)
        log.log_artifact(Path(name))
    Path("own").unlink()
    log.end("completed")
    upload(log)
    others = sum(path.stat().st_size for path in log.folder.iterdir() if path.name != "linked")
    assert [(each.name, each.freed_bytes) for each in maintenance.prune()] == [(log.folder.name, others)]
    assert others > 1000 and Path("linked").stat().st_size == 5000


@pytest.mark.parametrize("folder", ["", "tutorial", "studies/lr", "studies/2026/spring/lr"])
def test_prune_keeps_logs_of_present_record(top, folder):
    """Of the pipeline at the top, of the tutorial, of a study."""
    present, former = complete(digest="abc"), complete(digest="abd")
    upload(present, former)
    path = Path(folder) / "runs" / "adam-0" / "train.json"
    path.parent.mkdir(parents=True)
    TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {}, "abc").write(path)
    assert prune_logs() == ({former.folder.name}, {present.folder.name: "of the present record"})


def test_damaged_record_stops_prune(top):
    upload(complete())
    Path("runs/adam-0").mkdir(parents=True)
    Path("runs/adam-0/train.json").write_text("{")
    with pytest.raises(RecordError, match=r"runs/adam-0/train.json: damaged"):
        list(maintenance.prune())
    assert len(remaining_logs()) == 1


def make_interrupted_log():
    log = begun()
    log.append("end", status="interrupted", time=1000)
    return log


def make_ended_log(status, run="adam-0"):
    log = begun(run)
    log.append("end", status=status, time=1000)
    return log


def test_prune_keeps_resumable_log_until_newer_run_ends(top):
    first = make_ended_log("interrupted")
    first = event_log.EventLog(first.folder.rename(event_log.LOG_FOLDER / f"20200101-000000-adam-0-{0:016}"))
    checkpoint = maintenance.CHECKPOINTS_DIR / "optlab-adam-0" / "key" / first.folder.name
    upload(first, make_ended_log("failed", "sgd-0"))
    may_go_on = "their runs may go on"
    assert set(prune_logs()[1].values()) == {may_go_on}
    upload(diverged := make_ended_log("diverged"))
    checkpoint.mkdir(parents=True)
    assert prune_logs()[0] == {diverged.folder.name}
    assert first.folder.name in remaining_logs()
    upload(diverged := make_ended_log("diverged"))
    checkpoint.rmdir()
    assert prune_logs()[0] == {diverged.folder.name, first.folder.name}


def test_prune_keeps_partially_uploaded_log(top, capsys):
    log = complete()
    gone = Path("gone")
    gone.write_text("x")
    log.log_artifact(gone)
    (log.folder / "gone").unlink()
    log.end("completed")
    assert list(uploader.push_all()) == [log.folder.name]
    assert "refuses the artifact" in capsys.readouterr().err
    assert prune_logs() == (set(), {log.folder.name: NOT_SENT})


def test_prune_keeps_log_uploaded_to_other_store(top, monkeypatch):
    upload(log := complete())
    Path("mlflow.db").rename("elsewhere.db")
    assert prune_logs() == (set(), {log.folder.name: NOT_SENT})


def test_prune_keeps_log_of_running_process(top):
    upload(log := complete())
    with subprocess.Popen([sys.executable, "-c", HOLD, "optlab-adam-0"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        assert prune_logs() == (set(), {log.folder.name: "a process is at work on their runs"})
        other.stdin.close()
    assert prune_logs() == ({log.folder.name}, {})


def test_prune_keeps_log_during_upload(top):
    from filelock import FileLock

    upload(log := complete())
    with FileLock(log.folder / "lock"):
        assert prune_logs() == (set(), {log.folder.name: "a process is at work on their runs"})
    assert prune_logs() == ({log.folder.name}, {})


def test_prune_keeps_log_that_grows_meanwhile(top, monkeypatch):
    """An evaluation that had found it before it was looked at adds to it."""
    upload(log := complete())
    recorded = maintenance._collect_recorded_digests
    monkeypatch.setattr(
        maintenance, "_collect_recorded_digests", lambda: log.log_metrics([("test/loss", 1.0, 1, 0)]) or recorded()
    )
    assert prune_logs() == (set(), {log.folder.name: NOT_SENT})


def test_prune_finishes_interrupted_removal(top):
    left_over = maintenance.TRASH_FOLDER / "20200101-000000-adam-0-0"
    left_over.mkdir(parents=True)
    (left_over / "events.jsonl").touch()
    assert prune_logs() == (set(), {})
    assert not maintenance.TRASH_FOLDER.exists()


def test_concurrent_prune_names_running_process(top):
    with subprocess.Popen([sys.executable, "-c", HOLD, "clean"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {other.pid} "):
            prune_logs()
        other.stdin.close()


@pytest.mark.parametrize("write", [lambda: upload(complete()), complete], ids=["sent", "not sent"])
def test_prune_deletes_nothing_when_server_unreachable(top, write):
    write()
    uri = "http://127.0.0.1:9"  # nothing listens there
    result = projects.Project(top).run_forked("optlab", "clean", forced=True, MLFLOW_TRACKING_URI=uri)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: MLflow at http://127.0.0.1:9 was not reached (")
    assert line.endswith("): nothing was removed")
    assert len(remaining_logs()) == 1


def test_clean_command_reports_deleted_logs(top):
    (log,) = upload(complete())
    waiting = complete("sgd-0")
    size = sum(path.stat().st_size for path in log.folder.iterdir())
    result = projects.Project(top).run_forked("optlab", "clean", forced=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"removed {log.folder.name}",
        f"1 event log removed, {size:,} bytes freed; 1 kept",
        f"  1: {NOT_SENT}",
    ]
    assert remaining_logs() == {waiting.folder.name}


def make_experiment_copy_log(monkeypatch, folder, status):
    """An event log of adam-0 as a training in that copy of the repository leaves it, and that it wrote its record."""
    home = Path.cwd()
    folder.mkdir(parents=True)
    (home / ".dvc").mkdir(exist_ok=True)
    (home / ".dvc" / "config").touch()
    with monkeypatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "higher")
        patch.setenv("DVC_ROOT", str(home))
        patch.chdir(folder)
        log = event_log.EventLog.create("adam-0")
        lock = event_log.build_lock_name("optlab", "adam-0")
        log.append("start", time=1000, name="adam [higher]", experiment="optlab", params={}, dataset=None,
                   tags={"optlab.run": "adam-0"}, lock=lock)  # fmt: skip
        log.append("tags", tags={event_log.WEIGHTS_TAG: "abc"})
        log.append("end", status=status, time=2000)
        TrainRecord.from_training(
            status if status == "diverged" else "completed", [EPOCH], [], [[1.0]], {}, "abc"
        ).write(Path("runs/adam-0/train.json"))
        assert event_log.find_by_weights("adam-0", "abc").folder.name == log.folder.name
    return event_log.EventLog(event_log.LOG_FOLDER / log.folder.name), lock


def test_prune_keeps_log_of_running_experiment(top, monkeypatch):
    copy = Path.cwd() / ".dvc" / "tmp" / "exps" / "standalone" / "tmpone"
    log, lock = make_experiment_copy_log(monkeypatch, copy, "completed")
    upload(log)
    assert prune_logs() == (set(), {log.folder.name: "of the present record"})
    shutil.rmtree(copy)
    assert prune_logs() == ({log.folder.name}, {})
    assert list(locks.LOCKS.glob(f"{lock}.*")) == []


def test_prune_deletes_log_of_stopped_experiment(top, monkeypatch):
    copy = Path.cwd() / ".dvc" / "tmp" / "exps" / "tmptwo"
    log, _ = make_experiment_copy_log(monkeypatch, copy, "interrupted")
    shutil.rmtree(copy)
    upload(log)
    assert prune_logs() == ({log.folder.name}, {})


def test_equal_runs_of_two_experiments_have_separate_logs(top, monkeypatch):
    exps = Path.cwd() / ".dvc" / "tmp" / "exps"
    first, _ = make_experiment_copy_log(monkeypatch, exps / "tmpone", "completed")
    time.sleep(1.1)  # event logs are named by the second
    second, _ = make_experiment_copy_log(monkeypatch, exps / "tmptwo", "completed")
    monkeypatch.setenv("DVC_EXP_NAME", "higher")
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    for copy, log in (("tmpone", first), ("tmptwo", second)):
        monkeypatch.chdir(exps / copy)
        assert event_log.find_by_weights("adam-0", "abc").folder.name == log.folder.name
