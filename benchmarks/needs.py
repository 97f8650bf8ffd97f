"""What a benchmark needs, looked at before it measures: minutes of figures are not to end at a missing command."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from optlab.config import loader
from optlab.data import cifar10
from optlab.schema import parameters
from optlab.system import repository
from optlab.system.errors import OptlabError

TOP = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """This process's environment, in which `python`, `dvc` and `optlab` are those of this interpreter.

    DVC's stages call `python`, which need not be on the PATH of whoever calls a benchmark by its interpreter's path.
    """
    own = str(Path(sys.executable).parent)
    return os.environ | {"PATH": os.pathsep.join(filter(None, (own, os.environ.get("PATH"))))}


def check(packages: tuple[str, ...], commands: tuple[str, ...] = ()) -> None:
    """Look for packages of this interpreter, commands in its `environment`, and the data set's training files.

    Raises:
        OptlabError: something is missing, or a data file is not what was downloaded.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise OptlabError(f"{sys.executable} has no package {name}: run `pip install -e '.[dev,bench]'` with it")
    for name in commands:
        if shutil.which(name, path=environment()["PATH"]) is None:
            raise OptlabError(f"there is no command {name}, neither beside {sys.executable} nor on the PATH")
    cifar10.load(TOP / repository.DATA, loader.load(TOP / parameters.PARAMS_FILE).data, 0)
