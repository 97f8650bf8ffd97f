"""Entries of dvc.lock, read and written as text: DVC parses the whole file for each, a second for a hundred runs.

Importing it does not import DVC.
"""

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from optlab.system import files
from optlab.system.errors import RecordError, summarize_error
from optlab.system.text import describe_conflict, find_conflict_marker

_YAML = YAML()  # writes as DVC does: an entry that is only moved keeps its bytes
_YAML.default_flow_style = False
_HEADER = "schema: '2.0'\nstages:\n"
_ENTRY_PATTERN = re.compile(r"  (\S+):\n(?:    .*\n|  - .*\n)+")  # in DVC's own layout


class DvcLock:
    """One dvc.lock file.

    Present entries keep their order, as with plain `dvc repro`; a new one follows the nearest present entry of an
    earlier stage. So the order does not depend on which stage ends first, nor on interruptions; that of plain
    `dvc repro` depends on Python's hash seed.

    Args:
        path: of the file, which need not exist.
        stages: names of the pipeline's stages, in their order.

    Raises:
        RecordError: the file is damaged.
    """

    def __init__(self, path: Path, stages: Iterable[str]) -> None:
        self._path = path
        self._places = {name: place for place, name in enumerate(stages)}
        self.read_entries()

    def put(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add or replace the entry of a stage; the file is replaced atomically.

        Raises:
            RecordError: the file is damaged.
            StorageError: the file cannot be written.
        """
        entries = self.read_entries()
        order = list(entries)
        if name not in entries:
            order.insert(self._find_index(name, order), name)
        entries[name] = _dump_entry({name: entry})
        write_entries(self._path, [entries[each] for each in order])

    def _find_index(self, name: str, present: list[str]) -> int:
        """Return the index of a new entry among the present ones; the last for a stage of another pipeline."""
        if name not in self._places:
            return len(present)
        earlier = [self._places.get(each, len(self._places)) for each in present]
        nearest = max((place for place in earlier if place < self._places[name]), default=None)
        return 0 if nearest is None else earlier.index(nearest) + 1

    def read_entries(self) -> dict[str, str]:
        """Return stage → text of its entry.

        Raises:
            RecordError: the file is damaged.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RecordError(f"{self._path}: cannot be read: {error}") from None
        return parse_entries(content, self._path)


def parse_entries(content: bytes, path: Path) -> dict[str, str]:
    """Return stage → text of its entry.

    Args:
        content: of a dvc.lock.
        path: of the file, for the message.

    Raises:
        RecordError: the content is damaged.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: cannot be read: {error}") from None
    if text.startswith(_HEADER):
        matches = list(_ENTRY_PATTERN.finditer(text, len(_HEADER)))
        entry_texts = {each[1]: each[0] for each in matches}
        if len(entry_texts) == len(matches) and "".join(entry_texts.values()) == text[len(_HEADER) :]:
            return entry_texts
    return {name: _dump_entry({name: entry}) for name, entry in _parse_yaml(text, path).items()}  # edited, or damaged


def write_entries(path: Path, entries: Iterable[str]) -> None:
    """Write a dvc.lock with these entries.

    Raises:
        StorageError: the file cannot be written.
    """
    files.write_atomic(path, (_HEADER + "".join(entries)).encode())


def _parse_yaml(text: str, path: Path) -> dict[str, Any]:
    marker_line = find_conflict_marker(text)
    if marker_line:
        raise RecordError(describe_conflict(path, marker_line))
    try:
        entries = (YAML(typ="safe").load(text) or {}).get("stages", {})
        return {name: dict(entry) for name, entry in entries.items()}
    except (YAMLError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: damaged ({summarize_error(error)}): restore it with git") from None


def _dump_entry(entry: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    _YAML.dump({"stages": _convert_to_plain(entry)}, stream)
    return stream.getvalue().partition("\n")[2]


def _convert_to_plain(value: Any) -> Any:
    """Return a value with plain dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: _convert_to_plain(each) for key, each in value.items()}
    return [_convert_to_plain(each) for each in value] if isinstance(value, list | tuple) else value
