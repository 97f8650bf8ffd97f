"""Killed, or started twice: nothing is left at work, nothing is written by two, and the next call goes on."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import projects
import psutil
import pytest
from projects import LONG, checkpoints, logged_runs, output, processes_below, started, until

PROGRAMS = Path(sys.executable).parent
DVC = (str(PROGRAMS / "dvc"), "repro", "train@adam-0")
OPTLAB = (str(PROGRAMS / "optlab"), "repro", "--jobs", "2")
STAGE = (sys.executable, "pipeline/train.py", "adam", "0")
IMPATIENT = """
import runpy, sys
from optlab.system import locks

def main():
    locks.LOCK_TIMEOUT_S = 0.2
    sys.argv = ["pipeline/train.py", "adam", "0"]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def project(longer, tmp_path):
    return longer.copy(tmp_path / "project")


@pytest.fixture
def single_optimizer_project(project):
    """With one optimizer."""
    project.edit("params.yaml", "  sgd: {class: SGD, lr: 0.01}\n", "")
    return project


def read_events(project, run="adam-0"):
    """Those of the newest event log."""
    path = max(project.top.glob(f".optlab/event_logs/*-{run}-*/events.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_steps(project):
    """The steps whose losses are in the newest event log."""
    return [point[3] for event in read_events(project) for point in event.get("points", ()) if point[0] == "step/loss"]


def is_uploader(process):
    try:
        return "optlab.tracking.uploader_daemon" in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended since it was listed
        return False


def all_exit_within(project, seconds):
    deadline = time.monotonic() + seconds
    while processes_below(project.top):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def assert_resumed(project, before, undisturbed, interruptions):
    """The bytes of an undisturbed run, and one run in MLflow for each training, with every step once."""
    assert {name: (project.top / name).read_bytes() for name in undisturbed} == undisturbed
    runs = [each for run, each in logged_runs(project).items() if run not in before]
    (run,) = runs
    assert (run["name"], run["status"]) == ("adam-0", "FINISHED")
    assert run["steps"] == list(range(7 * LONG))
    assert run["tags"].get("interruptions") == interruptions


@pytest.mark.parametrize("command", [DVC, OPTLAB], ids=["dvc", "optlab"])
def test_killed_caller_and_killed_uploader_lose_nothing(single_optimizer_project, undisturbed, command, monkeypatch):
    """The training stops with its caller; the next call continues it, and replaces an uploader that is killed."""
    project, before = single_optimizer_project, logged_runs(single_optimizer_project)
    monkeypatch.setenv("REST_S", "0.1")  # it is at work until it is killed
    with started(project, *command) as caller:
        until(caller, lambda: checkpoints(project))
        assert len(processes_below(project.top)) >= 3  # with what trains, and what fills MLflow
        caller.send_signal(signal.SIGKILL)
        caller.wait()
        assert all_exit_within(project, 240)
    assert read_events(project)[-1]["event"] == "end"
    assert read_events(project)[-1]["status"] == "interrupted"
    (run,) = set(logged_runs(project)) - set(before)
    known = logged_runs(project)[run]["steps"]
    with started(project, *command) as caller:
        until(caller, lambda: len(logged_runs(project)[run]["steps"]) > len(known))
        (uploader,) = filter(is_uploader, processes_below(project.top))
        uploader.kill()
        assert caller.wait(240) == 0
        assert all_exit_within(project, 240)  # the one that was started in its place, too
    assert re.search(r"adam-0  continues after step \d+", output(project))
    assert_resumed(project, before, undisturbed, "1")
    assert "up to date" in project.run("dvc", "repro", *DVC[2:]).stdout


def test_killed_training_is_closed_by_sync(project, monkeypatch):
    monkeypatch.setenv("REST_S", "0.1")  # it is at work until it is killed
    before = logged_runs(project)
    with started(project, *STAGE) as process:
        until(process, lambda: set(logged_runs(project)) - set(before))
        (run,) = set(logged_runs(project)) - set(before)
        until(process, lambda: any(each["event"] == "metrics" for each in read_events(project)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert logged_runs(project)[run]["status"] == "RUNNING"
    result = project.run_forked("optlab", "sync")
    assert result.returncode == 0, result.stderr
    assert logged_runs(project)[run]["status"] == "KILLED"
    assert logged_runs(project)[run]["tags"]["status"] == "interrupted"


def error_lines(result):
    text = result.stdout + result.stderr
    assert "Traceback" not in text, text
    assert result.returncode != 0
    found = re.findall(r"^(?:error|ERROR): (.*)", text, re.MULTILINE)
    assert found, text
    return found


@contextlib.contextmanager
def suspended_training(project):
    """Stop what trains: it has its locks, and leaves the cores to others."""
    processes = []
    for process in processes_below(project.top):
        with contextlib.suppress(psutil.NoSuchProcess):  # git, say: it has ended since it was listed
            if not is_uploader(process):
                process.suspend()
                processes.append(process)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def test_concurrent_repro_names_running_process(project):
    """Of each kind beside each kind; no output appears, and one process at a time wrote each event log."""
    project.edit("params.yaml", f"epochs: {LONG}", "epochs: 50000")
    earlier = set(project.top.glob(".optlab/event_logs/*"))

    def new(run="adam-0"):
        return [
            path for path in set(project.top.glob(f".optlab/event_logs/*-{run}-*")) - earlier if any(path.iterdir())
        ]

    with started(project, *DVC) as first:
        until(first, lambda: checkpoints(project))
        with suspended_training(project):
            second = project.run(*DVC)
            assert "is busy" in error_lines(second)[0]
            assert f"(PID {first.pid}): " in second.stderr
            assert error_lines(project.run_forked("optlab", *OPTLAB[1:])) == [
                f"repro: process {first.pid} (`{' '.join(DVC)}`) is at work in this folder: "
                "wait for it to end, or stop it"
            ]
            assert len(new()) + len(new("sgd-0")) == 1
    with started(project, *OPTLAB) as first:
        # adam-0 has a checkpoint from before: its training holds the lock once it has logged that it continues
        until(
            first,
            lambda: checkpoints(project, "sgd-0") and "resume" in [each["event"] for each in read_events(project)],
        )
        with suspended_training(project):
            (line,) = error_lines(project.run_forked("optlab", *OPTLAB[1:]))
            assert line.startswith(f"repro: process {first.pid} (`") and "optlab repro" in line
            assert "is at work on it in this folder: wait for it to end, or stop it" in line
            second = project.run(*DVC)
            assert "is busy" in error_lines(second)[0] and "(PID " in second.stderr
            (project.top.parent / "impatient.py").write_text(IMPATIENT)
            (line,) = error_lines(project.run_forked(str(project.top.parent / "impatient.py")))
            assert re.match(r"optlab-adam-0: process \d+ \(`.*pipeline/train.py adam 0`\) is at work", line), line
            assert not list(project.top.glob("models/*"))  # each was removed before its training, and none has ended
    assert len(new()) == len(new("sgd-0")) == 1
    steps = read_steps(project)
    assert steps == list(range(len(steps)))


def test_concurrent_stages_run_one_after_another(project, undisturbed):
    """The second waits for the first, then does the same again, to the same bytes."""
    with started(project, *STAGE[1:], forked=True) as first:
        until(first, lambda: list(project.top.glob(".optlab/locks/optlab-adam-0.pid")) and checkpoints(project))
        second = project.run_stage("train", "adam", "0")
        assert first.poll() == 0  # by the time the second one ends
    assert second.returncode == 0, second.stderr
    assert {name: (project.top / name).read_bytes() for name in undisturbed} == undisturbed
    kinds = [event["event"] for event in read_events(project) if event["event"] in ("start", "resume", "end")]
    assert kinds == ["start", "end", "resume", "end"]
    assert os.listdir(project.top / ".optlab" / "checkpoints") == []  # noqa: PTH208
    assert projects.processes_below(project.top) == []
