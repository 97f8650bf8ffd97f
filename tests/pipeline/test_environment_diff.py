"""Where the numbers of one table came from: runs made under different conditions are named, wherever it is shown."""

import json
import re

import pytest
from projects import commit, lock_of, logged_runs

MIXED = "1.0 (adam-0)"


@pytest.fixture(scope="module")
def mixed_environments(reproduced, tmp_path_factory):
    """A project whose record says that adam was trained with another numpy; and what `dvc repro` then printed."""
    project = reproduced[0].copy(tmp_path_factory.mktemp("mixed") / "project")
    path = project.top / "runs" / "adam-0" / "conditions.json"
    path.write_text(re.sub(r'"numpy": "[^"]+"', '"numpy": "1.0"', path.read_text()))
    result = project.repro()
    assert result.returncode == 0, result.stderr
    return project, result.stdout


def test_changed_environment_reruns_only_comparison(mixed_environments, reproduced):
    project, printed = mixed_environments
    assert re.findall(r"Running stage '([^']+)'", printed) == ["compare"]
    outputs = [
        {name: stage["outs"] for name, stage in lock_of(each).items() if name != "compare"}
        for each in (project, reproduced[0])
    ]
    assert outputs[0] == outputs[1]


def test_differing_environment_is_named_in_all_outputs(mixed_environments, reproduced):
    project, printed = mixed_environments
    assert MIXED in printed and MIXED not in reproduced[1]
    for name in ("comparison.md", "report.html"):
        assert MIXED in (project.top / "reports" / name).read_text(), name
    for run in logged_runs(project).values():
        assert MIXED in run["tags"]["comparison.conditions"]
    for run in logged_runs(reproduced[0]).values():
        assert run["tags"]["comparison.conditions"] == "the same for all runs"


def test_check_names_retraining_command_for_differing_environment(mixed_environments, reproduced):
    (line,) = mixed_environments[0].run_forked("optlab", "check").stderr.splitlines()
    assert line.startswith("note: adam-0: recorded with numpy 1.0, here ")
    assert "`dvc repro -f -s train@adam-0`, then `dvc repro`, trains it again here" in line
    assert reproduced[0].run_forked("optlab", "check").stderr == ""


def test_release_of_mixed_environments_needs_flag(mixed_environments, tmp_path):
    project = mixed_environments[0].copy(tmp_path / "project")
    refused = project.run_forked("optlab", "release", "v1")
    assert refused.returncode == 1 and MIXED in refused.stderr and "`--mixed`" in refused.stderr
    released = project.run_forked("optlab", "release", "v1", "--mixed")
    assert released.returncode == 0, released.stderr
    assert MIXED in project.run("git", "tag", "-l", "--format=%(contents)", "v1").stdout


def test_optimizer_package_is_recorded_in_environment(reproduced, tmp_path):
    project = reproduced[0].copy(tmp_path / "project")
    project.edit("params.yaml", "{class: Adam, ", "{class: schedulefree.AdamWScheduleFree, ")
    assert project.run_stage("train", "adam", "0").returncode == 0
    packages = [
        json.loads((project.top / "runs" / run / "conditions.json").read_text())["packages"]
        for run in ("adam-0", "sgd-0")
    ]
    assert "schedulefree" in packages[0] and "schedulefree" not in packages[1]


def test_uncommitted_module_makes_tree_dirty(reproduced, tmp_path):
    project = reproduced[0].copy(tmp_path / "project")
    project.edit("params.yaml", "sgd: {class: SGD, ", "sgd: {class: sign_descent.SignDescent, ")
    commit(project, "all of it")
    dirty = {}
    for name in ("sign_descent", "mine"):
        if name == "mine":
            (project.top / "custom" / "mine.py").write_text((project.top / "custom" / "sign_descent.py").read_text())
            (project.top / "custom" / ".gitignore").write_text("mine.py\n.gitignore\n")  # git does not even show it
            project.edit("params.yaml", "sign_descent.", "mine.")
            project.run("git", "commit", "-qam", "another class")
        before = logged_runs(project)
        assert project.run_stage("train", "sgd", "0").returncode == 0
        (run,) = [each for key, each in logged_runs(project).items() if key not in before]
        dirty[name] = run["tags"]["git.dirty"]
    assert dirty == {"sign_descent": "no", "mine": "yes"}
