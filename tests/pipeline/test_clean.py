"""`optlab clean` between runs, and while one is at work."""

from projects import LONG, checkpoints, logged_runs, started, until


def removed(result):
    assert (result.returncode, result.stderr) == (0, "")
    return [line.removeprefix("removed ") for line in result.stdout.splitlines() if line.startswith("removed ")]


def comparison_tags(project):
    """Of the runs in MLflow: the optimizer, and whether it is of the present comparison."""
    return sorted((run["name"], run["tags"]["comparison"]) for run in logged_runs(project).values())


def current(project):
    return {run for run, each in logged_runs(project).items() if each["tags"]["comparison"] == "current"}


def test_clean_removes_uploaded_log_of_former_run(copied):
    """Not even when its parameters come back, and DVC its outputs."""
    assert removed(copied.run_forked("optlab", "clean")) == []
    copied.edit("params.yaml", "lr: 0.001", "lr: 0.003")
    assert copied.repro().returncode == 0
    (name,) = removed(copied.run_forked("optlab", "clean"))
    assert "-adam-0-" in name
    assert removed(copied.run_forked("optlab", "clean")) == []
    assert "no runs had something to send" in copied.run_forked("optlab", "sync").stdout
    assert copied.run_forked("optlab", "show").returncode == 0
    held = [("adam-0", "current"), ("adam-0", "earlier"), ("sgd-0", "current")]
    assert comparison_tags(copied) == held
    before = current(copied)
    copied.edit("params.yaml", "lr: 0.003", "lr: 0.001")
    assert copied.repro().returncode == 0
    assert comparison_tags(copied) == held
    assert len(current(copied) & before) == 1  # sgd's


def test_clean_keeps_files_of_active_training(longer, undisturbed, tmp_path):
    project = longer.copy(tmp_path / "project")
    before = logged_runs(project)
    (project.top / "runs/adam-0/train.json").unlink()  # as DVC does before it starts the stage
    with started(project, "pipeline/train.py", "adam", "0", forked=True) as process:
        until(process, lambda: checkpoints(project))
        result = project.run_forked("optlab", "clean")
        assert process.poll() is None
        assert removed(result) == []
        assert "  1: a process is at work on their runs" in result.stdout.splitlines()
        assert process.wait(240) == 0
    assert {name: (project.top / name).read_bytes() for name in undisturbed} == undisturbed
    (run,) = set(logged_runs(project)) - set(before)
    assert logged_runs(project)[run]["steps"] == list(range(7 * LONG))
    (name,) = removed(project.run_forked("optlab", "clean"))
    assert "-adam-0-" in name
