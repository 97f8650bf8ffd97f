"""Import of the classes and callables that params.yaml names; a module name that exists twice is refused."""

import functools
import importlib
import inspect
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from optlab.system import source_code
from optlab.system.errors import ConfigError, print_stderr
from optlab.system.repository import CUSTOM, STAGES
from optlab.system.text import suggest_similar
from optlab.training import guards


def resolve(path: str, where: str, known: Any = ()) -> Any:
    """Return the object at a dotted path; its module may lie in custom/ or at the top of the repository.

    Args:
        path: `package.module.attribute`.
        where: the place in params.yaml, for messages.
        known: short names that are valid as well, for suggestions.

    Raises:
        ConfigError: the object cannot be imported.
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        hint = suggest_similar(path, known) or f": it is one of {', '.join(known)}, or a dotted path to another"
        raise ConfigError(f"params.yaml: {where}: unknown name{hint}")
    top, _, below = path.partition(".")
    if top == CUSTOM.name and not any((CUSTOM / each).exists() for each in (top, f"{top}.py")):
        raise ConfigError(f"params.yaml: {where}: modules are looked for in {CUSTOM}/ itself: write {below}")
    check_module_names(path, where)
    extend_sys_path()
    try:
        with guards.guard_torch_settings(f"{where}: importing {module_name}"):
            module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign module raises while it is imported
        text = " ".join(str(error).split())
        raise ConfigError(
            f"params.yaml: {where}: cannot import {module_name} ({type(error).__name__}: {text}): "
            f"install it, or correct the path"
        ) from None
    if not hasattr(module, attribute):
        names = [name for name, _ in inspect.getmembers(module)]
        raise ConfigError(f"params.yaml: {where}: {module_name} has no {attribute}{suggest_similar(attribute, names)}")
    _warn_if_untracked(module_name, getattr(module, "__file__", None) or "/")
    return getattr(module, attribute)


@functools.cache
def _warn_if_untracked(module: str, file: str) -> None:
    """Warn, once for each module, of a module of the repository that is no dependency of any stage."""
    here, path = Path.cwd(), Path(file)
    if not path.is_relative_to(here) or "site-packages" in path.parts:
        return
    if not path.is_relative_to(here / CUSTOM) and not path.is_relative_to(Path(__file__).parents[1]):
        print_stderr(f"warning: {module}: DVC does not see when {path.relative_to(here)} changes: move it to {CUSTOM}/")


def extend_sys_path() -> None:
    """Make modules of custom/ and of the repository's top importable."""
    sys.path += [place for place in (str(Path.cwd() / CUSTOM), str(Path.cwd())) if place not in sys.path]


def check_module_names(path: str, where: str) -> None:
    """Refuse a module of the repository whose name another module has: Python would silently import that one.

    Modules of the repository that it imports are checked as well.

    Args:
        path: `package.module.attribute`.

    Raises:
        ConfigError: the name exists twice.
    """
    tops = [path.partition(".")[0], *map(_get_top_level_name, source_code.find_user_modules([path]))]
    for top in dict.fromkeys(tops):
        here = source_code.find_local_module(top)
        if here and (other := _find_conflicting_module(top)):
            raise ConfigError(
                f"params.yaml: {where}: {here} has the name of {other}, which Python may import instead: rename it"
            )


def _get_top_level_name(file: Path) -> str:
    """Return the first part of the dotted name of a module in custom/ or at the root."""
    return Path((file.relative_to(CUSTOM) if file.is_relative_to(CUSTOM) else file).parts[0]).stem


def _find_conflicting_module(top: str) -> str | None:
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return f"Python's own module {top}"
    own = {Path.cwd(), Path.cwd() / CUSTOM}
    stages = Path.cwd() / STAGES  # a stage looks for modules there first
    others = [str(stages), *(place for place in sys.path if Path(place).resolve() not in own)]
    for finder in sys.meta_path:
        spec = finder.find_spec(top, others if finder is PathFinder else None)
        if spec and spec.loader:  # a folder without a module is none
            ours = spec.origin == str(stages / f"{top}.py")
            return "one of the stages' modules" if ours else f"the package {top}"
    return None
