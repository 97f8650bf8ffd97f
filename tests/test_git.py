"""What git refuses, or does not know, is one line with the remedy, and leaves nothing behind."""

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from optlab.orchestration import sample
from optlab.reproduce import release
from optlab.system import files, git, repository
from optlab.system.errors import OptlabError, RevisionError
from optlab.system.git import Revision


def run_git(*words):
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def top(tmp_path, monkeypatch):
    """A repository with a commit of params.yaml, whose user git knows; the working directory."""
    for name in ("AUTHOR", "COMMITTER"):
        for part in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{name}_{part}", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "top").mkdir()
    monkeypatch.chdir(tmp_path / "top")
    run_git("init", "-q")
    run_git("config", "user.name", "test")
    run_git("config", "user.email", "test@example.org")
    Path("params.yaml").write_text("seeds: [0]")
    run_git("add", "-A")
    run_git("commit", "-qm", "start")
    return tmp_path / "top"


def test_missing_git_repository_is_reported(top, tmp_path, monkeypatch):
    """As a download without .git: it is not that the tag is missing."""
    with pytest.raises(RevisionError, match=r"^v1: no such tag, branch or commit: `git tag` lists the tags$"):
        Revision.parse("v1")
    (top / ".git").rename(tmp_path / "away")
    for call in (lambda: Revision.parse("v1"), lambda: release.release(None, Path(), "v1")):
        with pytest.raises(RevisionError, match=r"^/.*/top: no git repository: clone it: a download without .git"):
            call()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RevisionError, match=r"^git cannot be run \(No such file or directory\): install it$"):
        Revision.parse("v1")


def test_sample_needs_git_and_its_repository(top, tmp_path, monkeypatch):
    (top / ".dvc").mkdir()
    (top / ".dvc" / "config").touch()
    (top / ".git").rename(tmp_path / "away")
    with pytest.raises(RevisionError, match=r"no git repository: clone it: "):
        sample.run()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RevisionError, match=r"^git cannot be run .*: install it$"):
        sample.run()


def test_what_git_prints_in_success_is_no_error(top, monkeypatch):
    monkeypatch.setenv("GIT_TRACE", "1")
    git.check_repository()


def test_repository_of_other_user_is_reported(top, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    permits = f"`git config --global --add safe.directory {top}` permits it"
    for call in (lambda: Revision.parse("HEAD"), lambda: release.release(None, Path(), "v1")):
        with pytest.raises(RevisionError) as caught:
            call()
        assert str(caught.value) == f"{top}: belongs to another user, so git does not read it: {permits}"


NAMES = {
    "HEAD": "not a valid name for a git tag: give one such as v1.0",
    "-x": "not a valid name for a git tag",
    "a..b": "not a valid name for a git tag",
    "v1+x": "MLflow takes no such name: at most 200 letters",
    "v1@2": "MLflow takes no such name: at most 200 letters",
    "v" * 201: "MLflow takes no such name: at most 200 letters",
}


@pytest.mark.parametrize(("name", "message"), NAMES.items(), ids=[name[:9] for name in NAMES])
def test_invalid_release_name_is_refused(top, name, message):
    with pytest.raises(RevisionError) as caught:
        release.release(None, Path(), name)
    assert str(caught.value).startswith(f"{name}: {message}")


def test_refused_commit_leaves_nothing_staged(top):
    """For want of a name, or by a hook."""
    Path("params.yaml").write_text("seeds: [1]")
    Path("new.txt").touch()
    run_git("config", "user.useConfigOnly", "true")
    run_git("config", "--unset", "user.email")
    with pytest.raises(RevisionError, match=r"^git does not know who commits: `git config user.name NAME`, and"):
        release._commit(["params.yaml", "new.txt"], "record")
    run_git("config", "user.email", "test@example.org")
    hook = top / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho the linter complains >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RevisionError, match=r"^git commit: the linter complains$"):
        release._commit(["params.yaml", "new.txt"], "record")
    assert run_git("diff", "--cached", "--name-only") == ""
    hook.unlink()
    release._commit(["params.yaml", "new.txt"], "record")
    assert git.get_output("status", "--porcelain") == ""


def test_deleted_working_directory_is_reported(top):
    shutil.rmtree(top)
    with pytest.raises(OptlabError, match=r"^the working directory was deleted: change to another folder$"):
        repository.enter_root()


def test_file_in_place_of_folder_is_named(top):
    (top / ".dvc").mkdir()
    (top / ".dvc" / "config").touch()
    repository.enter_root()
    (top / ".optlab").touch()
    with pytest.raises(OptlabError, match=rf"^{top}/.optlab: .* and no folder: move it away$"):
        repository.enter_root()
    with pytest.raises(OptlabError, match=r"^params.yaml/x: .*: something else is in its place"):
        files.write_atomic(Path("params.yaml/x"), b"")
    with pytest.raises(OptlabError, match=r"cannot be written \(File name too long\): choose a shorter name"):
        files.write_atomic(Path("x" * 255), b"")
    told = files.make_storage_error(Path("x"), OSError(errno.EROFS, "Read-only file system"))
    assert str(told).startswith("x: cannot be written (Read-only file system): see who may write there")
