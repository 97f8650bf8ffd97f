"""Git merges of records by the drivers, on records of a few lines: no stage runs here."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from optlab.config import loader
from optlab.orchestration import merge_driver
from optlab.orchestration.dvc_lock import DvcLock
from optlab.records import TrainRecord
from optlab.system.errors import ConfigError, RecordError

TOP = Path(__file__).resolve().parents[1]

# base, ours, theirs: the entries' names and versions; the merged ones; and those that both sides changed
MERGES = {
    "nothing": ("a1 b1", "a1 b1", "a1 b1", "a1 b1", []),
    "changed here": ("a1 b1", "a2 b1", "a1 b1", "a2 b1", []),
    "changed there": ("a1 b1", "a1 b1", "a2 b1", "a2 b1", []),
    "changed alike": ("a1 b1", "a2 b1", "a2 b1", "a2 b1", []),
    "changed on both sides": ("a1 b1", "a2 b1", "a3 b1", "a2 b1", ["a"]),
    "different ones changed": ("a1 b1", "a2 b1", "a1 b2", "a2 b2", []),
    "added here": ("a1", "a1 b1", "a1", "a1 b1", []),
    "added there": ("a1", "a1", "a1 b1", "a1 b1", []),
    "added alike": ("a1", "a1 b1", "a1 b1", "a1 b1", []),
    "added on both sides": ("a1", "a1 b1", "a1 c1", "a1 b1 c1", []),
    "added on both sides under one name": ("a1", "a1 b1", "a1 b2", "a1 b1", ["b"]),
    "deleted here": ("a1 b1", "b1", "a1 b1", "b1", []),
    "deleted there": ("a1 b1", "a1 b1", "b1", "b1", []),
    "deleted on both sides": ("a1 b1", "b1", "b1", "b1", []),
    "deleted here, changed there": ("a1 b1", "b1", "a2 b1", "b1 a2", ["a"]),
    "changed here, deleted there": ("a1 b1", "a2 b1", "b1", "a2 b1", ["a"]),
    "no common file": ("", "a1 b1", "c1 a1", "a1 b1 c1", []),
    "another order": ("a1 b1", "b1 d1 a1", "a1 e1 b1 c1", "b1 d1 a1 e1 c1", []),
}


@pytest.mark.parametrize(("base", "ours", "theirs", "merged", "conflicts"), MERGES.values(), ids=MERGES)
def test_entries_are_merged_by_stage(base, ours, theirs, merged, conflicts):
    sides = ({word[0]: word for word in words.split()} for words in (base, ours, theirs))
    entries, found = merge_driver.merge_entries(*sides)
    assert (" ".join(entries.values()), found) == (merged, conflicts)


class Clone:
    """A git repository with the attributes of this one, and a record of a few lines."""

    def __init__(self, top):
        self.top = top

    def run(self, *words):
        return subprocess.run(["git", *words], cwd=self.top, capture_output=True, text=True)

    def git(self, *words):
        result = self.run(*words)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def branch(self, name, start="main", **versions):
        self.git("checkout", "-q", "-b", name, start)
        self.commit(**versions)

    def commit(self, folder=".", **versions):
        """Write the entries and files of these runs, and of their comparison."""
        lock = DvcLock(self.top / folder / "dvc.lock", [])
        for name, version in {**versions, "compare": f"{versions}"}.items():
            lock.put(name, {"cmd": f"python {name}", "version": version})
            stage_file = "reports/pairs.csv" if name == "compare" else f"runs/{name}/train.json"
            path = self.top / folder / stage_file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps({"version": version, "losses": [f"{name} {step}" for step in range(9)]}, indent=0)
            )
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"{versions}")

    def list_conflicts(self):
        return self.git("diff", "--name-only", "--diff-filter=U").splitlines()

    def read_locked(self):
        """The version of each run in dvc.lock."""
        stages = YAML(typ="safe").load(self.top / "dvc.lock")["stages"]
        return {name: entry["version"] for name, entry in stages.items() if name != "compare"}

    def read_versions(self):
        """The version of each run, which is the same in dvc.lock and in its file."""
        found = {path.parent.name: json.loads(path.read_text()) for path in self.top.glob("runs/*/train.json")}
        versions = {name: content["version"] for name, content in found.items()}
        assert self.read_locked() == versions
        return versions


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A clone without the drivers, as the working directory."""
    top = tmp_path / "a clone"
    top.mkdir()
    monkeypatch.chdir(top)
    clone = Clone(top)
    clone.git("init", "-q", "-b", "main")
    clone.git("config", "user.name", "test")
    clone.git("config", "user.email", "test@example.org")
    shutil.copy(TOP / ".gitattributes", top)
    clone.commit(sgd=1, adam=1)
    return clone


@pytest.fixture
def clone(plain, capsys):
    """A clone with the drivers."""
    merge_driver.install()
    capsys.readouterr()
    return plain


COMMANDS = {
    "merge": (["merge", "-q", "theirs"], 2),
    "merge with a preference": (["merge", "-q", "-X", "theirs", "theirs"], 2),  # git does not tell drivers of it
    "cherry-pick": (["cherry-pick", "theirs"], 2),
    "rebase": (["rebase", "-q", "theirs"], 3),  # whose ours is the other branch
}


@pytest.mark.parametrize(("command", "sgd"), COMMANDS.values(), ids=COMMANDS)
def test_entry_and_files_of_a_run_come_from_one_side(clone, command, sgd):
    clone.branch("theirs", sgd=3, lion=1)
    clone.branch("ours", sgd=2, nadam=1)
    result = clone.run(*command)
    assert (result.returncode, clone.list_conflicts()) == (0, [])
    assert "dvc.lock: both sides changed sgd, compare: ours is kept; `dvc repro` runs what is stale" in result.stderr
    assert clone.read_versions() == {"sgd": sgd, "adam": 1, "nadam": 1, "lion": 1}
    assert clone.git("status", "--porcelain") == ""


def test_change_of_one_side_is_taken_and_a_deleted_run_is_left_to_the_user_where_the_other_changed_it(clone):
    clone.branch("theirs", sgd=2)
    clone.branch("ours", lion=1)
    clone.git("rm", "-q", "-r", "runs/adam")
    clone.git("commit", "-qm", "without adam")
    clone.git("merge", "-q", "theirs")
    locked = {"sgd": 2, "adam": 1, "lion": 1}  # DVC itself never removes an entry
    assert clone.read_locked() == locked and not (clone.top / "runs" / "adam").exists()
    clone.branch("changed", "theirs", adam=2)
    clone.git("checkout", "-q", "ours")
    assert clone.run("merge", "changed").returncode == 1
    assert clone.list_conflicts() == ["runs/adam/train.json"]
    assert clone.read_locked() == locked | {"adam": 2}


def test_branches_that_each_add_a_study_need_no_driver(plain):
    for name in ("one", "two"):
        plain.git("checkout", "-q", "-b", name, "main")
        plain.commit(f"studies/{name}", sgd=1, adam=1)
    plain.git("merge", "-q", "one")
    for name in ("one", "two"):
        assert plain.git("diff", name, "--", f"studies/{name}") == ""
    assert plain.git("diff", "main", "--", "dvc.lock", "runs", "reports") == ""


def test_install_says_so_once_and_works_from_any_folder_and_python(plain, monkeypatch, capsys):
    """The path of the environment may have spaces and per cent signs; another environment takes over."""
    program = plain.top / "100 % 'mine'" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["merge_driver.py"])  # as `make install` calls it
    merge_driver.main()
    assert capsys.readouterr().err.startswith("note: git merges dvc.lock stage by stage")
    monkeypatch.setattr(sys, "executable", str(program))
    for _ in range(2):
        merge_driver.install()
    assert capsys.readouterr().err == ""
    assert str(program.parent.name).replace("%", "%%").split("'")[0] in plain.git("config", "merge.optlab-lock.driver")
    plain.branch("theirs", lion=1)
    plain.git("worktree", "add", "-q", "-b", "ours", str(plain.top.parent / "work tree"), "main")
    tree = Clone(plain.top.parent / "work tree")
    monkeypatch.chdir(tree.top)
    tree.commit(nadam=1)
    tree.git("merge", "-q", "theirs")
    assert tree.read_locked() == {"sgd": 1, "adam": 1, "nadam": 1, "lion": 1}


def test_install_does_nothing_outside_git_or_in_an_experiment(tmp_path, plain, monkeypatch, capsys):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    monkeypatch.setenv("DVC_EXP_NAME", "exp")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    merge_driver.install()
    assert plain.run("config", "merge.optlab-lock.driver").returncode == 1
    monkeypatch.delenv("DVC_EXP_NAME")
    monkeypatch.chdir(tmp_path)
    merge_driver.install()
    merge_driver.check_conflicts(Path())
    assert capsys.readouterr().err == ""


FAILURES = {
    "no Python": "",
    "no YAML": "error: ours:dvc.lock: damaged (",
    "no text": "error: ours:dvc.lock: cannot be read",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_driver_that_fails_leaves_the_merge_to_git(clone, failure):
    clone.branch("theirs", sgd=3)
    clone.branch("ours", sgd=2)
    if failure == "no Python":
        driver = clone.git("config", "merge.optlab-lock.driver").replace(sys.executable, "/no/python")
        clone.git("config", "merge.optlab-lock.driver", driver)
    else:
        with (clone.top / "dvc.lock").open("ab") as file:
            file.write(b"{" if failure == "no YAML" else b"\xff")
        clone.git("commit", "-qam", "damaged")
    result = clone.run("merge", "theirs")
    assert result.returncode == 1
    assert clone.list_conflicts() == ["dvc.lock"]
    assert b"\n<<<<<<< ours\n" in (clone.top / "dvc.lock").read_bytes()
    assert FAILURES[failure] in result.stderr and "Traceback" not in result.stderr


def test_conflicts_of_a_merge_without_drivers_have_a_remedy(plain):
    plain.branch("theirs", sgd=3, lion=1)
    plain.branch("ours", sgd=2, nadam=1)
    merge_driver.check_conflicts(Path())
    assert plain.run("merge", "theirs").returncode == 1
    plain.git("add", "dvc.lock")  # which git can still undo
    with pytest.raises(
        RecordError, match=r"^dvc\.lock:\d+: conflict markers of a git merge: `git checkout "
    ) as refused:
        DvcLock(Path("dvc.lock"), [])
    (command, _) = re.findall("`(git [^`]+)`", str(refused.value))
    plain.git(*shlex.split(command)[1:])
    assert "dvc.lock" in plain.list_conflicts()
    path = "runs/sgd/train.json"
    plain.git("add", path)
    with pytest.raises(RecordError, match=rf"^{path}:2: conflict markers of a git merge: `git checkout ") as refused:
        TrainRecord.read(Path(path))
    plain.git(*shlex.split(re.findall("`(git [^`]+)`", str(refused.value))[0])[1:])
    assert path in plain.list_conflicts()
    plain.git("checkout", "--ours", "dvc.lock")
    with pytest.raises(RecordError) as refused:
        merge_driver.check_conflicts(Path())
    assert str(refused.value).startswith(
        "runs/sgd/train.json:2: conflict markers of a git merge: `git checkout --merge "
    )
    merge_driver.install()
    for command in re.findall("`(git [^`]+)`", str(refused.value)):
        plain.git(*shlex.split(command)[1:])
    merge_driver.check_conflicts(Path())
    assert plain.list_conflicts() == []
    assert plain.read_versions() == {"sgd": 2, "adam": 1, "nadam": 1, "lion": 1}


MARKERS = {
    "both sides": "<<<<<<< HEAD\n  sgd: {class: SGD, lr: 0.01}\n=======\n  sgd: {class: SGD, lr: 0.02}\n>>>>>>> rate\n",
    "the second": "  sgd: {class: SGD, lr: 0.01}\n=======\n",
    "the last": "  sgd: {class: SGD, lr: 0.01}\n>>>>>>> rate\n",
    "of the common base": "  sgd: {class: SGD, lr: 0.01}\n||||||| 5708afe\n",
}


@pytest.mark.parametrize("lines", MARKERS.values(), ids=MARKERS)
def test_conflict_markers_in_params_are_named_with_their_line(lines):
    line = 2 if lines.startswith("<") else 3
    with pytest.raises(ConfigError, match=rf"^params\.yaml:{line}: conflict markers of a git merge: keep "):
        loader.parse(f"optimizers:\n{lines}", Path("params.yaml"))


def test_attributes_match_what_stages_write_and_nothing_else():
    tracked = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    command = ["git", "check-attr", "--stdin", "merge"]
    checked = subprocess.run(command, cwd=TOP, input=tracked, capture_output=True, text=True, check=True).stdout
    drivers = dict(line.split(": merge: ") for line in checked.splitlines())
    record = re.compile(
        r"(tutorial/|studies/[\w-]+/|ranking/\w+/|)(runs/\w+-\d+/\w+\.json|tuning/[\w-]+/\w+\.json|reports/.+)"
    )
    lock = re.compile(r"(tutorial/|studies/[\w-]+/|ranking/\w+/|)dvc\.lock")
    for path, driver in drivers.items():
        expected = (
            "optlab-record" if record.fullmatch(path) else "optlab-lock" if lock.fullmatch(path) else "unspecified"
        )
        assert driver == expected, path
    assert {"runs/adam-0/train.json", "tuning/adam-0/trials.json", "reports/pairs.csv", "dvc.lock"} <= drivers.keys()
