"""A git revision of this repository: what its record says, and a checkout of its own to run its code in."""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from optlab.system import files, git, repository
from optlab.system.errors import RevisionError

_CHECKOUT_PREFIX, _TREE_NAME, _LOCK_NAME = (
    "optlab-reproduce-",
    "tree",
    "lock",
)  # of a checkout's temporary folder, and of what is in it


@dataclass(frozen=True)
class Revision:
    """A commit, and the name by which it was asked for.

    Attributes:
        name: a tag, a branch or a commit, as the user wrote it.
        commit: the full hash.
        folder: of the pipeline whose record is asked for, relative to the top.
    """

    name: str
    commit: str
    folder: Path = Path()

    @classmethod
    def parse(cls, name: str, folder: Path = Path()) -> "Revision":
        """Find the commit.

        Raises:
            RevisionError: there is no such revision, or git knows none here.
        """
        found = git.get_output("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if not found:
            git.check_repository()
            raise RevisionError(f"{name}: no such tag, branch or commit: `git tag` lists the tags")
        return cls(name, found, folder)

    def read(self, path: Path) -> bytes | None:
        """The content of a file that git holds at this revision, or None."""
        return git.show(self.commit, path)

    def read_lock(self) -> dict[str, Any]:
        """The stages of the pipeline's dvc.lock; the paths in it are relative to the pipeline's folder.

        Raises:
            RevisionError: it has no readable dvc.lock.
        """
        return _read_lock(self)

    def list_outs(self, stage: str) -> list[dict[str, Any]]:
        """The outputs of a stage as dvc.lock has them, but with paths relative to the top; none of an unknown stage.

        Raises:
            RevisionError: it has no readable dvc.lock.
        """
        found = self.read_lock().get(stage, {}).get("outs", [])
        return [each | {"path": (self.folder / each["path"]).as_posix()} for each in found]

    def fetch_output(self, path: Path, outs: list[dict[str, Any]]) -> bytes | None:
        """An output that DVC's cache or remote holds, checked against its digest; None if neither has it.

        Args:
            path: relative to the top.
            list_outs: as `list_outs` has them.
        """
        md5 = next((each["md5"] for each in outs if each["path"] == path.as_posix()), None)
        return repository.fetch_output(self.commit, path, md5) if md5 else None


@functools.cache
def _read_lock(revision: Revision) -> dict[str, Any]:
    """Of a commit, which never changes; DVC's files take a fifth of a second to read."""
    path = revision.folder / "dvc.lock"
    content = revision.read(path)
    try:
        stages = YAML(typ="safe", pure=True).load(content.decode())["stages"] if content else None
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise RevisionError(f"{revision.name}: its {path} cannot be read: {error}") from None
    if not isinstance(stages, dict):
        raise RevisionError(f"{revision.name}: has no {path}: nothing was recorded there")
    return stages


@contextmanager
def checkout(revision: Revision) -> Iterator[Path]:
    """A working tree of the revision outside the repository; gone afterwards, with what DVC keeps about it.

    Those that killed processes have left are removed first.

    Raises:
        RevisionError: git cannot check it out.
        StorageError: there is no room for temporary files.
    """
    top = Path.cwd()
    _remove_stale_checkouts(top)
    try:
        tree = Path(tempfile.mkdtemp(prefix=_CHECKOUT_PREFIX)) / _TREE_NAME
        lock = FileLock(tree.parent / _LOCK_NAME)  # the system lets go of it when this process ends, however it ends
        lock.acquire()
    except OSError as error:
        raise files.make_storage_error(Path(tempfile.gettempdir()), error) from None
    try:
        git.run("worktree", "add", "--quiet", "--detach", str(tree), revision.commit)
        yield tree
    finally:
        _remove_checkout(top, tree, lock)


def _remove_stale_checkouts(top: Path) -> None:
    for line in (git.get_output("worktree", "list", "--porcelain") or "").splitlines():
        word, _, path = line.partition(" ")
        tree = Path(path)
        if word != "worktree" or tree.name != _TREE_NAME or not tree.parent.name.startswith(_CHECKOUT_PREFIX):
            continue
        with contextlib.suppress(Timeout, OSError):
            if (tree.parent / _LOCK_NAME).is_file():  # else it is not here, or none of these
                lock = FileLock(tree.parent / _LOCK_NAME)
                lock.acquire(timeout=0)
                _remove_checkout(top, tree, lock)


def _remove_checkout(top: Path, tree: Path, lock: FileLock) -> None:
    """Remove all of it; where something is still written to, what is left is found again."""
    for each in tree.parent.glob("*"):
        if each.name != _LOCK_NAME:
            shutil.rmtree(each, ignore_errors=True)
    is_gone = all(each.name == _LOCK_NAME for each in tree.parent.glob("*"))
    if is_gone:
        forced = ["--force", "--force"]  # twice, for one that git was still writing
        git.get_output("-C", str(top), "worktree", "remove", *forced, str(tree))
    lock.release()
    if is_gone:
        shutil.rmtree(tree.parent, ignore_errors=True)


def restore_outputs(tree: Path, stage: str) -> None:
    """Put a stage's outputs into a checkout, from this repository's DVC cache or its remote, if they have them.

    The cache is read only: what the remote sends goes into one of the checkout's own.
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
        shutil.rmtree(tree / repository.DATA, ignore_errors=True)  # perhaps a part of it
