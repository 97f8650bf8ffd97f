"""Add an entry to a params.yaml, and leave every other byte of it as it is."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from optlab.config import reading
from optlab.system import files
from optlab.system.errors import ConfigError

OPTIMIZERS = "optimizers"


def add(path: Path, name: str, entry: str, comment: str = "") -> None:
    """Put the entry after the last one; on one line.

    Args:
        path: of a params.yaml.
        entry: a mapping in braces.

    Raises:
        ConfigError: the file cannot be used as it is, has an entry of that name, or could not be used with this one.
        StorageError: it cannot be written.
    """
    if name in reading.load(path).optimizers:
        raise ConfigError(f"{path}: {OPTIMIZERS}.{name} is there already: remove or rename that one")
    before = path.read_bytes().decode()
    after = _with(before, f"{name}: {entry}", f"  # {comment}" if comment else "")
    values = _read(before)
    values[OPTIMIZERS] |= {name: _read(entry)}
    if _read(after) != values:
        raise ConfigError(f"{path}: {OPTIMIZERS} is written in a way that cannot be added to: add `{name}: {entry}`")
    reading.parse(after, path)
    files.write(path, after.encode())


def _read(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except Exception:  # no YAML, so it is not what it should be
        return None


def _with(text: str, line: str, comment: str) -> str:
    """The text with the line in its mapping of optimizers."""
    optimizers = _value(YAML(typ="rt", pure=True).compose(text))
    last_key, last = optimizers.value[-1]
    if optimizers.flow_style:
        end = last.end_mark.index
        return f"{text[:end]}, {line}{text[end:]}"
    lines = text.splitlines(keepends=True)
    place = last.end_mark.line
    if last.end_mark.column or not isinstance(last, MappingNode) or last.flow_style:
        place += 1  # it ends within a line
    else:
        while not lines[place - 1].strip() or lines[place - 1].lstrip().startswith("#"):
            place -= 1  # what follows it in a block ends where something else begins
    ending = "\r\n" if "\r\n" in text else "\n"
    if not lines[place - 1].endswith("\n"):
        lines[place - 1] += ending
    lines.insert(place, f"{' ' * last_key.start_mark.column}{line}{comment}{ending}")
    return "".join(lines)


def _value(top: Node) -> MappingNode:
    found = next(value for key, value in top.value if key.value == OPTIMIZERS)
    assert isinstance(found, MappingNode)
    return found
