"""Import of the classes and callables that params.yaml names; a module name that exists twice is refused."""

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from optlab.system.errors import ConfigError, print_stderr
from optlab.system.repository import CUSTOM
from optlab.system.text import suggest_similar
from optlab.training import guards

_STAGES_DIR = Path("pipeline")  # a stage looks for modules there first


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
    check_module_name(top, where)
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


def check_module_name(top: str, where: str) -> None:
    """Refuse a module of the repository whose name another module has: Python would silently import that one.

    Modules that those of custom/ import are checked as well.

    Args:
        top: the first part of a dotted path.

    Raises:
        ConfigError: the name exists twice.
    """
    own = find_local_module(top)
    if own is None:
        return
    names = [top] if own.parent != CUSTOM else [top, *_list_custom_imports()]
    for name in dict.fromkeys(names):
        here, other = find_local_module(name), _find_conflicting_module(name)
        if here and other:
            raise ConfigError(
                f"params.yaml: {where}: {here} has the name of {other}, which Python may import instead: rename it"
            )


def find_local_module(top: str) -> Path | None:
    """Return the module or package of that name in custom/, or else at the top of the repository."""
    for place in (CUSTOM / top, Path(top)) if top else ():
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
        if place.is_dir() and any(place.rglob("*.py")):
            return place
    return None


def _list_custom_imports() -> Iterator[str]:
    texts = "\n".join(path.read_text("utf-8", "replace") for path in CUSTOM.rglob("*.py"))
    for name in sorted({path.stem for path in CUSTOM.iterdir()}):
        if re.search(rf"^\s*(from|import)\s+{re.escape(name)}\b", texts, re.MULTILINE):
            yield name


def _find_conflicting_module(top: str) -> str | None:
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return f"Python's own module {top}"
    own = {Path.cwd(), Path.cwd() / CUSTOM}
    others = [str(Path.cwd() / _STAGES_DIR), *(place for place in sys.path if Path(place).resolve() not in own)]
    for finder in sys.meta_path:
        spec = finder.find_spec(top, others if finder is PathFinder else None)
        if spec and spec.loader:  # a folder without a module is none
            ours = spec.origin == str(Path.cwd() / _STAGES_DIR / f"{top}.py")
            return "one of the stages' modules" if ours else f"the package {top}"
    return None
