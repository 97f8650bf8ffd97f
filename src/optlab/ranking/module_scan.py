"""Scan of an optimizer's own modules for what an optimizer has no use for: files, processes, other parts of Python.

The source is parsed and not run. The scan is no sandbox: it refuses what is written plainly, such as reading the test
split, and asks a reader to judge what is not. Whoever wants to hide something from it may succeed.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

# Packages that an optimizer may import, besides modules of custom/; `torch.utils.data` and the like are not among them.
ALLOWED_PACKAGES = frozenset(
    {
        "__future__", "abc", "collections", "copy", "dataclasses", "enum", "functools", "itertools", "math", "numbers",
        "operator", "typing", "typing_extensions", "warnings",
        "torch", "pytorch_optimizer", "schedulefree", "torch_optimizer", "heavyball", "muon", "dion",
    }
)  # fmt: skip
_REFUSED_MODULES = (
    "torch.hub", "torch.utils", "torch.serialization", "torch.jit", "torch.multiprocessing", "torch.package",
    "torch.distributed.checkpoint", "torch.ops", "torch.library", "torch.storage",
)  # fmt: skip
_REFUSED_NAMES = frozenset(
    {
        "open", "exec", "eval", "compile", "__import__", "globals", "locals", "vars", "getattr", "setattr", "delattr",
        "breakpoint", "input", "__builtins__", "__loader__", "__spec__",
    }
)  # fmt: skip
_REFUSED_ATTRIBUTES = frozenset(
    {
        "load", "save", "from_file", "fromfile", "tofile", "memmap", "loadtxt", "genfromtxt", "hub", "utils", "ops",
        "jit", "serialization", "classes", "package", "multiprocessing", "library", "storage", "UntypedStorage",
        "TypedStorage", "_C", "sys", "_sys", "os", "_os", "io", "_io", "pathlib", "builtins", "importlib", "inspect",
        "linecache", "types", "f_back", "f_builtins", "f_globals", "gi_frame", "tb_frame",
    }
)  # fmt: skip
# With `@torch.no_grad` and the like, an optimizer needs these and no other names between double underscores.
_ALLOWED_SPECIAL_NAMES = frozenset(
    {"__init__", "__setstate__", "__getstate__", "__name__", "__class__", "__doc__", "__all__", "__repr__", "__len__",
     "__version__", "__post_init__", "__call__", "__iter__", "__next__", "__eq__", "__hash__", "__enter__", "__exit__"}
)  # fmt: skip


def scan(modules: Iterable[Path]) -> list[str]:
    """Return what is refused, as `FILE:LINE: what`, in the order of the files' lines.

    Args:
        modules: paths of all modules of custom/ that the optimizer uses.
    """
    paths = sorted(set(modules))
    own = {path.stem for path in paths} | {each.name for path in paths for each in path.parents}
    found = []
    for path in paths:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            found.append((path, 1, f"cannot be parsed: {type(error).__name__}"))
            continue
        found += [(path, line, what) for line, what in _scan_tree(tree, own)]
    return [f"{path}:{line}: {what}" for path, line, what in sorted(found)]


def scan_class_paths(class_paths: Iterable[str], modules: Iterable[Path]) -> list[str]:
    """Return the classes that are neither torch's, nor of an allowed package, nor in one of the scanned modules.

    Args:
        class_paths: as params.yaml names them: `Adam` is one of torch.optim.
        modules: as for `scan`.
    """
    own = {each.parts[1].removesuffix(".py") for each in modules}  # below custom/
    packages = {path: path.partition(".")[0] for path in class_paths if "." in path}
    return [f"class {path}" for path, each in packages.items() if each not in own and each not in ALLOWED_PACKAGES]


def _scan_tree(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((line, f"imports {alias.name}") for alias in node.names if not _may_import(alias.name, own))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from ((line, f"imports {name}") for name in names[:1] if not _may_import(name, own))
            yield from ((line, f"imports {name}") for name in names[1:] if name.startswith(_REFUSED_MODULES))
            yield from ((line, f"imports {alias.name}") for alias in node.names if alias.name in _REFUSED_ATTRIBUTES)
        elif isinstance(node, ast.Name) and (node.id in _REFUSED_NAMES or _is_special(node.id)):
            yield line, f"uses {node.id}"
        elif isinstance(node, ast.Attribute) and _is_refused(node):
            yield line, f"uses .{node.attr}"


def _may_import(module: str, own: set[str]) -> bool:
    package = module.partition(".")[0]
    return (package in ALLOWED_PACKAGES or package in own) and not module.startswith(_REFUSED_MODULES)


def _is_refused(node: ast.Attribute) -> bool:
    if node.attr == "utils" and isinstance(node.value, ast.Attribute) and node.value.attr == "nn":
        return False  # torch.nn.utils
    return node.attr in _REFUSED_ATTRIBUTES or _is_special(node.attr)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in _ALLOWED_SPECIAL_NAMES
