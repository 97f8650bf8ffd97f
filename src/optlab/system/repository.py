"""The repository: where its top is, and in which of its pipelines a program was started."""

import os
import sys
from pathlib import Path

from optlab.system.errors import OptlabError


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
    moved: every program has the same one.
    """
    top, here = root(), Path.cwd()
    os.chdir(top)
    return here.relative_to(top)


def modules() -> dict[str, Path]:
    """Relative path → file of each module that is imported by now, of the working directory or of this package."""
    here, package = Path.cwd(), Path(__file__).parents[2]
    found = {}
    for module in list(sys.modules.values()):
        path = Path(getattr(module, "__file__", None) or "/")
        for base in (here, package):
            if path.is_relative_to(base) and "site-packages" not in path.relative_to(base).parts and path.is_file():
                found[path.relative_to(base).as_posix()] = path
                break
    return found


DATA = Path("data") / "cifar10"  # relative to the top; all pipelines share the files
