"""What git says of the repository."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from optlab.system import source_code
from optlab.system.errors import RevisionError
from optlab.system.text import extract_error

_PROVENANCE_VARIABLE = (
    "OPTLAB_PROVENANCE"  # holds what `get_provenance` is to answer where the code came without its repository
)


def get_provenance() -> dict[str, str]:
    """The commit, and whether what is at work differs from it; nothing outside a git repository.

    It does if a tracked file was changed, or if a module that is imported is in no commit; where git does not say that,
    it is unknown.
    """
    preset = os.environ.get(_PROVENANCE_VARIABLE)
    if preset:
        return dict(json.loads(preset))
    commit = get_output("rev-parse", "HEAD")
    if commit is None:
        return {}
    # DVC removes a stage's outputs before it runs: the record is not what decides whether the tree is as committed.
    # src/optlab/tuning is code, and holds no JSON.
    outputs = [f":(exclude,glob)**/{name}" for name in ("runs/**", "tuning/*/*.json", "reports/**", "dvc.lock")]
    changed = get_output("status", "--porcelain", "-uno", "--", ".", *outputs)
    if changed is None:
        return {"git.commit": commit, "git.dirty": "unknown"}
    return {"git.commit": commit, "git.dirty": "yes" if changed or find_untracked(_list_imported_files()) else "no"}


def check_repository() -> None:
    """Say why git knows nothing of this folder, if so.

    Raises:
        RevisionError: it is no repository, or another user's, or there is no git.
    """
    here = Path.cwd()
    try:
        stderr = _execute("rev-parse", "--git-dir").stderr.decode(errors="replace")
    except OSError as error:
        raise RevisionError(f"git cannot be run ({error.strerror}): install it") from None
    if "dubious ownership" in stderr:
        remedy = f"git config --global --add safe.directory {shlex.quote(str(here))}"
        raise RevisionError(f"{here}: belongs to another user, so git does not read it: `{remedy}` permits it")
    if "not a git repository" in stderr:
        raise RevisionError(f"{here}: no git repository: clone it: a download without .git has no revisions")
    if stderr:
        raise RevisionError(f"{here}: {extract_error(stderr)}")


def make_provenance_variables(provenance: dict[str, str]) -> dict[str, str]:
    """The environment in which `provenance` gives that answer."""
    return {_PROVENANCE_VARIABLE: json.dumps(provenance)}


def find_untracked(paths: Iterable[str]) -> list[str]:
    """Those of the paths that git does not hold."""
    used = set(paths)
    tracked = (get_output("ls-files", "-z", "--", *used) or "").split("\0") if used else []
    return sorted(used - set(tracked))


def _list_imported_files() -> list[str]:
    """The imported modules below the working directory."""
    here = Path.cwd()
    return [
        path.relative_to(here).as_posix()
        for path in source_code.find_imported_modules().values()
        if path.is_relative_to(here)
    ]


def get_output(*arguments: str) -> str | None:
    """What a git command prints, without the last newline; None if it fails."""
    try:
        result = _execute(*arguments, timeout_s=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace").rstrip("\n") if result.returncode == 0 else None


def run(*arguments: str, stdin: str | None = None) -> None:
    """Run a git command.

    Args:
        stdin: what it reads: an argument of a command cannot be any text where the locale is not UTF-8.

    Raises:
        RevisionError: git refuses; with the line that says why.
    """
    result = _execute(*arguments, stdin=stdin)
    if result.returncode:
        output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
        raise RevisionError(f"git {arguments[0]}: {extract_error(output)}")


def show(commit: str, path: Path) -> bytes | None:
    """The content of a file at a commit, or None."""
    result = _execute("show", f"{commit}:{path.as_posix()}")
    return result.stdout if result.returncode == 0 else None


def _execute(
    *arguments: str, timeout_s: float | None = None, stdin: str | None = None
) -> "subprocess.CompletedProcess[bytes]":
    encoded = None if stdin is None else stdin.encode(errors="surrogateescape")
    return subprocess.run(["git", *arguments], capture_output=True, timeout=timeout_s, check=False, input=encoded)
