"""The repository: where its top is, and in which of its pipelines a program was started."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from optlab.system.errors import OptlabError

_OWN = Path(".optlab")
_pipeline = Path()  # in whose folder this process works


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
    moved: every program has the same one. A copy of the repository, such as DVC makes for an experiment, runs its own
    code, also where another one's is installed.
    """
    top, here = root(), Path.cwd()
    _run_own_code(top / "src")
    os.chdir(top)
    if os.path.lexists(_OWN) and not _OWN.is_dir():
        raise OptlabError(f"{top / _OWN}: is the place of journals, locks and checkpoints, and no folder: move it away")
    return choose(here.relative_to(top))


def choose(folder: Path) -> Path:
    """Work for the pipeline in that folder, relative to the top, from now on; returns it."""
    global _pipeline
    _pipeline = folder
    return folder


def pipeline() -> Path:
    """The folder of the pipeline that this process works for; relative to the top."""
    return _pipeline


def _run_own_code(sources: Path) -> None:
    """Start this program anew with the package below `sources`, if there is one and it is not the one at work."""
    first = f"{sources}{os.pathsep}"
    if (sources / "optlab").is_dir() and not Path(__file__).resolve().is_relative_to(sources.resolve()):
        before = os.environ.get("PYTHONPATH", "")
        if not before.startswith(first):  # it had no effect
            os.environ["PYTHONPATH"] = first + before
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def experiment() -> str | None:
    """The name of the experiment of DVC's that this process is part of, if any."""
    return os.environ.get("DVC_EXP_NAME")


def home() -> Path:
    """Where journals, locks and MLflow's store are; relative to the top, which is the working directory.

    That is the top itself, but for an experiment that DVC runs in a copy (`--temp`, `--queue`): the copy is deleted
    afterwards, so there it is the repository that it was copied from. DVC names it.
    """
    original = Path(os.environ.get("DVC_ROOT", ""))
    if experiment() and (original / ".dvc" / "config").is_file() and not original.samefile(Path.cwd()):
        return original
    return Path()


def is_copy() -> bool:
    """Whether this is a copy that DVC has made for an experiment."""
    return home() != Path()


def of_this_tree(name: str) -> str:
    """The name of something in `home` that a copy has for itself."""
    return f"{name}-{Path.cwd().name}" if is_copy() else name


def modules() -> dict[str, Path]:
    """Relative path → file of each module that is imported by now, of the working directory or of this package."""
    bases = [f"{base}{os.sep}" for base in (Path.cwd(), Path(__file__).parents[2])]
    found = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        base = next((base for base in bases if file.startswith(base)), None)
        if base and "site-packages" not in file[len(base) :] and Path(file).is_file():
            found[Path(file[len(base) :]).as_posix()] = Path(file)
    return found


def packages() -> list[str]:
    """Name and version of every installed package, as pip names the folder of its metadata; sorted."""
    return sorted(
        {entry.name for place in sys.path if Path(place).is_dir() for entry in Path(place).glob("*-*.*-info")}
    )


# Relative to the top.
DATA = Path("data") / "cifar10"  # all pipelines share the files
CUSTOM = Path("custom")  # a user's own modules


def at_the_top(paths: Iterable[str]) -> Iterator[Path]:
    """The files there of the modules and packages that dotted paths lead into, where custom/ has none of that name."""
    for module in {Path(path.partition(".")[0]) for path in paths if "." in path}:
        own = CUSTOM / module
        if not own.is_dir() and not own.with_suffix(".py").is_file():
            yield from (path for path in (module.with_suffix(".py"), *module.rglob("*.py")) if path.is_file())
