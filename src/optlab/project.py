"""The repository: where its top is, and in which of its pipelines a program was started."""

import os
import subprocess
from pathlib import Path

from optlab.errors import OptlabError


def root() -> Path:
    """The nearest folder, from here upwards, that DVC was initialised in.

    Raises:
        OptlabError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc" / "config").is_file():
            return folder
    raise OptlabError(f"{here}: not inside an optlab repository: no folder above holds .dvc")


def enter() -> Path:
    """Go to the top of the repository; returns the folder this process was started in, relative to it.

    MLflow resolves the artifacts' relative paths against the working directory, so that a repository can be
    moved: every program has the same one.
    """
    top, here = root(), Path.cwd()
    os.chdir(top)
    return here.relative_to(top)


DATA = Path("data") / "cifar10"  # relative to the top; all pipelines share the files


def git_state() -> dict[str, str]:
    """The commit, and whether tracked files differ from it; nothing outside a git repository."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    # DVC removes a stage's outputs before it runs: the record is not what decides whether the tree is as committed.
    outputs = [f":(exclude,glob)**/{name}" for name in ("runs/**", "reports/**", "dvc.lock")]
    return {
        "git.commit": commit,
        "git.dirty": "yes" if git("status", "--porcelain", "-uno", "--", ".", *outputs) else "no",
    }


def git(*arguments: str) -> str | None:
    """What a git command prints, without the last newline; None if it fails."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.rstrip("\n")
