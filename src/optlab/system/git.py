"""What git says of the repository."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from optlab.system import repository
from optlab.system.errors import RevisionError
from optlab.system.wording import reason_of

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


def check() -> None:
    """Say why git knows nothing of this folder, if so.

    Raises:
        RevisionError: it is no repository, or another user's, or there is no git.
    """
    here = Path.cwd()
    try:
        said = _run("rev-parse", "--git-dir").stderr.decode(errors="replace")
    except OSError as error:
        raise RevisionError(f"git cannot be run ({error.strerror}): install it") from None
    if "dubious ownership" in said:
        remedy = f"git config --global --add safe.directory {shlex.quote(str(here))}"
        raise RevisionError(f"{here}: belongs to another user, so git does not read it: `{remedy}` permits it")
    if "not a git repository" in said:
        raise RevisionError(f"{here}: no git repository: clone it: a download without .git has no revisions")
    if said:
        raise RevisionError(f"{here}: {reason_of(said)}")


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


def do(*arguments: str, text: str | None = None) -> None:
    """Run a git command.

    Args:
        text: what it reads: an argument of a command cannot be any text where the locale is not UTF-8.

    Raises:
        RevisionError: git refuses; with the line that says why.
    """
    result = _run(*arguments, text=text)
    if result.returncode:
        output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
        raise RevisionError(f"git {arguments[0]}: {reason_of(output)}")


def show(commit: str, path: Path) -> bytes | None:
    """The content of a file at a commit, or None."""
    result = _run("show", f"{commit}:{path.as_posix()}")
    return result.stdout if result.returncode == 0 else None


def _run(
    *arguments: str, timeout_s: float | None = None, text: str | None = None
) -> "subprocess.CompletedProcess[bytes]":
    own = None if text is None else text.encode(errors="surrogateescape")
    return subprocess.run(["git", *arguments], capture_output=True, timeout=timeout_s, check=False, input=own)
