"""Source files that decide results: those that a stage lists in dvc.yaml, and the user's modules that it imports.

All cache keys, fingerprints and packages for a cluster are made from these lists. A file's name is its path relative to
the repository root. The package is named `src/optlab` wherever it is imported from: this repository, site-packages or
the working directory of a cluster's worker.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optlab.system.repository import CUSTOM, STAGES

PACKAGE = Path("src") / "optlab"
_PACKAGE_FOLDER = Path(__file__).parents[1]


def hash_code(folder: Path, stage: str, class_paths: Iterable[str]) -> dict[str, str]:
    """Return name → SHA-256 of the code that decides what a stage writes.

    Args:
        folder: of the pipeline, relative to the root.
        class_paths: dotted paths of the classes that the stage uses, as of `Config.list_class_paths`.
    """
    return hash_files([*list_stage_files(folder, stage), *find_user_modules(class_paths)])


def hash_files(names: Iterable[Path]) -> dict[str, str]:
    """Return name → SHA-256 of files, sorted by name."""
    digests = {name.as_posix(): _compute_digest(name) for name in sorted(set(names))}
    return {name: digest for name, digest in digests.items() if digest}


def find_changed(digests: Mapping[str, str]) -> list[str]:
    """Return the names of the files whose SHA-256 is another one now, or that are gone; sorted."""
    return sorted(name for name, digest in digests.items() if _compute_digest(Path(name)) != digest)


def _compute_digest(name: Path) -> str | None:
    try:
        return hashlib.sha256(locate(name).read_bytes()).hexdigest()
    except OSError:  # removed meanwhile, as an editor does it with a file of its own
        return None


def locate(name: Path) -> Path:
    """Return where the file or folder of that name is."""
    return _PACKAGE_FOLDER / name.relative_to(PACKAGE) if name.is_relative_to(PACKAGE) else name


def list_files(name: Path) -> list[Path]:
    """Return the names of the files in a folder, at any depth, without hidden ones and bytecode; of a file, its own."""
    place = locate(name)
    if place.is_file():
        return [name]
    files = [path.relative_to(place) for path in place.rglob("*") if path.is_file()]
    return [name / file for file in files if not any(part.startswith((".", "__pycache__")) for part in file.parts)]


def list_stage_files(folder: Path, stage: str) -> list[Path]:
    """Return the names of the code files that a stage depends on by the dvc.yaml in `folder`; sorted.

    These are the dependencies below src/, pipeline/ and custom/. The folder custom/ as a whole is left out: of it, only
    the modules count that `find_user_modules` finds. Without such a stage, all of the package counts.
    """
    paths = _read_code_dependencies(folder, stage)
    return sorted({name for path in ([PACKAGE] if paths is None else paths) for name in list_files(path)})


def read_stage(folder: Path, stage: str) -> dict[str, Any]:
    """Return the definition of a stage in the dvc.yaml of a folder; empty without a readable one."""
    from ruamel.yaml import YAML, YAMLError  # a trial's process needs none

    try:
        definition = YAML(typ="safe").load((folder / "dvc.yaml").read_text("utf-8"))["stages"][stage]
        return dict(definition.get("do", definition))  # of a stage with `foreach`
    except (OSError, YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _read_code_dependencies(folder: Path, stage: str) -> list[Path] | None:
    definition = read_stage(folder, stage)
    try:
        base = folder / definition.get("wdir", "")
        paths = [_resolve_link(base / each, folder) for each in definition["deps"] if "${" not in each]
    except (KeyError, TypeError):
        return None
    return [path for path in paths if path.parts[:1] in {PACKAGE.parts[:1], STAGES.parts, CUSTOM.parts}
            and path != CUSTOM]  # fmt: skip


def _resolve_link(path: Path, folder: Path) -> Path:
    """Return the name of a dependency; `src`, `pipeline` and `custom` in a study's folder are links to the root's."""
    name = Path(os.path.normpath(path))
    inner = name.relative_to(folder) if name.is_relative_to(folder) else name
    return inner if inner.parts[:1] in {PACKAGE.parts[:1], STAGES.parts, CUSTOM.parts} else name


def find_user_modules(class_paths: Iterable[str]) -> list[Path]:
    """Return the names of the user's modules that class paths lead to, and of those that they import; sorted.

    A module is looked for in custom/, then at the root. Imports are read from the source without running it: one within
    a function counts, one by a computed name does not.
    """
    pending = [name for path in class_paths for name in _find_module_files(path.rpartition(".")[0])]
    names: set[Path] = set()
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            pending += [each for module in parse_imports(name) for each in _find_module_files(module)]
    return sorted(names)


def find_local_module(top: str) -> Path | None:
    """Return the module or package of that name in custom/, or else at the root."""
    for place in (CUSTOM / top, Path(top)) if top else ():
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
        if place.is_dir() and any(place.rglob("*.py")):
            return place
    return None


def _find_module_files(module: str) -> Iterator[Path]:
    """Yield the user's files that importing a module runs: the packages that contain it, and the module."""
    parts = [part for part in module.split(".") if part]
    own = find_local_module(parts[0]) if parts else None
    if own is None:
        return
    for end in range(1, len(parts) + 1):
        path = own.parent.joinpath(*parts[:end])
        yield from (each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file())


def parse_imports(name: Path) -> Iterator[str]:
    """Yield the dotted names of the modules that a file imports, and of what it imports from them."""
    try:
        tree = ast.parse(name.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # importing it reports the error
        return
    package = (name.relative_to(CUSTOM) if name.is_relative_to(CUSTOM) else name).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def list_user_files(class_paths: Iterable[str]) -> list[Path]:
    """Return the names of all that the user's modules may need: custom/, and whole modules and packages at the root."""
    roots = {Path(name.parts[0]) for name in find_user_modules(class_paths)} - {CUSTOM}
    return [*list_files(CUSTOM), *(name for root in roots for name in list_files(root) if name.suffix == ".py")]


def find_imported_modules() -> dict[Path, Path]:
    """Return name → absolute path of each module of this package or the repository that this process has imported.

    Modules of packages that are installed within the repository do not count.
    """
    bases = {f"{_PACKAGE_FOLDER}{os.sep}": PACKAGE, f"{Path.cwd()}{os.sep}": Path()}
    modules = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None) or ""
        base = next((base for base in bases if path.startswith(base)), None)
        if base and "site-packages" not in path[len(base) :] and Path(path).is_file():
            modules[bases[base] / path[len(base) :]] = Path(path)
    return modules
