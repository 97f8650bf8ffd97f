"""Ready entries for well-known optimizers: catalog.yaml, and the range in which to search each learning rate.

Few papers say where they searched, and those that do differ. A small network and a short training often want a higher
rate than the published one, so the range goes from a tenth of that rate to a hundred times it.

Some papers treat the output layer apart from the others. Each network has another name for it, so that such an entry
has a placeholder.
"""

import functools
import importlib.util
import io
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from optlab.system.errors import ConfigError
from optlab.system.text import parse_yaml, suggest_similar

_FILE = Path(__file__).with_suffix(".yaml")
_LR_FACTORS = (10, 100)  # the usual rate is divided by the first and multiplied by the second
_LR_KEYS = ("lr", "adamw_lr")  # hyperparameters that are learning rates; Muon's relatives have one for AdamW besides
_OUTPUT_WEIGHT = "<output weight>"  # placeholder for the name of the output layer's weight


class CatalogEntry(BaseModel):
    """One ready entry.

    Attributes:
        name: key of the entry in params.yaml.
        text: the entry, a YAML mapping in braces.
        source: who published the optimizer, and where.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    text: str
    source: str

    @property
    def values(self) -> dict[str, Any]:
        """Keys and values of the entry."""
        mapping: dict[str, Any] = parse_yaml(self.text)
        return mapping

    @property
    def package(self) -> str:
        """Package that has the class."""
        return str(self.values["class"]).partition(".")[0] if "." in self.values["class"] else "torch"

    @property
    def lr_range(self) -> tuple[float, float] | None:
        """Lowest and highest learning rate to search; None where the class finds its own."""
        lr = self.values.get("lr", self.values.get("base", {}).get("lr"))
        return None if lr is None else compute_lr_range(lr)

    @property
    def lr_range_text(self) -> str:
        """Range of the learning rate in words; empty where there is none."""
        return "{:g} to {:g}".format(*self.lr_range) if self.lr_range else ""

    @property
    def text_with_range(self) -> str:
        """Entry with a range in place of each learning rate, which becomes its default."""
        return _format_mapping(add_lr_ranges(self.values)) if self.lr_range else self.text

    @property
    def needs_output_weight(self) -> bool:
        """Whether the entry has a placeholder for the name of the output layer's weight."""
        return _OUTPUT_WEIGHT in self.text

    def fill_in_output_weight(self, name: str) -> "CatalogEntry":
        """Return the entry for a network whose output layer has a weight of that name."""
        return self.model_copy(update={"text": self.text.replace(_OUTPUT_WEIGHT, name)})

    @property
    def comment(self) -> str:
        """Comment to put beside the entry in params.yaml."""
        return f"{self.source}; search lr from {self.lr_range_text}" if self.lr_range_text else self.source


class Catalog(BaseModel):
    """Content of catalog.yaml.

    Attributes:
        packages: name → version of each package beside torch that an entry needs.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    packages: dict[str, str]
    entries: list[CatalogEntry]


@functools.cache
def load() -> Catalog:
    """Read the catalog, once per process."""
    return Catalog.model_validate(parse_yaml(_FILE.read_text("utf-8")))


def compute_lr_range(lr: float) -> tuple[float, float]:
    """Return the lowest and the highest learning rate to search where `lr` is usual."""
    below, above = _LR_FACTORS
    return lr / below, lr * above


def add_lr_ranges(values: dict[str, Any]) -> dict[str, Any]:
    """Return an entry's values with a range in place of each learning rate, also of its base and its fallback.

    The rates become defaults. Those of groups stay.
    """
    rates = {key: values[key] for key in _LR_KEYS if values.get(key)}
    ranges = {key: {"log": [float(f"{end:g}") for end in compute_lr_range(lr)]} for key, lr in rates.items()}
    parts = {key: add_lr_ranges(values[key]) for key in ("base", "fallback") if values.get(key)}
    return values | ranges | parts | ({"default": rates} if rates else {})


def _format_mapping(values: dict[str, Any]) -> str:
    """Return a mapping as YAML in braces, on one line."""
    yaml, text = YAML(pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width = True, 10_000
    yaml.brace_single_entry_mapping_in_flow_sequence = True  # [{ndim: 2}], not [ndim: 2]
    yaml.dump(values, text)
    return text.getvalue().strip()


def format_table() -> str:
    """List all entries, one a line, then the packages that are not installed."""
    packages = load().packages
    rows = [("name", "class", "search lr from", "source")]
    rows += [(each.name, str(each.values["class"]), each.lr_range_text, each.source) for each in load().entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return "\n".join(lines + [f"{name} is not installed: pip install '{name}=={packages[name]}'" for name in missing])


def find_entry(name: str) -> CatalogEntry:
    """Return the entry of that name.

    Raises:
        ConfigError: there is none, or its package is not installed.
    """
    by_name = {each.name: each for each in load().entries}
    if name not in by_name:
        raise ConfigError(f"no entry is known as {name!r} (`optlab add` lists all){suggest_similar(name, by_name)}")
    entry = by_name[name]
    if importlib.util.find_spec(entry.package) is None:
        pinned = f"{entry.package}=={load().packages[entry.package]}"
        raise ConfigError(f"{name}: its package is not installed: pip install '{pinned}', then repeat the command")
    return entry


def find_name(word: str) -> str | None:
    """Return the entry outside of torch with this name or, regardless of case, this class; None if there is none."""
    class_names = {
        each.name: each.values["class"].rpartition(".")[2]
        for each in reversed(load().entries)
        if each.package != "torch"
    }
    by_class = {class_.lower(): name for name, class_ in class_names.items()}
    return word.lower() if word.lower() in class_names else by_class.get(word.lower())
