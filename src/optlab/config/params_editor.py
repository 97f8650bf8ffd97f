"""Edits of a params.yaml that leave every other byte of the file unchanged."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode

from optlab.config import loader
from optlab.system import files
from optlab.system.errors import ConfigError
from optlab.system.text import parse_yaml

OPTIMIZERS_KEY = "optimizers"
_SEEDS_KEY = "seeds"


def add_entry(path: Path, name: str, entry: str, comment: str = "") -> None:
    """Add an entry after the last optimizer, on one line.

    Args:
        path: of a params.yaml.
        entry: a mapping in braces.

    Raises:
        ConfigError: the file is not valid, has an entry of that name, or would not be valid with this one.
        StorageError: the file cannot be written.
    """
    if name in loader.load(path).optimizers:
        raise ConfigError(f"{path}: {OPTIMIZERS_KEY}.{name} is there already: remove or rename that one")
    before, line = path.read_bytes().decode(), f"{name}: {entry}"
    after, values = _append(before, OPTIMIZERS_KEY, [line], f"  # {comment}" if comment else ""), _parse_yaml(before)
    values[OPTIMIZERS_KEY] = values[OPTIMIZERS_KEY] | {name: _parse_yaml(entry)}
    _check(after, values, path, f"{OPTIMIZERS_KEY} is written in a way that cannot be added to: add `{line}`")
    files.write_atomic(path, after.encode())


def extend_seeds(text: str, n: int, path: Path) -> str:
    """Return the text of a params.yaml with `n` seeds: the integers above the largest one follow the last.

    Args:
        path: of the file, for the message.

    Returns:
        The text unchanged if it has as many seeds, or more.

    Raises:
        ConfigError: the text is not valid, or would not be valid with these seeds.
    """
    seeds = loader.parse(text, path).seeds
    added = [max(seeds) + 1 + index for index in range(n - len(seeds))]
    if not added:
        return text
    words = [str(seed) for seed in added]
    after, values = _append(text, _SEEDS_KEY, words), _parse_yaml(text)
    values[_SEEDS_KEY] = [*seeds, *added]  # another list: an alias elsewhere is to stay as it is
    _check(after, values, path, f"{_SEEDS_KEY} is written in a way that cannot be added to: add {', '.join(words)}")
    return after


def _check(text: str, values: Any, path: Path, problem: str) -> None:
    """Check that a text has these values, and is a valid params.yaml."""
    if _parse_yaml(text) != values:
        raise ConfigError(f"{path}: {problem}")
    loader.parse(text, path)


def _parse_yaml(text: str) -> Any:
    try:
        return parse_yaml(text)
    except Exception:  # not YAML, so it differs from what is expected
        return None


def _append(text: str, key: str, items: list[str], comment: str = "") -> str:
    """Append items to the text's mapping or list of that key: on lines of their own, or within its brackets.

    Returns:
        The text unchanged if the key is not written in it, but comes from a merged mapping.
    """
    root = YAML(typ="rt", pure=True).compose(text)
    collection = next((value for name, value in root.value if name.value == key), None)
    if not isinstance(collection, CollectionNode):
        return text
    last = collection.value[-1]
    first_node, last_node = last if isinstance(collection, MappingNode) else (last, last)
    if collection.flow_style:
        end = last_node.end_mark.index
        return f"{text[:end]}{''.join(f', {item}' for item in items)}{text[end:]}"
    lines = text.splitlines(keepends=True)
    line_index = last_node.end_mark.line
    if last_node.end_mark.column or not isinstance(last_node, MappingNode) or last_node.flow_style:
        line_index += 1  # the mark is within the last item's line
    else:  # the mark of a block is where the next key begins
        while not lines[line_index - 1].strip() or lines[line_index - 1].lstrip().startswith("#"):
            line_index -= 1
    newline = "\r\n" if "\r\n" in text else "\n"
    if not lines[line_index - 1].endswith("\n"):
        lines[line_index - 1] += newline
    prefix = lines[first_node.start_mark.line][: first_node.start_mark.column]  # the indentation, or with a dash
    lines[line_index:line_index] = [f"{prefix}{item}{comment}{newline}" for item in items]
    return "".join(lines)
