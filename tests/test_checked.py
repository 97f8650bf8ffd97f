"""What `optlab check` remembers, and what makes it look again."""

import subprocess
import sys

import pytest

from optlab.execution import checked
from optlab.system import repository
from optlab.system.errors import ConfigError


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "of_mine.py").write_text("from torch.optim import SGD\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_found_again_without_torch(here, small_config):
    config = small_config()
    assert checked.known(config) is None
    found = checked.look(config)
    assert found.conditions.threads == 2 and found.conditions.cpu_capability != "unknown"
    program = (
        "import sys\nfrom optlab.config.parameters import Config\nfrom optlab.execution import checked\n"
        f"print(checked.known(Config.model_validate_json({config.model_dump_json(by_alias=True)!r})).model_dump_json())\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True)
    assert result.stdout.strip() == found.model_dump_json(), result.stderr


def test_what_it_depends_on_makes_it_look_again(here, small_config, monkeypatch):
    own = {"sgd": {"class": "of_mine.SGD", "lr": 0.01}}
    config = small_config(optimizers=own)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(here / "custom")])
        checked.look(config)
    assert checked.known(config)
    assert checked.known(small_config(optimizers=own, training={"epochs": 7})) is None
    with monkeypatch.context() as patch:
        patch.setenv("ATEN_CPU_CAPABILITY", "default")
        assert checked.known(config) is None
    with monkeypatch.context() as patch:
        patch.setattr(repository, "packages", lambda: ["torch-1.0.dist-info"])
        assert checked.known(config) is None
    (here / "custom" / "of_mine.py").write_text("from torch.optim import Adam as SGD\n")
    assert checked.known(config) is None


def test_a_damaged_entry_is_looked_for_again(here, small_config):
    config = small_config()
    checked.look(config)
    (path,) = here.glob(".optlab/checked/*.json")
    path.write_text("{")
    assert checked.known(config) is None


def test_what_cannot_be_used_is_not_remembered(here, small_config):
    config = small_config(optimizers={"adam": {"class": "Adam", "betas": [2.0, 0.9]}})
    with pytest.raises(ConfigError, match="betas"):
        checked.look(config)
    assert checked.known(config) is None and not list(here.glob(".optlab/checked/*"))


def test_old_entries_go(here, small_config, monkeypatch):
    monkeypatch.setattr(checked, "_KEPT", 2)
    for epochs in (1, 2, 3):
        checked.look(small_config(training={"epochs": epochs}))
    assert len(list(here.glob(".optlab/checked/*.json"))) == 2
    assert checked.known(small_config(training={"epochs": 3}))
