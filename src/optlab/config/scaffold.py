"""New optimizers: add an entry to a params.yaml, and create a module in custom/ with its test and its entry."""

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from optlab.config import loader
from optlab.schema.parameters import NAME_PATTERN
from optlab.system import files, repository
from optlab.system.errors import ConfigError

OPTIMIZERS_KEY = "optimizers"
_TESTS_FOLDER = Path("tests")
_TEMPLATES = Path(__file__).parent


def add_entry(path: Path, name: str, entry: str, comment: str = "") -> None:
    """Add an entry after the last one, on one line, and leave every other byte of the file unchanged.

    Args:
        path: of a params.yaml.
        entry: a mapping in braces.

    Raises:
        ConfigError: the file is not valid, has an entry of that name, or would not be valid with this one.
        StorageError: the file cannot be written.
    """
    if name in loader.load(path).optimizers:
        raise ConfigError(f"{path}: {OPTIMIZERS_KEY}.{name} is there already: remove or rename that one")
    before = path.read_bytes().decode()
    after = _insert_line(before, f"{name}: {entry}", f"  # {comment}" if comment else "")
    values = _parse_yaml(before)
    values[OPTIMIZERS_KEY] |= {name: _parse_yaml(entry)}
    if _parse_yaml(after) != values:
        raise ConfigError(
            f"{path}: {OPTIMIZERS_KEY} is written in a way that cannot be added to: add `{name}: {entry}`"
        )
    loader.parse(after, path)
    files.write_atomic(path, after.encode())


def _parse_yaml(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except Exception:  # not YAML, so it differs from what is expected
        return None


def _insert_line(text: str, line: str, comment: str) -> str:
    """Insert the line at the end of the text's mapping of optimizers."""
    optimizers = _find_optimizers(YAML(typ="rt", pure=True).compose(text))
    last_key, last = optimizers.value[-1]
    if optimizers.flow_style:
        end = last.end_mark.index
        return f"{text[:end]}, {line}{text[end:]}"
    lines = text.splitlines(keepends=True)
    line_index = last.end_mark.line
    if last.end_mark.column or not isinstance(last, MappingNode) or last.flow_style:
        line_index += 1  # the mark is within the last entry's line
    else:  # the mark of a block is where the next key begins
        while not lines[line_index - 1].strip() or lines[line_index - 1].lstrip().startswith("#"):
            line_index -= 1
    newline = "\r\n" if "\r\n" in text else "\n"
    if not lines[line_index - 1].endswith("\n"):
        lines[line_index - 1] += newline
    lines.insert(line_index, f"{' ' * last_key.start_mark.column}{line}{comment}{newline}")
    return "".join(lines)


def _find_optimizers(root: Node) -> MappingNode:
    node = next(value for key, value in root.value if key.value == OPTIMIZERS_KEY)
    assert isinstance(node, MappingNode)
    return node


def create_optimizer(name: str, params: Path) -> list[Path]:
    """Create an optimizer's module, its test and its entry; returns the paths of the module and of the test.

    The working directory is the repository root.

    Raises:
        ConfigError: the name is not valid, or something of that name exists; then nothing is written.
        StorageError: a file cannot be written.
    """
    _check_name(name, params)
    class_name = "".join(part.capitalize() for part in name.split("_"))
    templates = {
        repository.CUSTOM / f"{name}.py": _TEMPLATES / "optimizer.py.template",
        _TESTS_FOLDER / f"test_{name}.py": _TEMPLATES / "test_optimizer.py.template",
    }
    for path in templates:
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name, or edit that one")
    for path, template in templates.items():
        text = Template(template.read_text("utf-8")).substitute(name=name, class_=class_name)
        files.write_atomic(path, text.encode())
    try:
        add_entry(params, name, f"{{class: {name}.{class_name}, lr: 0.01}}")
    except BaseException:
        for path in templates:
            path.unlink()
        raise
    return list(templates)


def _check_name(name: str, params: Path) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for it: a lower-case letter, then up to 99 of them, digits or _")
    if name in loader.load(params).optimizers:
        raise ConfigError(f"{params}: optimizers.{name} is there already: choose another name")
    if not (repository.CUSTOM / f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name!r} is the name of a Python module already: choose another one")
