"""What git says of the repository."""

import subprocess
from pathlib import Path

from optlab.system.errors import RevisionError


def state() -> dict[str, str]:
    """The commit, and whether tracked files differ from it; nothing outside a git repository."""
    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return {}
    # DVC removes a stage's outputs before it runs: the record is not what decides whether the tree is as committed.
    outputs = [f":(exclude,glob)**/{name}" for name in ("runs/**", "reports/**", "dvc.lock")]
    return {
        "git.commit": commit,
        "git.dirty": "yes" if ask("status", "--porcelain", "-uno", "--", ".", *outputs) else "no",
    }


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
