"""What docs/entries.md shows can be used as it stands."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from optlab.preflight import checks
from optlab.schema.parameters import Config
from optlab.system.errors import ConfigError
from optlab.training import optimizer_factory

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "entries.md").read_text()
BLOCKS = re.findall(r"```yaml\n(optimizers:\n.*?)```", TEXT, re.DOTALL)
ENTRIES = {
    f"{number} {name}": entry
    for number, block in enumerate(BLOCKS)
    for name, entry in YAML(typ="safe").load(block)["optimizers"].items()
}


def test_entries_docs_contain_examples():
    assert len(BLOCKS) == 5 and len(ENTRIES) > 8


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_entries_docs_examples_are_accepted(small_config, entry):
    """Where its package is installed; the configuration is checked in any case."""
    config = small_config(optimizers={"mine": entry}, training={"epochs": 2})
    package = entry["class"].partition(".")[0]
    if "." in entry["class"] and find_spec(package) is None:
        with pytest.raises(ConfigError, match="install it, or correct"):
            checks.check_config(config)
        return
    checks.check_config(Config.model_validate(config.model_dump(by_alias=True)))


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
