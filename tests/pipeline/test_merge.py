"""Branches with records of their own are merged: params.yaml is left to the user, and nothing is trained again."""

import re
import shlex

import projects
import pytest


@pytest.fixture(scope="module")
def branches(reproduced, tmp_path_factory):
    """Branches with their records: `nadam` and `rmsprop` add that optimizer, `rate` changes that of sgd."""
    project = reproduced[0].copy(tmp_path_factory.mktemp("branches") / "project")
    projects.commit(project, "record")
    git(project, "branch", "base")
    for name in ("nadam", "rmsprop", "rate"):
        git(project, "checkout", "-q", "-b", name, "base")
        if name == "rate":
            project.edit("params.yaml", "sgd: {class: SGD, lr: 0.01}", "sgd: {class: SGD, lr: 0.02}")
        else:
            assert project.run_forked("optlab", "add", name).returncode == 0  # and installs the drivers
        result = project.repro()
        assert result.returncode == 0, result.stdout + result.stderr
        projects.commit(project, name)
    return project


def git(project, *words):
    result = project.run("git", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def list_conflicts(project):
    return git(project, "diff", "--name-only", "--diff-filter=U").splitlines()


def keep_both_sides(project):
    """As a user does in an editor."""
    path = project.top / "params.yaml"
    path.write_text(re.sub(r"^[<=>]{7}.*\n", "", path.read_text(), flags=re.MULTILINE))


def complete(project, optimizers):
    """Write the reports of a merge anew, by a repro that trains nothing, and commit it."""
    result = project.repro()
    assert result.returncode == 0, result.stdout + result.stderr
    assert projects.list_started_stages(result) == {"compare"}
    projects.commit(project, "reports")
    assert git(project, "status", "--porcelain") == ""
    assert {path.stem for path in (project.top / "reports" / "summary").iterdir()} == optimizers
    assert all(f"\n{name}," in (project.top / "reports" / "comparison.csv").read_text() for name in optimizers)


def test_branches_that_each_add_an_optimizer(branches):
    git(branches, "checkout", "-q", "-B", "merged", "nadam")
    assert branches.run("git", "merge", "rmsprop").returncode == 1
    assert list_conflicts(branches) == ["params.yaml"]
    keep_both_sides(branches)
    complete(branches, {"sgd", "adam", "nadam", "rmsprop"})
    for name in ("nadam", "rmsprop"):
        assert git(branches, "diff", name, "--", f"runs/{name}-0", f"tuning/{name}-0") == ""


def test_branch_that_changes_a_learning_rate_and_one_that_adds_an_optimizer(branches):
    git(branches, "checkout", "-q", "-B", "merged", "nadam")
    git(branches, "merge", "--no-edit", "rate")
    complete(branches, {"sgd", "adam", "nadam"})
    assert git(branches, "diff", "rate", "--", "runs/sgd-0", "tuning/sgd-0") == ""
    assert git(branches, "diff", "nadam", "--", "runs/nadam-0", "tuning/nadam-0") == ""


def test_merge_in_a_clone_without_the_drivers_is_mended_by_the_printed_commands(branches, tmp_path):
    clone = branches.clone(tmp_path / "clone")
    git(clone, "checkout", "-q", "nadam")
    assert clone.run("git", "merge", "origin/rmsprop").returncode == 1
    conflicts = list_conflicts(clone)
    assert {path.partition("/")[0] for path in conflicts} == {"dvc.lock", "params.yaml", "reports"}
    for command in ("check", "repro", "show"):
        result = clone.run_forked("optlab", command)
        *notes, error = result.stderr.splitlines()
        assert result.returncode == 1 and re.match(r"error: dvc\.lock:\d+: conflict markers of a git merge: `", error)
        assert [each.partition(":")[0] for each in notes] == (["note"] if command == "check" else [])
    for words in re.findall("`(git [^`]+)`", error):
        git(clone, *shlex.split(words)[1:])
    assert list_conflicts(clone) == ["params.yaml"]
    assert {"train@nadam-0", "train@rmsprop-0"} <= projects.lock_of(clone).keys()
    result = clone.run_forked("optlab", "check")
    assert re.match(r"error: params\.yaml:\d+: conflict markers of a git merge: keep ", result.stderr)
    keep_both_sides(clone)
    assert clone.run_forked("optlab", "check").returncode == 0
