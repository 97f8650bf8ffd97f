"""Where the modules that params.yaml names are imported from: a name that two places have is refused."""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

from optlab.system.errors import ConfigError
from optlab.system.repository import CUSTOM

_STAGES_DIR = Path("pipeline")  # a stage looks for modules there first


def extend_sys_path() -> None:
    """Let modules of custom/ and of the repository's top be imported."""
    sys.path += [place for place in (str(Path.cwd() / CUSTOM), str(Path.cwd())) if place not in sys.path]


def check_module_name(top: str, where: str) -> None:
    """Refuse a module of the repository whose name another one has, too: Python would take that one without a word.

    In custom/, those that its modules import as well.

    Args:
        top: the first part of a dotted path.

    Raises:
        ConfigError: there are two.
    """
    own = _find_local_module(top)
    if own is None:
        return
    names = [top] if own.parent != CUSTOM else [top, *_list_custom_imports()]
    for name in dict.fromkeys(names):
        here, other = _find_local_module(name), _find_conflicting_module(name)
        if here and other:
            raise ConfigError(
                f"params.yaml: {where}: {here} has the name of {other}, which Python may import instead: rename it"
            )


def _find_local_module(top: str) -> Path | None:
    """The module or package of that name in custom/, or else beside params.yaml's stages."""
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
    """What else has that name."""
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


def hash_imported_files(paths: Iterable[str]) -> dict[str, str]:
    """Path → SHA-256 of the files that dotted paths lead to, of those of no installed package and not in custom/.

    What these are is recorded otherwise: by a version, and as a dependency.
    """
    dotted = [path.rpartition(".") for path in paths if "." in path]
    if not dotted:
        return {}
    extend_sys_path()
    installed, digests = packages_distributions(), {}
    for module, _, attribute in dotted:
        top = module.partition(".")[0]
        own = _find_local_module(top)
        if top in installed or top in sys.stdlib_module_names or (own and own.parent == CUSTOM):
            continue
        named = getattr(importlib.import_module(module), attribute, None)
        file = Path(inspect.getsourcefile(named) or "/") if callable(named) else Path("/")
        if file.is_file():
            digests[_get_import_path(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return dict(sorted(digests.items()))


def _get_import_path(file: Path) -> str:
    """As it is imported: no folder of this machine belongs into a record."""
    bases = [base for base in (Path.cwd(), *map(Path, sys.path)) if base != Path() and file.is_relative_to(base)]
    return file.relative_to(max(bases, key=lambda base: len(base.parts))).as_posix() if bases else file.name
