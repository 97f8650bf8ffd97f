"""The repository: its root, the pipeline in use, the installed packages, and DVC's command, cache and remotes."""

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from optlab.system import files
from optlab.system.errors import OptlabError
from optlab.system.text import extract_error

_STATE_FOLDER = Path(".optlab")
_current_pipeline = Path()  # its folder
# Relative to the root.
DATA = Path("data") / "cifar10"  # shared by all pipelines
CUSTOM = Path("custom")  # a user's modules
STAGES = Path("pipeline")  # the stages' modules
_DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
    autostage = false
[cache]
    dir = ../{up}/.dvc/cache
"""
DVC_COMMAND = (sys.executable, "-m", "dvc")


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder, from `start` upwards, that DVC was initialised in, but for the projects of studies.

    A study is a DVC project of its own, in which `pipeline` is a link to the folder at the root.

    Args:
        start: absolute; default: the working directory.

    Raises:
        OptlabError: there is none.
    """
    start = start or Path.cwd()
    for folder in _list_dvc_projects(start):
        if not (folder / STAGES).is_symlink():
            return folder
    raise OptlabError(f"{start}: not inside an optlab repository: no folder above holds .dvc")


def _list_dvc_projects(start: Path) -> list[Path]:
    """Return the folders from `start` upwards that DVC was initialised in, the nearest first."""
    return [each for each in (start, *start.parents) if (each / ".dvc" / "config").is_file()]


def enter_root() -> Path:
    """Change to the root of the repository; returns the former working directory, relative to it.

    MLflow resolves the artifacts' relative paths against the working directory, so every program has the same one, and
    a repository can be moved. A copy of the repository, such as DVC makes for an experiment, runs its code, not the
    installed one.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise OptlabError("the working directory was deleted: change to another folder") from None
    top = find_root()
    _restart_from_sources(top / "src")
    os.chdir(top)
    if os.path.lexists(_STATE_FOLDER) and not _STATE_FOLDER.is_dir():
        raise OptlabError(
            f"{top / _STATE_FOLDER}: is the place of event logs, locks and checkpoints, and no folder: move it away"
        )
    return set_pipeline(here.relative_to(top))


def set_pipeline(folder: Path) -> Path:
    """Set the folder of this process's pipeline, relative to the root; returns it."""
    global _current_pipeline
    _current_pipeline = folder
    return folder


def get_pipeline() -> Path:
    """Return the folder of this process's pipeline, relative to the root."""
    return _current_pipeline


def _restart_from_sources(sources: Path) -> None:
    """Restart this program with the package below `sources`, if there is one and another one is imported."""
    first = f"{sources}{os.pathsep}"
    if (sources / "optlab").is_dir() and not Path(__file__).resolve().is_relative_to(sources.resolve()):
        before = os.environ.get("PYTHONPATH", "")
        if not before.startswith(first):  # it had no effect
            os.environ["PYTHONPATH"] = first + before
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def make_dvc_project(folder: Path) -> None:
    """Make a study's folder a DVC project of its own, with links to what it shares with the root; files there stay.

    So a DVC command elsewhere does not read its dvc.lock, and its stages are declared like those of the root.

    Args:
        folder: relative to the root, which is the working directory.
    """
    settings, links = list_project_files(folder)
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    for path, target in links.items():
        if not os.path.lexists(path):
            path.symlink_to(target)
    for path, content in settings.items():
        files.write_atomic(path, content)


def list_project_files(folder: Path) -> tuple[dict[Path, bytes], dict[Path, Path]]:
    """Return what makes a study's folder a DVC project: file → content, and link → target."""
    up = Path(*[os.pardir] * len(folder.parts))
    links = {folder / name: up / name for name in ("src", "pipeline", "custom", "data", ".dvcignore")}
    links[folder / ".dvc" / "plots"] = os.pardir / up / ".dvc" / "plots"
    settings = {
        folder / ".dvc" / ".gitignore": b"/config.local\n/tmp\n/cache\n",
        folder / ".dvc" / "config": _DVC_CONFIG.format(up=up.as_posix()).encode(),
    }
    return settings, links


def get_dvc_experiment() -> str | None:
    """Return the name of the DVC experiment that this process is part of, if any."""
    return os.environ.get("DVC_EXP_NAME")


def get_state_root() -> Path:
    """Return the folder that holds event logs, locks and MLflow's store, relative to the root, the working directory.

    In an experiment that DVC runs in a copy (`--temp`, `--queue`), it is the repository that was copied, which DVC
    names, because DVC deletes the copy afterwards; otherwise, it is the root.
    """
    with contextlib.suppress(OptlabError):
        original = find_root(Path(os.environ.get("DVC_ROOT", "")).absolute())
        if get_dvc_experiment() and not original.samefile(Path.cwd()):
            return original
    return Path()


def is_experiment_copy() -> bool:
    """Tell if this is a copy that DVC has made for an experiment."""
    return get_state_root() != Path()


def add_copy_suffix(name: str) -> str:
    """Make a name in `get_state_root` unique to this copy of the repository, if it is one."""
    return f"{name}-{Path.cwd().name}" if is_experiment_copy() else name


def list_installed_packages() -> list[str]:
    """Name and version of every installed package, as pip names the folder of its metadata; sorted."""
    return sorted(
        {entry.name for folder in sys.path if Path(folder).is_dir() for entry in Path(folder).glob("*-*.*-info")}
    )


def run_dvc(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a DVC command to its end in a folder, and capture its output."""
    return subprocess.run(
        [*DVC_COMMAND, *arguments], cwd=folder, capture_output=True, text=True, errors="surrogateescape", check=False
    )


def extract_dvc_error(result: "subprocess.CompletedProcess[str]") -> str:
    """Return why a DVC command failed, in one line."""
    return extract_error(result.stderr)


def get_dvc_cache(top: Path) -> Path:
    """Return the folder of the DVC cache of the repository at `top`."""
    return top / (_load_dvc_config(top)["cache"].get("dir") or ".dvc/cache")


def fetch_output(commit: str, path: Path, md5: str) -> bytes | None:
    """Return an output of a commit from DVC's cache or a remote, or None if neither has it with this digest.

    Args:
        path: relative to the root of the repository, which is the working directory.
        md5: the digest in dvc.lock, 32 hexadecimal digits.
    """
    try:
        top = Path.cwd()
        content = _read_if_exists(get_dvc_cache(top) / "files" / "md5" / md5[:2] / md5[2:])
        if content is None and (has_dvc_remote(top) or has_dvc_remote(path.parent)):
            content = _open_dvc_file_system(commit).read_bytes(path.as_posix())
    except Exception:  # whatever a missing cache, remote or network makes DVC raise
        return None
    return content if content and files.compute_content_md5(content) == md5 else None


def _read_if_exists(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def has_dvc_remote(folder: Path) -> bool:
    """Tell if the DVC project that a folder is in has a remote that outputs can be pulled from."""
    return bool(_load_dvc_config(_list_dvc_projects(folder.absolute())[0])["remote"])


def _load_dvc_config(top: Path) -> Any:
    from dvc.config import Config

    return Config(dvc_dir=str(top / ".dvc"))


@functools.cache
def _open_dvc_file_system(commit: str) -> Any:
    """Return DVC's view of a commit, studies included; it reads the dvc.lock of every pipeline, which takes seconds."""
    import dvc.api

    return dvc.api.DVCFileSystem(os.curdir, rev=commit, subrepos=True)


def suggest_repair(path: Path, content: bytes, command: str) -> str:
    """Return the remedy for an output with this damaged content: what to delete before `command` makes it again.

    DVC trusts its cache unread, and would restore a damaged copy.
    """
    try:
        corrupted = [str(copy) for copy in _find_corrupted_copies(path, content)]
    except OSError:
        corrupted = []
    also = f", and DVC's damaged copy {' and '.join(corrupted)}" if corrupted else ""
    return f"delete it{also}, then run `{command}`"


def _find_corrupted_copies(path: Path, content: bytes) -> list[Path]:
    """Return the objects of DVC's cache that hold this content under the digest of another."""
    try:
        top = find_root()
    except OptlabError:
        return []
    if not path.resolve().is_relative_to(top.resolve()):
        return []
    folder = get_dvc_cache(top) / "files" / "md5"
    digest = files.compute_content_md5(content)
    corrupted = [
        each
        for each in folder.glob("??/*")
        if each.stat().st_size == len(content)
        and each.parent.name + each.name != digest
        and each.read_bytes() == content
    ]
    here = Path.cwd()
    return [each.relative_to(here) if each.is_relative_to(here) else each for each in sorted(corrupted)]
