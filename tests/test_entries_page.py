"""The entries that docs/ shows can be used as they stand."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from optlab.orchestration import preflight_cache
from optlab.preflight import checks
from optlab.schema.parameters import Config
from optlab.system.errors import ConfigError
from optlab.training import optimizer_factory

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "entries.md").read_text()
BLOCKS = [
    (page, number, block)
    for page in ("entries.md", "parameters.md", "howto.zh.md")
    for number, block in enumerate(re.findall(r"```yaml\n(optimizers:\n.*?)```", (DOCS / page).read_text(), re.DOTALL))
]
ENTRIES = {
    f"{page} {number} {name}": entry
    for page, number, block in BLOCKS
    for name, entry in YAML(typ="safe").load(block)["optimizers"].items()
}


def test_docs_contain_examples_of_entries():
    assert [page for page, *_ in BLOCKS] == ["entries.md"] * 6 + ["parameters.md", "howto.zh.md"]
    assert len(ENTRIES) > 22


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_shown_entry_is_accepted(small_config, entry):
    """Where its package is installed; the configuration is checked in any case."""
    config = small_config(optimizers={"mine": entry}, training={"epochs": 2})
    package = entry["class"].partition(".")[0]
    if "." in entry["class"] and find_spec(package) is None:
        with pytest.raises(ConfigError, match="install it, or correct"):
            checks.check_config(config)
        return
    for each in preflight_cache.split_config(config):  # the ends of its ranges, if it has any
        checks.check_config(Config.model_validate(each.model_dump(by_alias=True)))


def test_entries_docs_list_injected_arguments():
    lengths = [name for names in optimizer_factory._LENGTH_ARGUMENTS.values() for name in names]
    known = (
        *optimizer_factory._MODEL_ARGUMENTS,
        *optimizer_factory._NAMED_PARAMETERS_ARGUMENTS,
        *optimizer_factory._PARAMETERS_ARGUMENTS,
        *optimizer_factory._BASE_ARGUMENTS,
        *lengths,
    )
    assert all(f"`{name}`" in TEXT for name in known)
