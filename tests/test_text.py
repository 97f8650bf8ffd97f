"""Phrases that many messages share."""

import io
import subprocess
import sys

import pytest

from optlab.system import git, repository
from optlab.system.errors import RevisionError, print_stderr
from optlab.system.text import count_edits, extract_error, suggest_similar

# What DVC 3.67 and git 2 say.
FAILED = {
    "DVC": (
        "WARNING: slow\nERROR: unexpected error - [Errno 2] No such file or directory: '/remote'\n\n"
        "Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!",
        "unexpected error - [Errno 2] No such file or directory: '/remote'",
    ),
    "DVC, of a file": (
        "'dvc.yaml' validation failed.\n\nextra keys not allowed, in stages -> a -> foo, line 3, column 5\n"
        "  2   a:              \n  3 │   cmd: true       ",
        "'dvc.yaml' validation failed. extra keys not allowed, in stages -> a -> foo, line 3, column 5",
    ),
    "git without an identity": (
        "Author identity unknown\n\n*** Please tell me who you are.\n\nRun\n\n  git config ...\n\n"
        "fatal: unable to auto-detect email address (got 'root@host.(none)')",
        "unable to auto-detect email address (got 'root@host.(none)')",
    ),
    "a refused push": (
        "To /remote.git\n ! [rejected]        v1 -> v1 (already exists)\nerror: failed to push some refs\n"
        "hint: Updates were rejected because the tag already exists in the remote.",
        "! [rejected] v1 -> v1 (already exists)",
    ),
    "no connection": (
        "ssh: Could not resolve hostname x: Name or service not known\nfatal: Could not read from remote.\n\n"
        "Please make sure you have the correct access rights\nand the repository exists.",
        "ssh: Could not resolve hostname x: Name or service not known",
    ),
    "nothing": ("\n", "no reason given"),
}


@pytest.mark.parametrize(("output", "reason"), FAILED.values(), ids=FAILED)
def test_failure_reason_is_error_line_not_advice(output, reason):
    assert extract_error(output) == reason
    assert repository.extract_dvc_error(subprocess.CompletedProcess([], 1, "", output)) == reason


def test_git_failure_names_command_and_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RevisionError, match=r"^git add: not a git repository"):
        git.run("add", "x")


EDITS = {
    ("adma", "adam"): 1,  # two neighbours swapped
    ("adma", "adamax"): 2,
    ("liom", "lion"): 1,
    ("", "sgd"): 3,
    ("kitten", "sitting"): 3,
    ("ca", "abc"): 3,  # no letter is edited twice
    ("adam", "adam"): 0,
}


@pytest.mark.parametrize(("words", "count"), EDITS.items(), ids=map("-".join, EDITS))
def test_edits_are_counted_with_swaps(words, count):
    assert count_edits(*words) == count_edits(*reversed(words)) == count


def test_suggestion_has_fewest_edits():
    names = ["Adamax", "Adam", "AdamW", "SGD", "Lion"]
    assert suggest_similar("Adma", names) == ": did you mean Adam?"
    assert suggest_similar("adamw", names) == ": did you mean AdamW?"
    assert suggest_similar("prodigy", names) == suggest_similar("x", []) == ""


def test_line_on_stderr_is_one_write(monkeypatch):
    class Terminal(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            written.append(bytes(data))
            return len(data)

    written = []
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Terminal(), write_through=True))  # as with PYTHONUNBUFFERED
    print_stderr("import time: 1 | 2 | mlflow")
    assert written == [b"import time: 1 | 2 | mlflow\n"]
