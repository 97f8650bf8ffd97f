"""`dvc exp run`: what a copy of the repository computes arrives in the repository's own MLflow."""

import re
import subprocess
import time

import pytest
from projects import commit, logged_runs, processes_below
from servers import wait_until


@pytest.fixture
def committed(copied):
    """A project whose record is committed, as experiments need it."""
    commit(copied, "record")
    return copied


def find_experiment_runs(project, name):
    return [run for run in logged_runs(project).values() if run["tags"].get("dvc.exp.name") == name]


def test_temp_experiment_reports_to_main_store(committed):
    change = ["-n", "higher", "-S", "optimizers.adam.lr=0.003"]
    # The training is a process of the copy, and the uploader that it starts outlives the copy.
    environment = committed.get_fork_environment(UNFORKED="pipeline/train.py")
    result = committed.run("dvc", "exp", "run", "--temp", *change, **environment)
    assert result.returncode == 0, result.stderr
    assert "filter with  tags.`dvc.exp.name` = 'higher'" in result.stdout
    (run,) = find_experiment_runs(committed, "higher")
    assert (run["name"], run["status"], len(run["steps"])) == ("adam-0 [higher]", "FINISHED", 14)
    head = committed.run("git", "rev-parse", "HEAD").stdout.strip()
    assert run["tags"]["dvc.exp.baseline"] == head
    assert "weights.sha256" in run["tags"] and "comparison" not in run["tags"]
    # What the repository stands at is what it was.
    current = [run["name"] for run in logged_runs(committed).values() if run["tags"].get("comparison") == "current"]
    assert sorted(current) == ["adam-0", "sgd-0"]
    assert committed.run("git", "status", "--short").stdout == ""
    assert [path.name for path in (committed.top / ".optlab" / "locks").iterdir() if "tmp" in path.name] == []
    # Applied, it is the comparison, and its run in MLflow is the one that was made there. DVC looks for the outputs of
    # every pipeline, and complains of the tutorial's, which nobody has computed here.
    applied = committed.run("dvc", "exp", "apply", "higher")
    assert not re.findall(r"^(?!tutorial/)\S+\.(?:safetensors|csv|html)$", applied.stderr, re.MULTILINE)
    assert committed.run("dvc", "status", "dvc.yaml").stdout.strip() == "Data and pipelines are up to date."
    assert committed.run_forked("optlab", "show").returncode == 0
    (run,) = find_experiment_runs(committed, "higher")
    assert run["tags"]["comparison"] == "current"
    shown = committed.run("dvc", "exp", "show", "--drop", "(?!Experiment|.*adam.lr)").stdout
    assert re.search(r"higher\D+0\.003", shown)


def test_queued_experiments_run_in_parallel(committed):
    """One with another learning rate, one with one optimizer more; each sends its run itself."""
    changes = {"higher": "optimizers.adam.lr=0.003", "more": "+optimizers.rms.class=RMSprop"}
    for name, change in changes.items():
        assert committed.run("dvc", "exp", "run", "--queue", "-n", name, "-S", change).returncode == 0
    command = ["dvc", "queue", "start", "-j", "2"]  # its workers would hold a pipe open
    subprocess.run(command, cwd=committed.top, env=committed.get_fork_environment(), check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    try:
        assert_both_recorded(committed)
    finally:
        committed.run("dvc", "queue", "stop", "--kill")
    assert wait_until(lambda: not processes_below(committed.top), 240)


def assert_both_recorded(committed):
    """Once they have ended: in MLflow once each, and in git with their conditions."""
    deadline = time.monotonic() + 480
    while sum(path.name in ("higher", "more") for path in (committed.top / ".git/refs/exps").rglob("*")) < 2:
        assert time.monotonic() < deadline, committed.run("dvc", "queue", "logs", "higher").stdout
        time.sleep(0.2)
    while committed.run("dvc", "queue", "status").stdout.count("Success") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for name, optimizer in (("higher", "adam"), ("more", "rms")):
        (run,) = find_experiment_runs(committed, name)
        assert (run["name"], run["status"], len(run["steps"])) == (f"{optimizer}-0 [{name}]", "FINISHED", 14)
    refs = committed.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    (more,) = [ref for ref in refs if ref.endswith("/more")]
    assert committed.run("git", "cat-file", "-e", f"{more}:runs/rms-0/conditions.json").returncode == 0
    assert "no runs had something to send" in committed.run_forked("optlab", "sync").stdout


def test_copied_project_runs_its_own_code(copied, tmp_path):
    """As where another checkout is installed, and a worktree or an experiment's copy is at work."""
    other = copied.copy(tmp_path / "other")
    other.edit("src/optlab/data/download.py", "all files are there", "another checkout has them")
    result = copied.run_stage("download", PYTHONPATH=str(other.top / "src"))
    assert result.returncode == 0, result.stderr
    assert "all files are there" in result.stdout
