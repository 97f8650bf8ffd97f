"""What git says of the repository."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from optlab.system import repository
from optlab.system.errors import RevisionError

_TOLD_VARIABLE = "OPTLAB_REVISION"  # holds what `state` is to answer where the code came without its repository


def state() -> dict[str, str]:
    """The commit, and whether what is at work differs from it; nothing outside a git repository.

    It does if a tracked file was changed, or if a module that is imported is in no commit; where git does not say that,
    it is unknown.
    """
    told = os.environ.get(_TOLD_VARIABLE)
    if told:
        return dict(json.loads(told))
    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return {}
    # DVC removes a stage's outputs before it runs: the record is not what decides whether the tree is as committed.
    # src/optlab/tuning is code, and holds no JSON.
    outputs = [f":(exclude,glob)**/{name}" for name in ("runs/**", "tuning/*/*.json", "reports/**", "dvc.lock")]
    changed = ask("status", "--porcelain", "-uno", "--", ".", *outputs)
    if changed is None:
        return {"git.commit": commit, "git.dirty": "unknown"}
    return {"git.commit": commit, "git.dirty": "yes" if changed or untracked(_imported()) else "no"}


def telling(state: dict[str, str]) -> dict[str, str]:
    """The environment in which `state` gives that answer."""
    return {_TOLD_VARIABLE: json.dumps(state)}


def untracked(paths: Iterable[str]) -> list[str]:
    """Those of the paths that git does not hold."""
    used = set(paths)
    tracked = (ask("ls-files", "-z", "--", *used) or "").split("\0") if used else []
    return sorted(used - set(tracked))


def _imported() -> list[str]:
    """The imported modules below the working directory."""
    here = Path.cwd()
    return [path.relative_to(here).as_posix() for path in repository.modules().values() if path.is_relative_to(here)]


def ask(*arguments: str) -> str | None:
    """What a git command prints, without the last newline; None if it fails."""
    try:
        result = _run(*arguments, timeout_s=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace").rstrip("\n") if result.returncode == 0 else None


def do(*arguments: str) -> None:
    """Run a git command.

    Raises:
        RevisionError: git refuses; the first line of what it says.
    """
    result = _run(*arguments)
    if result.returncode:
        text = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace").splitlines()
        raise RevisionError(f"git {arguments[0]}: {text[0] if text else 'failed'}")


def show(commit: str, path: Path) -> bytes | None:
    """The content of a file at a commit, or None."""
    result = _run("show", f"{commit}:{path.as_posix()}")
    return result.stdout if result.returncode == 0 else None


def _run(*arguments: str, timeout_s: float | None = None) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *arguments], capture_output=True, timeout=timeout_s, check=False)
