"""Weights come back as they were written; every other file is refused with one line, and nothing in it runs."""

import hashlib
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save
from torch import nn

from optlab.preflight import checks
from optlab.system.errors import ConfigError, WeightsError
from optlab.training import models, weights


@pytest.fixture(scope="module")
def model():
    return models.build("zilliax", seed=1)


@pytest.fixture
def weights_path(tmp_path, model):
    path = tmp_path / "models" / "adam-0.safetensors"
    weights.save_model(path, model, "zilliax")
    return path


def test_weights_round_trip(tmp_path, model):
    path = tmp_path / "new" / "folder" / "adam-0.safetensors"
    digest = weights.save_model(path, model, "zilliax")
    loaded, again = weights.load_model(path, "zilliax")
    assert digest == again == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert not loaded.training


def test_weights_round_trip_includes_buffers(tmp_path):
    """A batch normalization's running figures are part of the network, and are no parameters."""
    model = models.build("resnet18", seed=0)
    model.bn1.running_mean += 0.5
    weights.save_model(tmp_path / "a.safetensors", model, "resnet18")
    loaded, _ = weights.load_model(tmp_path / "a.safetensors", "resnet18")
    assert torch.equal(loaded.bn1.running_mean, model.bn1.running_mean)


class Tied(nn.Module):
    """Two layers with the same weights."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3072, 10)
        self.other = nn.Linear(3072, 10)
        self.other.weight = self.one.weight

    def forward(self, images):
        return self.one(images.flatten(1)) + self.other(images.flatten(1))


class ExtraBuffer(Tied):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("more", value)


class ExtraState(Tied):
    def get_extra_state(self):
        return "something"

    def set_extra_state(self, state):
        """It has been said already."""


def test_shared_weights_round_trip(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tied", Tied)
    model = models.build("tied", seed=3)
    weights.save_model(tmp_path / "a.safetensors", model, "tied")
    loaded, _ = weights.load_model(tmp_path / "a.safetensors", "tied")
    assert torch.equal(loaded.other.weight, model.one.weight)
    assert loaded.other.weight.data_ptr() == loaded.one.weight.data_ptr()


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (
            lambda: ExtraBuffer(torch.eye(2).to_sparse()),
            "odd: more is of the kind torch.sparse_coo: weights are dense tensors",
        ),
        (
            lambda: ExtraBuffer(torch.zeros(1, dtype=torch.complex128)),
            "odd: weights of torch.complex128 cannot be saved",
        ),
        (ExtraState, "odd: _extra_state is of the kind str: weights are dense tensors"),
    ],
)
def test_unsavable_weights_are_rejected_before_training(small_config, monkeypatch, factory, said):
    monkeypatch.setitem(models.MODELS, "odd", factory)
    with pytest.raises(ConfigError, match=f"^params.yaml: model: {said}$"):
        checks.check_config(small_config(model="odd"))


def test_same_weights_give_same_bytes(tmp_path, model):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert weights.save_model(first, model, "zilliax") == weights.save_model(
        second, models.build("zilliax", 1), "zilliax"
    )
    assert first.read_bytes() == second.read_bytes()
    weights.save_model(second, models.build("zilliax", 2), "zilliax")
    assert first.read_bytes() != second.read_bytes()


def test_memory_layout_does_not_change_bytes(tmp_path, model):
    other = models.build("zilliax", seed=1).to(memory_format=torch.channels_last)
    first = weights.save_model(tmp_path / "a.safetensors", model, "zilliax")
    assert first == weights.save_model(tmp_path / "b.safetensors", other, "zilliax")


def tensors(model):
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def renamed(model):
    values = tensors(model)
    values["other"] = values.pop("0.weight")
    return values


def halved(model):
    return tensors(model) | {"0.weight": tensors(model)["0.weight"].half()}


DAMAGED = {
    "truncated": (lambda good, model: good[:-100], "damaged or not safetensors"),
    "header cut": (lambda good, model: good[:20], "damaged or not safetensors"),
    "longer": (lambda good, model: good + b"\0" * 8, "damaged or not safetensors"),
    "empty": (lambda good, model: b"", "damaged or not safetensors"),
    "text": (lambda good, model: b"hello world, this is no safetensors file\n", "damaged or not safetensors"),
    "header of a petabyte": (lambda good, model: (1 << 50).to_bytes(8, "little") + good[8:], "damaged or not saf"),
    "no metadata": (lambda good, model: save(tensors(model)), "does not say which model"),
    "other metadata": (lambda good, model: save(tensors(model), metadata={"format": "pt"}), "does not say which mod"),
    "another model": (
        lambda good, model: save(tensors(model), metadata={"model": "resnet18"}), "belongs to the model 'resnet18'"),
    "another name of a tensor": (
        lambda good, model: save(renamed(model), metadata={"model": "zilliax"}), "does not fit the model zilliax"),
    "another dtype": (
        lambda good, model: save(halved(model), metadata={"model": "zilliax"}),
        "does not fit the model zilliax: 0.weight is torch.float16, not torch.float32"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "phrase"), DAMAGED.values(), ids=DAMAGED)
def test_invalid_weights_file_is_rejected(weights_path, model, damage, phrase):
    weights_path.write_bytes(damage(weights_path.read_bytes(), model))
    assert_refused(weights_path, phrase)


def test_missing_weights_file_is_reported(tmp_path):
    assert_refused(tmp_path / "none.safetensors", "No such file or directory: run `dvc repro` or `dvc pull`")


def test_folder_as_weights_file_is_reported(tmp_path):
    assert_refused(tmp_path, "run `dvc repro` or `dvc pull`")


def assert_refused(path, phrase):
    with pytest.raises(WeightsError) as caught:
        weights.load_model(path, "zilliax")
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"{path}: ")
    assert phrase in message


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_as_weights_file_is_not_executed(tmp_path, weights_path):
    marker = tmp_path / "executed"
    weights_path.write_bytes(pickle.dumps({"0.weight": Touch(marker)}))
    assert_refused(weights_path, "damaged or not safetensors")
    assert not marker.exists()


def test_zipped_pickle_as_weights_file_is_not_executed(tmp_path, weights_path):
    marker = tmp_path / "executed"
    torch.save({"0.weight": Touch(marker)}, weights_path)
    assert_refused(weights_path, "damaged or not safetensors")
    assert not marker.exists()


def test_model_name_in_weights_file_is_not_called(weights_path, model):
    """The name is part of the file: whoever made the file must not choose what is called here."""
    weights_path.write_bytes(save(tensors(model), metadata={"model": "os.abort"}))
    code = (
        "import pathlib, sys\n"
        "from optlab.system import errors\nfrom optlab.training import weights\n"
        'errors.run_main(lambda: weights.load_model(pathlib.Path(sys.argv[1]), "zilliax"))\n'
    )
    done = subprocess.run([sys.executable, "-c", code, str(weights_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.returncode
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
