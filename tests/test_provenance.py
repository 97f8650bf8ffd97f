"""What is said of the revision that a run was trained at."""

import subprocess
from pathlib import Path

import pytest

from optlab.system import git

RECORD = (
    "runs/adam-0/train.json", "tuning/adam-0/trials.json", "studies/a/tuning/adam-0/choice.json", "reports/pairs.csv",
    "tutorial/dvc.lock",
)  # fmt: skip
CODE = ("src/optlab/tuning/search.py", "params.yaml", "tuning/adam/notes.py")


@pytest.fixture
def committed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(git, "_list_imported_files", list)
    for name in (*RECORD, *CODE):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    for words in (["init"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "all"]):
        subprocess.run(["git", *words], check=True, capture_output=True)


def test_changed_record_does_not_dirty_tree(committed):
    """As a tuning does it, before the runs that confirm it."""
    for number, name in enumerate(RECORD):
        Path(name).unlink() if number % 2 else Path(name).write_text("after")
    assert git.get_provenance()["git.dirty"] == "no"


@pytest.mark.parametrize("name", CODE)
def test_changed_code_dirties_tree(committed, name):
    Path(name).write_text("after")
    assert git.get_provenance()["git.dirty"] == "yes"
