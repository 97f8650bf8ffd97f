"""A training that was cut off goes on to the same bytes; a checkpoint is whole or refused, and of this run alone."""

import hashlib
import importlib.util
import pickle
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ready_entries
import torch
from safetensors.torch import save
from torch import nn

from optlab.data import cifar10
from optlab.records import Environment
from optlab.system import source_code
from optlab.training import checkpoint, determinism, loop, models, weights


@pytest.fixture(scope="module")
def device(small_config):
    return determinism.configure_torch(small_config().training)


class Cut(Exception):
    """Stands for a kill: whatever the process held in memory is gone."""


class CutAfter(loop.Callback):
    def __init__(self, step, begin):
        self.step, self.next = step, begin

    def on_step(self, epoch, step, loss, images):
        assert step == self.next, "it repeats steps, or leaves some out"
        self.next += 1
        if step == self.step:
            raise Cut


class EveryStep(checkpoint.FileCheckpointer):
    """Saves after every step, so that a cut can come at any place between two steps."""

    def on_step_end(self, outcome, stepper):
        self.save(outcome, stepper)


class OneStep(checkpoint.FileCheckpointer):
    """Saves after so many steps."""

    def __init__(self, folder, steps):
        super().__init__(folder, noop)
        self.steps = steps

    def on_step_end(self, outcome, stepper):
        if sum(map(len, outcome.step_losses)) == self.steps:
            self.save(outcome, stepper)


def noop():
    pass


def run_training(config, sample, device, name="mine", saver=None, cut=None, begin=0):
    observers = [CutAfter(cut, begin)]
    return loop.train(config, name, 0, cifar10.load(sample, config.data, 0), device, observers, saver)


def resume_after_interruptions(config, sample, device, folder, *cuts):
    """Train to the end, cut at each of these steps, whose results are lost."""
    begin = 0
    for cut in cuts:
        with pytest.raises(Cut):
            run_training(config, sample, device, saver=OneStep(folder, cut), begin=begin, cut=cut)
        torch.rand(7)  # what another process draws in between must not matter
        begin = cut
    return run_training(config, sample, device, saver=OneStep(folder, None), begin=begin)


def assert_same(first, second, tmp_path, model="zilliax"):
    assert second.step_losses == first.step_losses
    assert second.epochs == first.epochs
    assert second.validations == first.validations
    assert second.status == first.status
    digests = [weights.save_model(tmp_path / "w.safetensors", outcome.model, model) for outcome in (first, second)]
    assert digests[0] == digests[1]


SMALLER = {"train_size": 50, "validation_size": 10}  # 5 steps in batches of 10

SPECS = {
    name: entry.values for name, entry in ready_entries.fill_in().items()
}  # every dense class of torch.optim, and others
SPECS["LBFGS with line search"] = {"class": "LBFGS", "line_search_fn": "strong_wolfe", "max_iter": 2}
SPECS["RMSprop, centered"] = {"class": "RMSprop", "centered": True, "momentum": 0.9}
SPECS["groups"] = {
    "class": "Muon", "lr": 0.02, "groups": [{"match": "8.weight", "momentum": 0.5}],
    "fallback": {"class": "AdamW", "lr": 0.001, "groups": [{"match": "*.bias", "weight_decay": 0, "lr": 0.01}]},
    "schedule": {"name": "cosine", "warmup_epochs": 0.5},
}  # fmt: skip


# Their states hold objects, or tensors that share memory: they train without checkpoints.
UNSAVABLE = {"galore", "kron", "lamb", "scion", "shampoo"}


@pytest.mark.parametrize("name", SPECS)
def test_resumed_training_is_identical_for_every_optimizer(small_config, sample, device, tmp_path, name):
    """Two epochs of five steps, cut at the end of the first and in the second: resumed twice."""
    spec = SPECS[name]
    package = spec["class"].rpartition(".")[0]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[zoo]'")
    config = small_config(
        optimizers={"mine": spec}, data=SMALLER, training={"epochs": 2, "batch_size": 10, "validations_per_epoch": 3}
    )
    if name in UNSAVABLE:
        with pytest.raises(ValueError, match="in the state of the optimizer"):
            resume_after_interruptions(config, sample, device, tmp_path / "c", 2)
        return
    whole = run_training(config, sample, device)
    resumed = resume_after_interruptions(config, sample, device, tmp_path / "c", 5, 8)
    assert_same(whole, resumed, tmp_path)
    assert resumed.hyperparameters == whole.hyperparameters and resumed.gradients == whole.gradients


SCHEDULES = {
    "constant with warm-up": {"name": "constant", "warmup_epochs": 0.5},
    "cosine": {"name": "cosine", "warmup_epochs": 0},
    "one_cycle": {"name": "one_cycle", "warmup_epochs": 0},
    "step": {"name": "step", "step_epochs": 1, "gamma": 0.1},
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_resumed_training_is_identical_for_every_schedule(small_config, sample, device, tmp_path, schedule):
    config = small_config(
        optimizers={"mine": {"class": "Adam", "lr": 0.003}}, data=SMALLER,
        training={"epochs": 3, "batch_size": 10, "schedule": schedule},
    )  # fmt: skip
    assert_same(
        run_training(config, sample, device),
        resume_after_interruptions(config, sample, device, tmp_path / "c", 7),
        tmp_path,
    )


class Dropping(nn.Sequential):
    """Draws from torch's generator while it trains, and has a buffer that `state_dict` leaves out."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images):
        if self.training:
            self.seen += 1
        return super().forward(images) * (1 + self.seen / 100)


@pytest.mark.parametrize(
    ("model", "augment"), [("dropping", "none"), ("resnet18", "none"), ("fast", "alternating_flip_crop")]
)
def test_checkpoint_restores_rng_state_and_buffers(small_config, sample, device, tmp_path, monkeypatch, model, augment):
    """Those of fast's whitening are trained when the checkpoint is written, and not computed again from images."""
    monkeypatch.setitem(models.MODELS, "dropping", Dropping)
    config = small_config(
        model=model, optimizers={"mine": {"class": "SGD", "lr": 0.01}},
        data={"train_size": 10, "validation_size": 10, "augment": augment}, training={"epochs": 1, "batch_size": 5},
    )  # fmt: skip
    whole = run_training(config, sample, device)
    assert_same(whole, resume_after_interruptions(config, sample, device, tmp_path / "c", 1), tmp_path, model)


class Drawing(torch.optim.SGD):
    """Draws from every global generator."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for value in group["params"]:
                value.mul_(1 + (random.random() + np.random.rand() + torch.rand(()).item()) / 1000)
        return loss


class Keeping(torch.optim.SGD):
    """Keeps what no checkpoint can hold."""

    kept = None

    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["kept"] = Keeping.kept
        return super().step(closure)


def test_checkpoint_restores_every_global_rng(small_config, sample, device, tmp_path):
    entry = {"class": f"{__name__}.Drawing", "lr": 0.01}
    config = small_config(optimizers={"mine": entry}, data=SMALLER, training={"epochs": 2, "batch_size": 10})
    whole = run_training(config, sample, device)
    random.seed(1)
    np.random.seed(1)  # as another process has them
    assert_same(whole, run_training(config, sample, device), tmp_path)
    assert_same(whole, resume_after_interruptions(config, sample, device, tmp_path / "c", 5), tmp_path)


class Swapping(torch.optim.SGD):
    """Has one set of weights to train and one to evaluate; what it is at, it does not ask."""

    def swap(self):
        with torch.no_grad():
            for value in self.param_groups[0]["params"]:
                other = self.state[value].setdefault("other", value.detach() / 2)
                now = value.clone()
                value.copy_(other)
                other.copy_(now)

    train = eval = swap


class Asking(Swapping):
    """Keeps where it is in itself, and not in its state."""

    at = "eval"

    def train(self):
        if self.at == "eval":
            self.at = "train"
            self.swap()

    def eval(self):
        if self.at == "train":
            self.at = "eval"
            self.swap()


def test_checkpoint_restores_optimizer_train_eval_weights(small_config, sample, device, tmp_path):
    def config(cls):
        entry = {"class": f"{__name__}.{cls}", "lr": 0.01}
        return small_config(optimizers={"mine": entry}, data=SMALLER, training={"epochs": 2, "batch_size": 10})

    whole = run_training(config("Swapping"), sample, device)
    assert_same(whole, resume_after_interruptions(config("Swapping"), sample, device, tmp_path / "c", 5), tmp_path)
    assert list((tmp_path / "c").iterdir())  # it has gone on from one
    with pytest.raises(ValueError, match="the state that Asking gives is not all that it goes on from"):
        resume_after_interruptions(config("Asking"), sample, device, tmp_path / "d", 5)


def test_checkpoint_keeps_memory_layout():
    """Of a matrix of eigenvectors, for one: other strides give a matrix product other last bits."""
    value = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)
    found = checkpoint._decode(checkpoint._encode([value]))[0]
    assert torch.equal(found, value) and found.stride() == value.stride()


def test_checkpoint_encodes_complex_weights(tmp_path):
    assert checkpoint._decode(checkpoint._encode({"p": torch.ones(2, dtype=torch.complex64) * 1j}))["p"][0] == 1j


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (torch.eye(2).to_sparse(), "a tensor of the layout torch.sparse_coo in the state"),
        (torch.ones(2, dtype=torch.complex64), "a tensor of torch.complex64 in"),
        (torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "a tensor of torch.bits8 in"),
    ],
)
def test_unsavable_optimizer_state_gives_one_warning(
    small_config, sample, device, tmp_path, monkeypatch, capsys, kept, said
):
    monkeypatch.setattr(checkpoint, "_MIN_INTERVAL_S", 0)
    monkeypatch.setattr(Keeping, "kept", kept)
    entry = {"class": f"{__name__}.Keeping", "lr": 0.01}
    config = small_config(optimizers={"mine": entry}, data=SMALLER, training={"epochs": 2, "batch_size": 10})
    assert run_training(config, sample, device, saver=checkpoint.FileCheckpointer(tmp_path, noop)).status == "completed"
    warnings = [line for line in capsys.readouterr().err.splitlines() if "DVC does not see" not in line]
    assert len(warnings) == 1 and f"no checkpoint ({said}" in warnings[0]


@pytest.fixture(scope="module")
def config(small_config):
    optimizer = {"mine": {"class": "Adam", "lr": 0.001}}
    return small_config(optimizers=optimizer, data=SMALLER, training={"epochs": 2, "batch_size": 10})


@pytest.fixture(scope="module")
def whole(config, sample, device):
    """What it comes to when nothing cuts it off."""
    return run_training(config, sample, device)


@pytest.fixture(scope="module")
def saved_checkpoint(config, sample, device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "key"
    with pytest.raises(Cut):
        run_training(config, sample, device, saver=EveryStep(folder, noop), cut=7)
    return folder


@pytest.fixture
def checkpoint_dir(saved_checkpoint, tmp_path):
    """A folder with the checkpoint of a training that was cut off."""
    return shutil.copytree(saved_checkpoint, tmp_path / "run" / "key")


class Remembers:
    """A pickle of this creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def flip_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "a flipped bit": flip_bit,
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_refused_and_run_restarts(
    config, whole, sample, device, checkpoint_dir, tmp_path, capsys, damage
):
    (path,) = checkpoint_dir.glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    continued = run_training(config, sample, device, saver=checkpoint.FileCheckpointer(checkpoint_dir, noop))
    assert "SHA-256" in capsys.readouterr().err
    assert_same(whole, continued, tmp_path)


def test_refused_checkpoint_falls_back_to_previous(config, whole, sample, device, checkpoint_dir, tmp_path, capsys):
    (checkpoint_dir / f"999999999-{64 * '0'}.safetensors").write_bytes(b"damaged")
    (checkpoint_dir / "a_folder.safetensors").mkdir()
    saver = checkpoint.FileCheckpointer(checkpoint_dir, noop)
    continued = run_training(config, sample, device, saver=saver, begin=7)
    error = capsys.readouterr().err
    assert "its SHA-256 is not the one in its name): an earlier one is tried" in error
    assert "starts over" not in error
    assert_same(whole, continued, tmp_path)


def write_forged_checkpoint(folder, content):
    """Put content there under a name that its digest agrees with."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / f"000000009-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "content", [b"", b"hello", save({"a": torch.zeros(3)})], ids=["empty", "text", "other tensors"]
)
def test_invalid_checkpoint_content_is_refused(
    config, whole, sample, device, checkpoint_dir, tmp_path, capsys, content
):
    write_forged_checkpoint(checkpoint_dir, content)
    continued = run_training(config, sample, device, saver=checkpoint.FileCheckpointer(checkpoint_dir, noop))
    assert "refused" in capsys.readouterr().err
    assert_same(whole, continued, tmp_path)


def test_malicious_checkpoint_executes_nothing(config, sample, device, checkpoint_dir, tmp_path, capsys):
    write_forged_checkpoint(checkpoint_dir, pickle.dumps(Remembers(tmp_path / "executed")))
    run_training(config, sample, device, saver=checkpoint.FileCheckpointer(checkpoint_dir, noop))
    assert "refused" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_checkpoint_of_other_optimizer_is_refused(
    small_config, config, sample, device, checkpoint_dir, tmp_path, capsys
):
    """Though the folder's name forbids it: the weights that fit are not taken either."""
    optimizer = {"mine": {"class": "SGD", "lr": 0.01}}
    other = small_config(optimizers=optimizer, data=SMALLER, training={"epochs": 2, "batch_size": 10})
    continued = run_training(other, sample, device, saver=checkpoint.FileCheckpointer(checkpoint_dir, noop))
    assert "of another optimizer" in capsys.readouterr().err
    assert_same(run_training(other, sample, device), continued, tmp_path)


def test_interrupted_checkpoint_write_keeps_previous(
    config, whole, sample, device, checkpoint_dir, tmp_path, monkeypatch
):
    (path,) = checkpoint_dir.glob("*.safetensors")
    (checkpoint_dir / f".000000010-{'0' * 64}.safetensors.new").write_bytes(path.read_bytes()[:1000])
    continued = run_training(config, sample, device, saver=EveryStep(checkpoint_dir, noop), begin=7)
    assert_same(whole, continued, tmp_path)
    assert len(list(checkpoint_dir.iterdir())) == 1  # what the kill left is gone


def test_checkpoint_on_full_disk_gives_one_warning(config, whole, sample, device, tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise checkpoint.StorageError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(checkpoint.files, "write_atomic", full)
    monkeypatch.setattr(checkpoint, "_MIN_INTERVAL_S", 0)
    monkeypatch.setattr(checkpoint, "_MAX_OVERHEAD", 1e9)
    outcome = run_training(config, sample, device, saver=checkpoint.FileCheckpointer(tmp_path / "c", noop))
    monkeypatch.undo()
    assert capsys.readouterr().err.count("warning") == 1
    assert_same(whole, outcome, tmp_path)


def test_checkpoint_interval_follows_save_cost(config, sample, device, tmp_path, monkeypatch):
    """A save that costs a second is followed by 200 seconds without one."""
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    saver = checkpoint.FileCheckpointer(tmp_path, noop)
    saved = []

    def save(outcome, stepper):
        saved.append(clock[0])
        clock[0] += 1

    monkeypatch.setattr(saver, "save", save)
    while clock[0] < 650:
        clock[0] += 0.5
        saver.on_step_end(None, None)
    assert saved == [1.0, 202.0, 403.0, 604.0]


def test_run_fingerprint_covers_params_code_and_environment(small_config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    base = small_config()

    def key(config=base, name="adam", seed=0, threads=2):
        code = source_code.hash_code(Path(), "train", config.list_class_paths(name))
        return checkpoint.compute_fingerprint(config, name, seed, Environment(threads=threads), code)

    others = [
        key(name="sgd"),
        key(seed=1),
        key(threads=1),
        key(small_config(model="resnet18")),
        key(small_config(training={"epochs": 2})),
        key(small_config(training={"schedule": {"name": "cosine"}})),
        key(small_config(data={"train_size": 300})),
        key(small_config(optimizers={"sgd": {"class": "SGD", "lr": 0.01}, "adam": {"class": "Adam", "lr": 0.002}})),
    ]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_module_of_this_test.py").write_text("RATE = 1\n")
    unread = key()
    __import__("own_module_of_this_test")
    others.append(key())
    (tmp_path / "own_module_of_this_test.py").write_text("RATE = 2\n")
    others.append(key())
    assert len({unread, *others}) == len(others) + 1
    # What is about another run does not matter.
    more = small_config(optimizers={"sgd": {"class": "SGD", "lr": 0.5}, "adam": {"class": "Adam", "lr": 0.001}})
    assert key(more) == key()


def test_run_fingerprint_covers_installed_package_code(monkeypatch, tmp_path):
    """It lies in a folder `site-packages`; what lies in one below the working directory is not the repository's."""
    package, here = tmp_path / "lib" / "site-packages", tmp_path / "here"
    files = (
        package / "optlab" / "training" / "loop.py",
        here / ".venv" / "site-packages" / "other.py",
        here / "own.py",
    )
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        monkeypatch.setitem(sys.modules, f"of_this_test_{number}", SimpleNamespace(__file__=str(file)))
    monkeypatch.setattr(source_code, "_PACKAGE_FOLDER", package / "optlab")
    monkeypatch.chdir(here)
    modules = source_code.find_imported_modules()
    assert modules == {Path("src/optlab/training/loop.py"): files[0], Path("own.py"): files[2]}
