"""`optlab repro --jobs`: the runs side by side, with the lock of plain `dvc repro`, and nothing left when it stops."""

import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import projects
import pytest
from dvc import rwlock
from projects import lock_of
from ruamel.yaml import YAML

from optlab.orchestration.dvc_lock import DvcLock
from optlab.orchestration.dvc_pipeline import DvcPipeline
from optlab.orchestration.executor import split_cores
from optlab.system import errors
from optlab.system.errors import RecordError, RunsFailedError


def test_parallel_repro_leaves_lock_of_plain_repro(reproduced, fresh):
    """With the lock of plain `dvc repro` and nothing else, as in a fresh clone: the same bytes afterwards."""
    lock = (reproduced[0].top / "dvc.lock").read_bytes()
    (fresh.top / "dvc.lock").write_bytes(lock)
    result = fresh.run_forked("optlab", "repro", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert set(re.findall(r"^(\w+-0)  epoch 2/2", result.stdout, re.MULTILINE)) == {"sgd-0", "adam-0"}
    assert re.search(r"adam +1 +completed", result.stdout)
    assert (fresh.top / "dvc.lock").read_bytes() == lock
    assert "up to date" in fresh.run("dvc", "repro").stdout


OPTIMIZER = """
import torch

class Broken(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        Broken.steps += len(self.param_groups[0]["params"]) > 2  # not those that it is tried with
        if Broken.steps > 5:
            raise RuntimeError("the moon is in the wrong house")
        return super().step(closure)
"""


def test_failed_run_alone_is_repeated(fresh):
    (fresh.top / "mine.py").write_text(OPTIMIZER)
    fresh.edit("params.yaml", "  adam: {class: Adam, lr: 0.001}", "  broken: {class: mine.Broken, lr: 0.01}")
    fresh.edit("params.yaml", "seeds: [0]", "seeds: [0, 1]")
    result = fresh.run_forked("optlab", "repro", "--jobs", "2")
    assert result.returncode == 1
    *reasons, summary = result.stderr.splitlines()
    assert summary.startswith("error: 2 of 4 runs failed: broken-0, broken-1: ")
    failure = r"broken-0: step 5 fails: RuntimeError: the moon is in the wrong house \(.*/mine\.py, line \d+\)"
    assert any(re.fullmatch(failure, line) for line in reasons), result.stderr
    runs = ["train@sgd-0", "evaluate@sgd-0", "train@sgd-1", "evaluate@sgd-1"]
    assert list(lock_of(fresh)) == ["download", "tune@sgd-0", "tune@sgd-1", "tune@broken-0", "tune@broken-1", *runs]
    assert not (fresh.top / "reports" / "comparison.md").exists()
    before = (fresh.top / "models" / "sgd-0.safetensors").stat().st_mtime_ns
    fresh.edit("mine.py", "> 5", "> 500")
    result = fresh.run_forked("optlab", "repro", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert set(re.findall(r"^(\w+-\d)  epoch", result.stdout, re.MULTILINE)) == {"broken-0", "broken-1"}
    assert (fresh.top / "models" / "sgd-0.safetensors").stat().st_mtime_ns == before


MEDDLING = """
import pathlib
import torch

class Meddling(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        Meddling.steps += len(self.param_groups[0]["params"]) > 2  # not those that it is tried with
        if Meddling.steps == 3:  # as somebody with an editor
            with pathlib.Path("src/optlab/training/schedules.py").open("a") as file:
                file.write("# another thought\\n")
        return super().step(closure)
"""


def test_changed_code_during_repro_records_nothing(fresh):
    """What was at work is not kept as the result of the new code, and nothing more is started with the old."""
    (fresh.top / "custom" / "meddling.py").write_text(MEDDLING)
    fresh.edit("params.yaml", "  sgd: {class: SGD, lr: 0.01}", "  sgd: {class: meddling.Meddling, lr: 0.01}")
    result = fresh.run("optlab", "repro", "--jobs", "1")
    assert result.returncode == 1
    assert (
        "sgd-0: src/optlab/training changed while it ran, so nothing was recorded: repeat the command" in result.stderr
    )
    assert "adam-0: src/optlab/training/schedules.py changed since this command began, so it was not" in result.stderr
    assert list(lock_of(fresh)) == ["download", "tune@sgd-0", "tune@adam-0"]
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(("number", "forked"), [(signal.SIGINT, False), (signal.SIGTERM, True)], ids=["2", "15"])
def test_interrupt_stops_all_child_processes(fresh, number, forked):
    fresh.edit("params.yaml", "epochs: 2", "epochs: 5000")
    log_folder = fresh.top / ".optlab" / "event_logs"
    with projects.started(fresh, "optlab", "repro", "--jobs", "2", forked=forked) as parent:
        projects.until(parent, lambda: len(list(log_folder.glob("*/events.jsonl"))) == 2)  # both have begun to train
        assert len(projects.processes_below(fresh.top)) >= 5  # optlab, what forks, two trainings, what fills MLflow
        parent.send_signal(number)
        status = parent.wait(240)
    output = projects.output(fresh)
    assert status == 130, output
    assert "stopped: what is complete is kept" in output
    assert "failed" not in output
    ends = [path.read_text().splitlines()[-1] for path in log_folder.glob("*/events.jsonl")]
    assert all('"status": "interrupted"' in line for line in ends)
    status = fresh.run("dvc", "status")
    assert status.returncode == 0 and "lock" not in status.stderr, status.stderr


def test_eight_parallel_jobs_complete_without_warnings(fresh):
    fresh.edit("params.yaml", "seeds: [0]", "seeds: [0, 1, 2, 3]")
    fresh.edit("params.yaml", "epochs: 2", "epochs: 1")
    result = fresh.run_forked("optlab", "repro", "--jobs", "8")
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout + result.stderr
    assert not re.findall("^.*(?:lock|warning).*$", said, re.IGNORECASE | re.MULTILINE)
    assert len(lock_of(fresh)) == 2 + 3 * 8
    assert "up to date" in fresh.run("dvc", "repro").stdout


def test_jobs_get_separate_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4, 5, 7})
    assert split_cores(1) == [{2, 3, 4, 5, 7}]
    assert split_cores(2) == [{2, 3}, {4, 5}]
    assert split_cores(5) == [{2}, {3}, {4}, {5}, {7}]
    assert split_cores(6) == [{2}, {3}, {4}, {5}, {7}, {2}]


@pytest.mark.parametrize("text", ["stages: [\n", "stages: null\n", "stages:\n  a: 1\n  a: 2\n", "- a\n"])
def test_damaged_lock_is_reported_in_one_line(tmp_path, text):
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(RecordError, match=r"dvc\.lock: damaged .*: restore it with git"):
        DvcLock(tmp_path / "dvc.lock", [])


def test_failure_reason_is_passed_to_caller(tmp_path, monkeypatch):
    reason = tmp_path / "reason"
    monkeypatch.setenv(errors.ERROR_FILE_VARIABLE, str(reason))

    def fails(error):
        raise error

    with pytest.raises(SystemExit):
        errors.run_main(lambda: fails(errors.DataError("the file \udcff is gone")))  # a name that is no text
    assert reason.read_text() == r"the file \udcff is gone"
    with pytest.raises(ZeroDivisionError):
        errors.run_main(lambda: fails(ZeroDivisionError("by zero")))
    assert reason.read_text() == "ZeroDivisionError: by zero"


def test_run_failing_without_reason_shows_its_output(fresh):
    """The stage's module cannot even be read; and what a full disk has left of the reason is an empty file."""
    assert fresh.run_stage("download").returncode == 0
    (fresh.top / "pipeline" / "train.py").write_text(
        "import os, pathlib\npathlib.Path(os.environ['OPTLAB_ERROR_FILE']).touch()\nimport no_such_module\n"
    )
    result = fresh.run_forked("optlab", "repro", "--jobs", "2")
    assert result.returncode == 1
    assert "2 of 2 runs failed" in result.stderr
    assert "No module named 'no_such_module'" in result.stdout


def test_lock_entries_keep_stage_order(tmp_path):
    path = tmp_path / "dvc.lock"
    head = "schema: '2.0'\nstages:\n"
    path.write_text(head + "  train@b-0:\n    cmd: b\n")
    lock = DvcLock(path, ["train@a-0", "evaluate@a-0", "train@b-0", "evaluate@b-0"])
    with path.open("a") as file:  # by another program, while this one is at work
        file.write("  other:\n    cmd: x\n    outs:\n    - path: y\n")
    for name in ("evaluate@b-0", "train@a-0", "train@b-0"):
        lock.put(name, {"cmd": "x"})
    assert re.findall(r"^  (\S+):$", path.read_text(), re.MULTILINE) == [
        "train@a-0", "train@b-0", "evaluate@b-0", "other"
    ]  # fmt: skip
    assert "cmd: b" not in path.read_text()


def test_order_of_lock_entries_is_independent_of_endings_and_interruptions(tmp_path):
    """Each entry is put by a process of its own, with what others have put before; those of the start keep theirs."""
    stages = ["tune@a", "train@a-0", "train@a-1", "train@b-0", "train@b-1"]
    present = ["compare", "train@b-0", "train@a-0"]
    for number, ending in enumerate(itertools.permutations(["tune@a", "train@a-1", "train@b-1"])):
        path = tmp_path / f"{number}.lock"
        for name in (*present, *ending):
            DvcLock(path, [] if name in present else stages).put(name, {"cmd": "x"})
        entries = list(DvcLock(path, []).read_entries())
        assert entries == ["tune@a", "compare", "train@b-0", "train@b-1", "train@a-0", "train@a-1"]


def test_lock_entries_equal_dvc_format(tmp_path):
    """The committed lock, put together entry by entry, has the same bytes; so has one in another layout, once more."""
    committed = (projects.TOP / "dvc.lock").read_text()
    entries = YAML(typ="safe").load(committed)["stages"]
    path = tmp_path / "dvc.lock"
    lock = DvcLock(path, [])
    for name, entry in entries.items():
        lock.put(name, entry)
    assert path.read_text() == committed
    path.write_text(json.dumps({"schema": "2.0", "stages": entries}))
    lock.put("download", entries["download"])
    assert path.read_text() == committed


def test_portable_numerics_apply_in_fork_server(fresh):
    """Decided by variables that are read as the libraries are loaded: before the process that forks."""
    fresh.edit("params.yaml", "threads: 2", "threads: 2, numerics: portable")
    fresh.edit("params.yaml", "  adam: {class: Adam, lr: 0.001}\n", "")
    result = fresh.run("optlab", "repro")
    assert result.returncode == 0, result.stderr
    conditions = json.loads((fresh.top / "runs" / "sgd-0" / "conditions.json").read_text())
    assert conditions["variables"]["ATEN_CPU_CAPABILITY"] == "avx2"


def test_dvc_rwlock_is_not_read_for_held_paths(copied, monkeypatch):
    """It has every path that is held: reading it for each would cost the square of the number of runs."""
    monkeypatch.chdir(copied.top)
    ledger, asked = DvcPipeline(Path("dvc.yaml"), []), []
    usual = rwlock.rwlock
    monkeypatch.setattr(rwlock, "rwlock", lambda *words: asked.append(words) or usual(*words))
    assert not ledger.is_stale("train@adam-0")
    assert len(asked) > 1
    with ledger.lock_stages(["train@adam-0", "evaluate@adam-0"]):
        del asked[:]
        assert not ledger.is_stale("train@adam-0") and asked == []
        assert not ledger.is_stale("train@sgd-0") and len(asked) > 1
    assert rwlock.rwlock is not usual and not ledger.is_stale("train@adam-0")


def test_dvc_obstacle_is_reported_with_remedy_before_running(copied, monkeypatch, tmp_path):
    monkeypatch.chdir(copied.top)
    ledger, damaged = DvcPipeline(Path("dvc.yaml"), []), Path(".dvc/tmp/rwlock")
    for content in ("", "[1]"):
        damaged.write_text(content)
        with pytest.raises(RunsFailedError, match=r"rwlock is damaged, .*: if no other DVC is at work here, delete it"):
            ledger.is_stale("download")
    damaged.unlink()
    for name in ("models", "data"):
        Path(name).rename(tmp_path / name)
        Path(name).symlink_to(tmp_path / name)
        with pytest.raises(RunsFailedError, match=rf"^{name}: a link out of the repository, .* `dvc cache dir"):
            DvcPipeline(Path("dvc.yaml"), [])
        Path(name).unlink()
    Path("reports").rename(tmp_path / "reports")  # DVC keeps none of it
    Path("reports").symlink_to(tmp_path / "reports")
    (tmp_path / "models").rename("models"), (tmp_path / "data").rename("data")
    assert not DvcPipeline(Path("dvc.yaml"), []).is_stale("compare")


def test_recorded_runs_are_not_retrained_for_missing_weights(copied, monkeypatch):
    """As in a fresh clone, to which nobody has brought DVC's cache."""
    for folder in ("models", ".dvc/cache"):
        shutil.rmtree(copied.top / folder)
    for path in copied.top.glob("runs/*/predictions.csv"):
        path.unlink()
    record = (copied.top / "runs" / "adam-0" / "train.json").read_bytes()
    copied.edit("params.yaml", "seeds: [0]", "seeds: [0, 1]")
    result = copied.run_forked("optlab", "repro", "--allow-missing")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (copied.top / "models").iterdir()} == {"sgd-1.safetensors", "adam-1.safetensors"}
    assert re.search(r"adam +2 +completed", result.stdout)
    assert (copied.top / "runs" / "adam-0" / "train.json").read_bytes() == record
    monkeypatch.chdir(copied.top)
    stages = [f"{stage}@{run}" for run in ("adam-0", "adam-1") for stage in ("train", "evaluate")]

    def stale(allow_missing):
        ledger = DvcPipeline(Path("dvc.yaml"), [], allow_missing=allow_missing)
        return [name for name in stages if ledger.is_stale(name)]

    assert (stale(True), stale(False)) == ([], stages[:2])
    record = copied.top / "runs" / "adam-1" / "train.json"
    record.rename(copied.top / "kept")  # git has it, and no cache
    assert stale(True) == ["train@adam-1"]
    (copied.top / "kept").rename(record)
    copied.edit("pipeline/evaluate.py", "def main()", "# another evaluation\ndef main()")  # it wants the weights
    assert stale(True) == ["train@adam-0", "evaluate@adam-0", "evaluate@adam-1"]
