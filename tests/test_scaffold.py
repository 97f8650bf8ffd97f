"""A new optimizer has a module, a test that passes, and an entry."""

import importlib.util
import sys

import pytest
from ruamel.yaml import YAML

from optlab.config import scaffold
from optlab.system.errors import ConfigError, OptlabError

HEAD = """# All of it.
model: zilliax   # the network
seeds: [0]
data: {train_size: 100, validation_size: 20}
training: {epochs: 1, batch_size: 16, threads: 2}
"""


@pytest.fixture
def write_params(tmp_path, monkeypatch):
    """A function that writes a params.yaml with these optimizers, and returns its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(optimizers):
        path = tmp_path / "params.yaml"
        path.write_bytes((HEAD + optimizers).encode())
        return path

    return write


def test_scaffolded_optimizer_passes_its_generated_test(write_params, tmp_path, sample, small_config):
    path = write_params("optimizers:\n  sgd: {class: SGD, lr: 0.01}\n")
    module, test = scaffold.create_optimizer("brand_new", path)
    assert (
        str(module) == "custom/brand_new.py" and "brand_new: {class: brand_new.BrandNew, lr: 0.01}" in path.read_text()
    )
    spec = importlib.util.spec_from_file_location("generated", test)
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    generated.test_it_learns(small_config, sample)
    generated.test_it_goes_on_from_a_checkpoint_to_the_same_weights(small_config, sample, tmp_path / "checkpoints")
    assert YAML(typ="safe").load(path)["optimizers"]["brand_new"]["lr"] == 0.01


def test_generated_test_detects_state_outside_optimizer(write_params, tmp_path, sample, small_config):
    module, test = scaffold.create_optimizer("forgetful", write_params("optimizers:\n  sgd: {class: SGD, lr: 0.01}\n"))
    text = module.read_text()
    module.write_text(text.replace("state = self.state[weight]", "state = vars(self).setdefault(str(id(weight)), {})"))
    spec = importlib.util.spec_from_file_location("generated", test)
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    with pytest.raises(ValueError, match="is not all that it goes on from"):
        generated.test_it_goes_on_from_a_checkpoint_to_the_same_weights(small_config, sample, tmp_path / "checkpoints")


NAMES = {
    "My": "is no name for it", "1st": "is no name for it", "a-b": "is no name for it", "class": "is no name for it",
    "json": "is the name of a Python module already", "torch": "is the name of a Python module already",
    "sgd": "optimizers.sgd is there already",
}  # fmt: skip


@pytest.mark.parametrize(("name", "said"), NAMES.items())
def test_invalid_scaffold_name_writes_nothing(write_params, tmp_path, name, said):
    path = write_params("optimizers:\n  sgd: {class: SGD, lr: 0.01}\n")
    with pytest.raises(ConfigError, match=said):
        scaffold.create_optimizer(name, path)
    assert [each.name for each in tmp_path.iterdir()] == ["params.yaml"]


def test_scaffold_overwrites_no_file(write_params, tmp_path):
    path = write_params("optimizers:\n  sgd: {class: SGD, lr: 0.01}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_mine.py").write_text("own")
    with pytest.raises(ConfigError, match=r"^tests/test_mine\.py is there already"):
        scaffold.create_optimizer("mine", path)
    assert not (tmp_path / "custom").exists() and "mine" not in path.read_text()


def test_failed_scaffold_leaves_no_module(write_params, tmp_path):
    path = write_params("optimizers:\n  sgd: {class: SGD, lr: 0.01}\n")
    (tmp_path / "tests").touch()
    with pytest.raises(OptlabError, match=r"^tests/test_mine\.py: "):
        scaffold.create_optimizer("mine", path)
    assert not list(tmp_path.glob("custom/*")) and "mine" not in path.read_text()
