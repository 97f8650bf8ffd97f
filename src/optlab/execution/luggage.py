"""What travels to the nodes of a cluster: the code and the parameters, once a call; the environment's variables."""

import contextlib
import getpass
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from optlab.config.parameters import PARAMS, Config
from optlab.system import git, repository
from optlab.tuning import choice

_CODE = Path("pipeline")
_PACKAGE = Path(__file__).parents[1]
# What the numerical libraries read; a limit of this machine's hardware is none of a node's.
_PREFIXES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "CUBLAS_", "TORCH", "PYTORCH", "OMP_")


def pack(config: Config, folder: Path, target: Path) -> dict[str, str]:
    """Write the code of this working tree, and the parameters of the pipeline in `folder`, to a zip file.

    The package lies at its top, where a worker imports it from, all else where it is in the repository. The same
    content is the same file.

    Returns:
        name in it → SHA-256.
    """
    digests = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(_members(config, folder).items()):
            content = path.read_bytes()
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def changed(config: Config, folder: Path, packed: dict[str, str]) -> list[str]:
    """The names of packed files that are other ones by now, or gone. New ones decide nothing that has begun."""
    members = _members(config, folder)

    def digest(name: str) -> str | None:
        try:
            return hashlib.sha256(members[name].read_bytes()).hexdigest()
        except (OSError, KeyError):
            return None

    return sorted(name for name in packed if digest(name) != packed[name])


def _members(config: Config, folder: Path) -> dict[str, Path]:
    """Name → path of each file."""
    members = {path.as_posix(): path for path in _in_place(config, folder)}
    return members | {f"optlab/{path.relative_to(_PACKAGE).as_posix()}": path for path in _sources(_PACKAGE)}


def _in_place(config: Config, folder: Path) -> Iterator[Path]:
    yield from (path for path in (folder / PARAMS, folder / "dvc.yaml") if path.is_file())
    yield from _sources(_CODE)
    yield from _sources(repository.CUSTOM)
    yield from repository.at_the_top(config.paths())


def _sources(folder: Path) -> Iterator[Path]:
    hidden = ("__pycache__", ".")  # an editor's, too
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(hidden) for part in path.relative_to(folder).parts)
    )


def variables(config: Config) -> dict[str, str]:
    """Those of the environment that decide bits, for the processes of the nodes.

    The number of threads is said outright: Ray sets it to the processors that a task has asked for, where it is not.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    return own | {"OMP_NUM_THREADS": str(config.training.threads)}


def provenance(config: Config) -> dict[str, str]:
    """The environment that says whose the runs are, and of which revision, where there is no git repository."""
    state = git.state()
    used = [path.as_posix() for path in (*_CODE.glob("*.py"), *repository.at_the_top(config.paths()))]
    if state and git.untracked([*used, *choice.modules(config.paths())]):
        state["git.dirty"] = "yes"
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        return git.telling(state) | {"LOGNAME": getpass.getuser()}
    return git.telling(state)


def data() -> "dict[str, np.ndarray]":
    """SHA-256 and name → bytes of each file of the data, uint8: arrays are mapped, not copied, by who reads them."""
    contents = {path.name: path.read_bytes() for path in sorted(repository.DATA.glob("*.bin"))}
    return {
        f"{hashlib.sha256(content).hexdigest()} {name}": np.frombuffer(content, np.uint8)
        for name, content in contents.items()
    }
