"""Git: commands, the provenance of a run, revisions, and temporary checkouts of them."""

import contextlib
import functools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from optlab.system import files, repository, source_code
from optlab.system.errors import RevisionError
from optlab.system.text import extract_error, parse_yaml

_PROVENANCE_VARIABLE = "OPTLAB_PROVENANCE"  # JSON of `get_provenance`, where the code came without its repository
# Names of a checkout's temporary folder and of what is in it.
_CHECKOUT_PREFIX, _TREE_NAME, _LOCK_NAME = "optlab-reproduce-", "tree", "lock"


def get_provenance() -> dict[str, str]:
    """Return the tags git.commit and git.dirty of the code in use; nothing outside a git repository.

    It is dirty if a tracked file was changed, or if an imported module is in no commit; unknown if git fails.
    """
    preset = os.environ.get(_PROVENANCE_VARIABLE)
    if preset:
        return dict(json.loads(preset))
    commit = get_output("rev-parse", "HEAD")
    if commit is None:
        return {}
    # DVC removes a stage's outputs before it runs, so the record does not count as a change of the tree.
    # src/optlab/tuning is code, and holds no JSON.
    outputs = [f":(exclude,glob)**/{name}" for name in ("runs/**", "tuning/*/*.json", "reports/**", "dvc.lock")]
    changed = get_output("status", "--porcelain", "-uno", "--", ".", *outputs)
    if changed is None:
        return {"git.commit": commit, "git.dirty": "unknown"}
    return {"git.commit": commit, "git.dirty": "yes" if changed or find_untracked(_list_imported_files()) else "no"}


def make_provenance_variables(provenance: dict[str, str]) -> dict[str, str]:
    """Return the environment variables that make `get_provenance` return `provenance`."""
    return {_PROVENANCE_VARIABLE: json.dumps(provenance)}


def check_repository() -> None:
    """Check that git can read the repository here.

    Raises:
        RevisionError: it is no repository, or another user's, or git is not installed.
    """
    here = Path.cwd()
    try:
        result = _execute("rev-parse", "--git-dir")
    except OSError as error:
        raise RevisionError(f"git cannot be run ({error.strerror}): install it") from None
    if result.returncode == 0:
        return
    stderr = result.stderr.decode(errors="replace")
    if "dubious ownership" in stderr:
        remedy = f"git config --global --add safe.directory {shlex.quote(str(here))}"
        raise RevisionError(f"{here}: belongs to another user, so git does not read it: `{remedy}` permits it")
    if "not a git repository" in stderr:
        raise RevisionError(f"{here}: no git repository: clone it: a download without .git has no revisions")
    raise RevisionError(f"{here}: {extract_error(stderr)}")


def find_untracked(paths: Iterable[str]) -> list[str]:
    """Return those of the paths that git does not track, sorted."""
    used = set(paths)
    tracked = (get_output("ls-files", "-z", "--", *used) or "").split("\0") if used else []
    return sorted(used - set(tracked))


def _list_imported_files() -> list[str]:
    here = Path.cwd()
    imported = source_code.find_imported_modules().values()
    return [path.relative_to(here).as_posix() for path in imported if path.is_relative_to(here)]


def get_output(*arguments: str) -> str | None:
    """Return the output of a git command without the last newline; None if the command fails."""
    try:
        result = _execute(*arguments, timeout_s=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace").rstrip("\n") if result.returncode == 0 else None


def run(*arguments: str, stdin: str | None = None, config: str | None = None) -> None:
    """Run a git command.

    Args:
        stdin: its standard input; where the locale is not UTF-8, an argument cannot hold any text.
        config: a setting of git's for this command, such as `core.hooksPath=/dev/null`.

    Raises:
        RevisionError: git refuses; with the line that says why.
    """
    result = _execute(*(["-c", config] if config else []), *arguments, stdin=stdin)
    if result.returncode:
        output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
        raise RevisionError(f"git {arguments[0]}: {extract_error(output)}")


def show(commit: str, path: Path) -> bytes | None:
    """Return the content of a file at a commit, or None."""
    result = _execute("show", f"{commit}:{path.as_posix()}")
    return result.stdout if result.returncode == 0 else None


def _execute(
    *arguments: str, timeout_s: float | None = None, stdin: str | None = None
) -> "subprocess.CompletedProcess[bytes]":
    encoded = None if stdin is None else stdin.encode(errors="surrogateescape")
    return subprocess.run(["git", *arguments], capture_output=True, timeout=timeout_s, check=False, input=encoded)


@dataclass(frozen=True)
class Revision:
    """One commit, under the name that the user gave.

    Attributes:
        name: a tag, a branch or a commit.
        commit: the full hash.
        folder: of the pipeline whose record is read, relative to the repository root.
    """

    name: str
    commit: str
    folder: Path = Path()

    @classmethod
    def parse(cls, name: str, folder: Path = Path()) -> "Revision":
        """Resolve a name to its commit.

        Raises:
            RevisionError: there is no such revision, or no git repository here.
        """
        commit = get_output("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if not commit:
            check_repository()
            raise RevisionError(f"{name}: no such tag, branch or commit: `git tag` lists the tags")
        return cls(name, commit, folder)

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file that git tracks at this revision, or None."""
        return show(self.commit, path)

    def read_lock(self) -> dict[str, Any]:
        """Return the stages of the pipeline's dvc.lock; its paths are relative to the pipeline's folder.

        Raises:
            RevisionError: there is no readable dvc.lock.
        """
        return _read_lock(self)

    def list_outs(self, stage: str) -> list[dict[str, Any]]:
        """Return the outputs of a stage in dvc.lock, with paths relative to the root; none of an unknown stage.

        Raises:
            RevisionError: there is no readable dvc.lock.
        """
        outs = self.read_lock().get(stage, {}).get("outs", [])
        return [each | {"path": (self.folder / each["path"]).as_posix()} for each in outs]

    def fetch_output(self, path: Path, outs: list[dict[str, Any]]) -> bytes | None:
        """Return an output from DVC's cache or remote, checked against its digest; None if neither has it.

        Args:
            path: relative to the repository root.
            outs: from `list_outs`.
        """
        md5 = next((each["md5"] for each in outs if each["path"] == path.as_posix()), None)
        return repository.fetch_output(self.commit, path, md5) if md5 else None


@functools.cache  # a commit never changes, and a large dvc.lock takes a fifth of a second to read
def _read_lock(revision: Revision) -> dict[str, Any]:
    path = revision.folder / "dvc.lock"
    content = revision.read(path)
    try:
        stages = parse_yaml(content.decode())["stages"] if content else None
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise RevisionError(f"{revision.name}: its {path} cannot be read: {error}") from None
    if not isinstance(stages, dict):
        raise RevisionError(f"{revision.name}: has no {path}: nothing was recorded there")
    return stages


def add_worktree(folder: Path, commit: str) -> None:
    """Check a commit out into a further working tree, without the user's hooks: DVC's would fetch data there.

    Raises:
        RevisionError: git cannot do it.
    """
    run("worktree", "add", "--quiet", "--detach", str(folder), commit, config="core.hooksPath=/dev/null")


@contextmanager
def checkout(revision: Revision) -> Iterator[Path]:
    """Check the revision out into a temporary working tree, and remove that with DVC's files about it afterwards.

    Checkouts that killed processes have left behind are removed first.

    Raises:
        RevisionError: git cannot check it out.
        StorageError: there is no room for temporary files.
    """
    top = Path.cwd()
    _remove_stale_checkouts(top)
    try:
        tree = Path(tempfile.mkdtemp(prefix=_CHECKOUT_PREFIX)) / _TREE_NAME
        lock = FileLock(tree.parent / _LOCK_NAME)  # the system releases it when this process ends, however it ends
        lock.acquire()
    except OSError as error:
        raise files.make_storage_error(Path(tempfile.gettempdir()), error) from None
    try:
        add_worktree(tree, revision.commit)
        yield tree
    finally:
        _remove_checkout(top, tree, lock)


def _remove_stale_checkouts(top: Path) -> None:
    for line in (get_output("worktree", "list", "--porcelain") or "").splitlines():
        word, _, path = line.partition(" ")
        tree = Path(path)
        if word != "worktree" or tree.name != _TREE_NAME or not tree.parent.name.startswith(_CHECKOUT_PREFIX):
            continue
        with contextlib.suppress(Timeout, OSError):
            if (tree.parent / _LOCK_NAME).is_file():  # else it is on another machine, or not optlab's
                lock = FileLock(tree.parent / _LOCK_NAME)
                lock.acquire(timeout=0)
                _remove_checkout(top, tree, lock)


def _remove_checkout(top: Path, tree: Path, lock: FileLock) -> None:
    """Remove a checkout; while something still writes to it, leave the rest for a later call."""
    for each in tree.parent.glob("*"):
        if each.name != _LOCK_NAME:
            shutil.rmtree(each, ignore_errors=True)
    is_removed = all(each.name == _LOCK_NAME for each in tree.parent.glob("*"))
    if is_removed:
        forced = ["--force", "--force"]  # twice, for one that git was still writing
        get_output("-C", str(top), "worktree", "remove", *forced, str(tree))
    lock.release()
    if is_removed:
        shutil.rmtree(tree.parent, ignore_errors=True)


def restore_outputs(tree: Path, stage: str) -> None:
    """Put a stage's outputs into a checkout, from this repository's DVC cache or its remote, if they have them.

    The cache is only read: files from the remote go into the checkout's own cache.
    """
    top = Path.cwd()
    environment = os.environ | {"DVC_SITE_CACHE_DIR": str(tree.parent / "dvc")}
    settings = top / ".dvc" / "config.local"
    if settings.exists():  # may hold the remote's address and keys
        shutil.copy(settings, tree / ".dvc" / "config.local")
    for cache, verb in ((repository.get_dvc_cache(top), "checkout"), (tree.parent / "cache", "pull")):
        for words in (["config", "--local", "cache.dir", str(cache)], [verb, stage]):
            result = subprocess.run(
                [*repository.DVC_COMMAND, *words], cwd=tree, env=environment, capture_output=True, check=False
            )
        if result.returncode == 0 and (tree / repository.DATA).is_dir():
            return
        shutil.rmtree(tree / repository.DATA, ignore_errors=True)  # perhaps incomplete
