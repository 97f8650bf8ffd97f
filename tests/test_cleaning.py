"""Journals that are removed, and those that stay: none goes that MLflow, the record or a training still needs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from events import begun, complete

from optlab.record.contents import Epoch, Trained
from optlab.system import locks
from optlab.system.errors import BusyError, RecordError
from optlab.tracking import cleaning, journal, notes, replay

EPOCH = Epoch(epoch=1, train_loss=1, running_loss=1, validation_loss=1, validation_accuracy=1, lr=1)
NOT_SENT = "not ended, or not all in MLflow"
HOLD = """
import sys
from optlab.system import locks
with locks.holding(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def sent(*logs):
    """The journals, all of them in MLflow."""
    for _ in replay.push_all():
        pass
    assert all(replay.sent(log) for log in logs)
    return logs


def cleaned():
    """The names of the removed, and why the others are kept."""
    found = list(cleaning.clean())
    return {each.name for each in found if not each.kept}, {each.name: each.kept for each in found if each.kept}


def left():
    return {path.name for path in journal.JOURNALS.iterdir()}


def test_what_mlflow_has_whole_is_removed(top):
    old, reproduction = complete(), complete("reproduce-adam-0")
    sent(old, reproduction)
    waiting = complete("sgd-0")
    removed, kept = cleaned()
    assert removed == {old.folder.name, reproduction.folder.name}
    assert kept == {waiting.folder.name: NOT_SENT}
    assert left() == {waiting.folder.name}
    assert list(Path(".optlab").glob("removed*/*")) == []
    assert list(replay.push_all()) == [waiting.folder.name]  # and what is removed is not missed


def test_the_bytes_that_are_freed_are_those_of_files_that_nobody_else_has(top):
    log = complete()
    for name, size in (("own", 1000), ("linked", 5000)):
        Path(name).write_bytes(b"0" * size)
        log.artifact(Path(name))
    Path("own").unlink()
    log.end("completed")
    sent(log)
    others = sum(path.stat().st_size for path in log.folder.iterdir() if path.name != "linked")
    assert [(each.name, each.freed) for each in cleaning.clean()] == [(log.folder.name, others)]
    assert others > 1000 and Path("linked").stat().st_size == 5000


@pytest.mark.parametrize("folder", ["", "tutorial", "studies/lr", "studies/2026/spring/lr"])
def test_those_of_the_present_record_stay(top, folder):
    """Of the pipeline at the top, of the tutorial, of a study."""
    present, former = complete(digest="abc"), complete(digest="abd")
    sent(present, former)
    path = Path(folder) / "runs" / "adam-0" / "train.json"
    path.parent.mkdir(parents=True)
    Trained.of("completed", [EPOCH], [], [[1.0]], {}, "abc").write(path)
    assert cleaned() == ({former.folder.name}, {present.folder.name: "of the present record"})


def test_a_damaged_record_stops_it(top):
    sent(complete())
    Path("runs/adam-0").mkdir(parents=True)
    Path("runs/adam-0/train.json").write_text("{")
    with pytest.raises(RecordError, match=r"runs/adam-0/train.json: damaged"):
        list(cleaning.clean())
    assert len(left()) == 1


def interrupted():
    log = begun()
    log.append("end", status="interrupted", time=1000)
    return log


def ended(status, run="adam-0"):
    log = begun(run)
    log.append("end", status=status, time=1000)
    return log


def test_a_run_that_may_go_on_stays_until_a_later_one_has_come_to_its_end(top):
    first = ended("interrupted")
    first = journal.Journal(first.folder.rename(journal.JOURNALS / f"20200101-000000-adam-0-{0:016}"))
    checkpoint = cleaning.CHECKPOINTS / "optlab-adam-0" / "key" / first.folder.name
    sent(first, ended("failed", "sgd-0"))
    may_go_on = "their runs may go on"
    assert set(cleaned()[1].values()) == {may_go_on}
    sent(diverged := ended("diverged"))
    checkpoint.mkdir(parents=True)
    assert cleaned()[0] == {diverged.folder.name}
    assert first.folder.name in left()
    sent(diverged := ended("diverged"))
    checkpoint.rmdir()
    assert cleaned()[0] == {diverged.folder.name, first.folder.name}


def test_one_that_mlflow_took_in_part_only_stays(top, capsys):
    log = complete()
    gone = Path("gone")
    gone.write_text("x")
    log.artifact(gone)
    (log.folder / "gone").unlink()
    log.end("completed")
    assert list(replay.push_all()) == [log.folder.name]
    assert "refuses the artifact" in capsys.readouterr().err
    assert cleaned() == (set(), {log.folder.name: NOT_SENT})


def test_one_that_another_store_has_stays(top, monkeypatch):
    sent(log := complete())
    Path("mlflow.db").rename("elsewhere.db")
    assert cleaned() == (set(), {log.folder.name: NOT_SENT})


def test_one_with_a_process_at_work_on_its_run_stays(top):
    sent(log := complete())
    with subprocess.Popen([sys.executable, "-c", HOLD, "optlab-adam-0"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        assert cleaned() == (set(), {log.folder.name: "a process is at work on their runs"})
        other.stdin.close()
    assert cleaned() == ({log.folder.name}, {})


def test_one_that_is_being_sent_stays(top):
    from filelock import FileLock

    sent(log := complete())
    with FileLock(log.folder / "lock"):
        assert cleaned() == (set(), {log.folder.name: "a process is at work on their runs"})
    assert cleaned() == ({log.folder.name}, {})


def test_one_that_grows_meanwhile_stays(top, monkeypatch):
    """An evaluation that had found it before it was looked at adds to it."""
    sent(log := complete())
    recorded = cleaning._recorded
    monkeypatch.setattr(cleaning, "_recorded", lambda: log.metrics([("test/loss", 1.0, 1, 0)]) or recorded())
    assert cleaned() == (set(), {log.folder.name: NOT_SENT})


def test_a_removal_that_was_cut_short_is_finished(top):
    left_over = cleaning.REMOVED / "20200101-000000-adam-0-0"
    left_over.mkdir(parents=True)
    (left_over / "events.jsonl").touch()
    assert cleaned() == (set(), {})
    assert not cleaning.REMOVED.exists()


def test_two_at_once(top):
    with subprocess.Popen([sys.executable, "-c", HOLD, "clean"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {other.pid} "):
            cleaned()
        other.stdin.close()


@pytest.mark.parametrize("write", [lambda: sent(complete()), complete], ids=["sent", "not sent"])
def test_a_server_that_is_away_keeps_them_all(top, write):
    write()
    own = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nothing listens there
    result = subprocess.run([Path(sys.executable).parent / "optlab", "clean"], env=own, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: MLflow at http://127.0.0.1:9 was not reached (")
    assert line.endswith("): nothing was removed")
    assert len(left()) == 1


def test_the_command_says_what_it_removed(top):
    (log,) = sent(complete())
    waiting = complete("sgd-0")
    size = sum(path.stat().st_size for path in log.folder.iterdir())
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    result = subprocess.run([Path(sys.executable).parent / "optlab", "clean"], env=own, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"removed {log.folder.name}",
        f"1 journal removed, {size:,} bytes freed; 1 kept",
        f"  1: {NOT_SENT}",
    ]
    assert left() == {waiting.folder.name}


def in_a_copy(monkeypatch, folder, status):
    """A journal of adam-0 as a training in that copy of the repository leaves it, and that it wrote its record."""
    home = Path.cwd()
    folder.mkdir(parents=True)
    (home / ".dvc").mkdir(exist_ok=True)
    (home / ".dvc" / "config").touch()
    with monkeypatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "higher")
        patch.setenv("DVC_ROOT", str(home))
        patch.chdir(folder)
        log = journal.Journal.create("adam-0")
        lock = notes.run_lock("optlab", "adam-0")
        log.append("start", time=1000, name="adam [higher]", experiment="optlab", params={}, dataset=None,
                   tags={"optlab.run": "adam-0"}, lock=lock)  # fmt: skip
        log.append("tags", tags={notes.WEIGHTS_TAG: "abc"})
        log.append("end", status=status, time=2000)
        Trained.of(status if status == "diverged" else "completed", [EPOCH], [], [[1.0]], {}, "abc").write(
            Path("runs/adam-0/train.json")
        )
        assert journal.find("adam-0", "abc").folder.name == log.folder.name
    return journal.Journal(journal.JOURNALS / log.folder.name), lock


def test_an_experiment_that_is_under_way_keeps_its_journal(top, monkeypatch):
    copy = Path.cwd() / ".dvc" / "tmp" / "exps" / "standalone" / "tmpone"
    log, lock = in_a_copy(monkeypatch, copy, "completed")
    sent(log)
    assert cleaned() == (set(), {log.folder.name: "of the present record"})
    shutil.rmtree(copy)
    assert cleaned() == ({log.folder.name}, {})
    assert list(locks.LOCKS.glob(f"{lock}.*")) == []


def test_one_that_was_stopped_does_not_go_on(top, monkeypatch):
    copy = Path.cwd() / ".dvc" / "tmp" / "exps" / "tmptwo"
    log, _ = in_a_copy(monkeypatch, copy, "interrupted")
    shutil.rmtree(copy)
    sent(log)
    assert cleaned() == ({log.folder.name}, {})


def test_equal_runs_of_two_experiments_keep_apart(top, monkeypatch):
    exps = Path.cwd() / ".dvc" / "tmp" / "exps"
    first, _ = in_a_copy(monkeypatch, exps / "tmpone", "completed")
    time.sleep(1.1)  # journals are named by the second
    second, _ = in_a_copy(monkeypatch, exps / "tmptwo", "completed")
    monkeypatch.setenv("DVC_EXP_NAME", "higher")
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    for copy, log in (("tmpone", first), ("tmptwo", second)):
        monkeypatch.chdir(exps / copy)
        assert journal.find("adam-0", "abc").folder.name == log.folder.name
