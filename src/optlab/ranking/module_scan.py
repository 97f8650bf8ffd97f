"""Scan of an optimizer's own modules for what an optimizer has no use for: files, processes, other parts of Python.

The source is parsed and not run. The scan is no sandbox: it refuses what is written plainly, such as reading the test
split, and a person has to read the module. Whoever wants to deceive the scan may succeed.
"""

import ast
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from optlab.system import repository, source_code

MAX_SIZE = 65_536  # bytes of a module: trained weights do not fit
# Packages with classes that an entry may name.
READY_PACKAGES = frozenset({"torch", "pytorch_optimizer", "schedulefree", "torch_optimizer", "heavyball"})
_IMPORTABLE = frozenset(
    {
        "__future__", "abc", "collections", "collections.abc", "copy", "dataclasses", "enum", "functools", "itertools",
        "math", "numbers", "typing", "typing_extensions", "warnings",
        "torch", "torch.autograd", "torch.fft", "torch.func", "torch.linalg", "torch.nn", "torch.nn.functional",
        "torch.nn.init", "torch.nn.utils", "torch.optim", "torch.optim.lr_scheduler", "torch.optim.optimizer",
        "torch.special", *READY_PACKAGES,
    }
)  # fmt: skip
_REFUSED_NAMES = frozenset(
    {
        "open", "exec", "eval", "compile", "globals", "locals", "vars", "getattr", "setattr", "delattr", "breakpoint",
        "input", "help", "license", "copyright", "credits",
    }
)  # fmt: skip
# Attributes: what reads or writes, and modules that other modules hold.
_REFUSED_ATTRIBUTES = frozenset(
    {
        "load", "load_all", "save", "dump", "from_file", "fromfile", "tofile", "memmap", "loadtxt", "genfromtxt",
        "hub", "utils", "ops",
        "jit", "serialization", "classes", "package", "library", "storage", "UntypedStorage", "TypedStorage", "testing",
        "distributed", "cpp_extension", "bltns", "attrgetter", "methodcaller", "_C", "_sys", "_os", "_io", "_dynamo",
        "_inductor", "fx", "get_type_hints", "get_annotations", "ForwardRef", "evaluate_forward_ref", "singledispatch",
        "singledispatchmethod", "formatwarning", "f_back", "f_builtins", "f_globals", "gi_frame", "tb_frame",
        *(sys.stdlib_module_names - {"abc", "copy", "math", "random", "select", "signal", "statistics"}),
    }
)  # fmt: skip
_ALLOWED_SPECIAL_NAMES = frozenset(
    {"__init__", "__setstate__", "__getstate__", "__name__", "__class__", "__doc__", "__all__", "__repr__", "__len__",
     "__version__", "__post_init__", "__call__", "__iter__", "__next__", "__eq__", "__hash__", "__enter__", "__exit__"}
)  # fmt: skip


def find_problems(class_paths: Sequence[str]) -> list[str]:
    """Return why the classes of an optimizer or their modules are refused; nothing of them is imported.

    Args:
        class_paths: the model and the optimizer's classes, as params.yaml names them.
    """
    modules = source_code.find_user_modules(class_paths)
    foreign = [f"{path}: not in {repository.CUSTOM}/" for path in modules if not path.is_relative_to(repository.CUSTOM)]
    return foreign or [*scan_class_paths(class_paths, modules), *scan(modules)]


def scan(modules: Iterable[Path]) -> list[str]:
    """Return what is refused, as `FILE:LINE: what`, in the order of the files' lines.

    Args:
        modules: paths of all modules of custom/ that the optimizer uses.
    """
    paths = sorted(set(modules))
    own = _list_top_names(paths)
    taken = filter(is_name_of_package, sorted(own))
    found = [(path, 1, f"has the name of the package {each}") for each in taken for path in paths[:1]]
    for path in paths:
        try:
            source = path.read_bytes()
            if len(source) > MAX_SIZE:
                found.append((path, 1, f"has more than {MAX_SIZE} bytes"))
                continue
            found += [(path, line, what) for line, what in _scan_tree(ast.parse(source), own)]
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            found.append((path, 1, f"cannot be parsed: {type(error).__name__}"))
    return [f"{path}:{line}: {what}" for path, line, what in sorted(found)]


def is_name_of_package(name: str) -> bool:
    """Return whether a module of that name would be imported in place of Python's own or of an installed package."""
    return name in _list_package_names()


@functools.cache
def _list_package_names() -> frozenset[str]:
    return frozenset({*sys.stdlib_module_names, *metadata.packages_distributions()})


def scan_class_paths(class_paths: Iterable[str], modules: Iterable[Path]) -> list[str]:
    """Return the classes that are neither torch's, nor of a ready package, nor in one of the scanned modules.

    Args:
        class_paths: as params.yaml names them: `Adam` is one of torch.optim.
        modules: as for `scan`.
    """
    own = _list_top_names(modules)
    packages = {path: path.partition(".")[0] for path in class_paths if "." in path}
    return [f"class {path}" for path, each in packages.items() if each not in own and each not in READY_PACKAGES]


def _list_top_names(modules: Iterable[Path]) -> set[str]:
    """Return the names by which modules and packages of custom/ are imported."""
    parts = (path.parts for path in modules)
    return {each[each.index(repository.CUSTOM.name) + 1].removesuffix(".py") for each in parts}


def _scan_tree(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    imported = _list_imported_names(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import():
                yield from ((line, f"imports {alias.name}") for alias in node.names if not _may_import(alias.name, own))
            case ast.ImportFrom():
                yield from ((line, f"imports {name}") for name in _list_refused_imports(node, own))
            case ast.Name() if node.id in _REFUSED_NAMES or _is_special(node.id):
                yield line, f"uses {node.id}"
            case ast.Attribute() if _is_refused(node):
                yield line, f"uses .{node.attr}"
            case ast.Attribute() | ast.Subscript() if not isinstance(node.ctx, ast.Load):
                if _find_root(node) in imported:
                    yield line, f"changes {_find_root(node)}"
            case ast.Call(func=ast.Name(id="type")) if len(node.args) != 1 or node.keywords:
                yield line, "makes a class by type()"
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _is_special(node.name):
                yield line, f"defines {node.name}"
            case ast.Match():
                yield line, "uses match"


def _list_imported_names(tree: ast.AST) -> set[str]:
    """Return the names that import statements bind."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in node.names}


def _list_refused_imports(node: ast.ImportFrom, own: set[str]) -> list[str]:
    """Return what `from … import …` must not import: names of other packages, and names that are no attribute's."""
    module = node.module or ""
    is_own = bool(node.level) or module.partition(".")[0] in own
    if not (is_own or _may_import(module, own)):
        return [module]
    may_be_private = is_own or module.startswith("torch.optim")
    return [
        alias.name for alias in node.names
        if alias.name == "*" or _is_refused_attribute(alias.name)
        or (alias.name.startswith("_") and not may_be_private)
    ]  # fmt: skip


def _find_root(node: ast.expr) -> str | None:
    """Return the name at the root of an expression such as `torch.nn.functional.relu` or `torch.x[0]`."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _may_import(module: str, own: set[str]) -> bool:
    return module in _IMPORTABLE or module.partition(".")[0] in own


def _is_refused(node: ast.Attribute) -> bool:
    if node.attr == "utils" and isinstance(node.value, ast.Attribute) and node.value.attr == "nn":
        return False  # torch.nn.utils
    return _is_refused_attribute(node.attr) or (_is_private(node.attr) and not _is_of_instance(node.value))


def _is_private(name: str) -> bool:
    """Return whether a name is internal to a library; torch's own optimizers use `torch._foreach_…`."""
    return name.startswith("_") and not name.startswith("_foreach_") and name not in _ALLOWED_SPECIAL_NAMES


def _is_of_instance(node: ast.expr) -> bool:
    """Return whether an expression is `self`, `cls` or `super()`."""
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def _is_refused_attribute(name: str) -> bool:
    is_hook = name.startswith("register_") and name.endswith("hook")
    return name in _REFUSED_ATTRIBUTES or is_hook or _is_special(name)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in _ALLOWED_SPECIAL_NAMES
