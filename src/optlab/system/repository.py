"""The repository: where its top is, and in which of its pipelines a program was started.

DVC as a command, its cache and remotes, and its own copies of a damaged file.

DVC trusts its cache unread, and would put the damage back in place.
"""

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from optlab.system.errors import OptlabError
from optlab.system.text import extract_error

_STATE_FOLDER = Path(".optlab")
_current_pipeline = Path()  # in whose folder this process works


def find_root() -> Path:
    """The nearest folder, from here upwards, that DVC was initialised in.

    Raises:
        OptlabError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc" / "config").is_file():
            return folder
    raise OptlabError(f"{here}: not inside an optlab repository: no folder above holds .dvc")


def enter_root() -> Path:
    """Go to the top of the repository; returns the folder this process was started in, relative to it.

    MLflow resolves the artifacts' relative paths against the working directory, so that a repository can be
    moved: every program has the same one. A copy of the repository, such as DVC makes for an experiment, runs its own
    code, also where another one's is installed.
    """
    top, here = find_root(), Path.cwd()
    _restart_from_sources(top / "src")
    os.chdir(top)
    if os.path.lexists(_STATE_FOLDER) and not _STATE_FOLDER.is_dir():
        raise OptlabError(
            f"{top / _STATE_FOLDER}: is the place of journals, locks and checkpoints, and no folder: move it away"
        )
    return set_pipeline(here.relative_to(top))


def set_pipeline(folder: Path) -> Path:
    """Work for the pipeline in that folder, relative to the top, from now on; returns it."""
    global _current_pipeline
    _current_pipeline = folder
    return folder


def get_pipeline() -> Path:
    """The folder of the pipeline that this process works for; relative to the top."""
    return _current_pipeline


def _restart_from_sources(sources: Path) -> None:
    """Start this program anew with the package below `sources`, if there is one and it is not the one at work."""
    first = f"{sources}{os.pathsep}"
    if (sources / "optlab").is_dir() and not Path(__file__).resolve().is_relative_to(sources.resolve()):
        before = os.environ.get("PYTHONPATH", "")
        if not before.startswith(first):  # it had no effect
            os.environ["PYTHONPATH"] = first + before
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def get_dvc_experiment() -> str | None:
    """The name of the experiment of DVC's that this process is part of, if any."""
    return os.environ.get("DVC_EXP_NAME")


def get_state_root() -> Path:
    """Where journals, locks and MLflow's store are; relative to the top, which is the working directory.

    That is the top itself, but for an experiment that DVC runs in a copy (`--temp`, `--queue`): the copy is deleted
    afterwards, so there it is the repository that it was copied from. DVC names it.
    """
    original = Path(os.environ.get("DVC_ROOT", ""))
    if get_dvc_experiment() and (original / ".dvc" / "config").is_file() and not original.samefile(Path.cwd()):
        return original
    return Path()


def is_experiment_copy() -> bool:
    """Whether this is a copy that DVC has made for an experiment."""
    return get_state_root() != Path()


def add_copy_suffix(name: str) -> str:
    """The name of something in `get_state_root` that a copy has for itself."""
    return f"{name}-{Path.cwd().name}" if is_experiment_copy() else name


def list_installed_packages() -> list[str]:
    """Name and version of every installed package, as pip names the folder of its metadata; sorted."""
    return sorted(
        {entry.name for folder in sys.path if Path(folder).is_dir() for entry in Path(folder).glob("*-*.*-info")}
    )


# Relative to the top.
DATA = Path("data") / "cifar10"  # all pipelines share the files
CUSTOM = Path("custom")  # a user's own modules


DVC_COMMAND = (sys.executable, "-m", "dvc")


def run_dvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a DVC command to its end, here, and keep what it prints."""
    return subprocess.run(
        [*DVC_COMMAND, *arguments], capture_output=True, text=True, errors="surrogateescape", check=False
    )


def extract_dvc_error(result: "subprocess.CompletedProcess[str]") -> str:
    """Why a command failed, in one line."""
    return extract_error(result.stderr)


def get_dvc_cache(top: Path) -> Path:
    """The folder of the cache of the repository at `top`."""
    return top / (_load_dvc_config(top)["cache"].get("dir") or ".dvc/cache")


def fetch_output(commit: str, path: Path, md5: str) -> bytes | None:
    """Return an output of a commit from DVC's cache or a remote, or None if neither has it with this digest.

    Args:
        path: relative to the top of the repository, which is the working directory.
        md5: the digest in dvc.lock, 32 hexadecimal digits.
    """
    try:
        top = Path.cwd()
        content = _read_if_exists(get_dvc_cache(top) / "files" / "md5" / md5[:2] / md5[2:])
        if content is None and has_dvc_remote(top):
            content = _open_dvc_file_system(commit).read_bytes(path.as_posix())
    except Exception:  # whatever a missing cache, remote or network makes DVC raise
        return None
    return content if content and hashlib.md5(content, usedforsecurity=False).hexdigest() == md5 else None


def _read_if_exists(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def has_dvc_remote(top: Path) -> bool:
    """Return whether the repository at `top` has a remote that outputs can be pulled from."""
    return bool(_load_dvc_config(top)["remote"])


def _load_dvc_config(top: Path) -> Any:
    """Return DVC's configuration of the repository at `top`."""
    from dvc.config import Config

    return Config(dvc_dir=str(top / ".dvc"))


@functools.cache
def _open_dvc_file_system(commit: str) -> Any:
    """Return DVC's view of a commit; it reads the dvc.lock of every pipeline, which takes seconds."""
    import dvc.api

    return dvc.api.DVCFileSystem(os.curdir, rev=commit)


def suggest_repair(path: Path, content: bytes, command: str) -> str:
    """What to do about an output with this damaged content, so that `command` makes it anew."""
    try:
        corrupted = [str(copy) for copy in _find_corrupted_copies(path, content)]
    except OSError:
        corrupted = []
    also = f", and DVC's damaged copy {' and '.join(corrupted)}" if corrupted else ""
    return f"delete it{also}, then run `{command}`"


def _find_corrupted_copies(path: Path, content: bytes) -> list[Path]:
    """The objects of DVC's cache that hold this content under the digest of another."""
    try:
        top = find_root()
    except OptlabError:
        return []
    if not path.resolve().is_relative_to(top.resolve()):
        return []
    folder = get_dvc_cache(top) / "files" / "md5"
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    found = [
        each
        for each in folder.glob("??/*")
        if each.stat().st_size == len(content)
        and each.parent.name + each.name != digest
        and each.read_bytes() == content
    ]
    here = Path.cwd()
    return [each.relative_to(here) if each.is_relative_to(here) else each for each in sorted(found)]
