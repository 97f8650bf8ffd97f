"""The beginning of an optimizer of one's own: a module in custom/, a test of it, and an entry in params.yaml."""

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from optlab.config import editing, reading
from optlab.config.parameters import NAME_PATTERN
from optlab.system import files, repository
from optlab.system.errors import ConfigError

TESTS = Path("tests")

_MODULE = Template('''\
"""$class_, to be made one's own. As it stands, it is gradient descent with momentum."""

from collections.abc import Callable

import torch
from torch import Tensor


class $class_(torch.optim.Optimizer):
    """v ← momentum · v + ∂loss/∂w, then w ← w - lr · v."""

    def __init__(self, params: list[Tensor], lr: float = 0.01, momentum: float = 0.9) -> None:
        if lr < 0:
            raise ValueError(f"lr must be at least 0, not {lr}")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Move the weights once; returns the loss that `closure` computes, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]  # what is kept between steps belongs here: checkpoints have it
                if not state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"].mul_(group["momentum"]).add_(weight.grad)
                weight.add_(velocity, alpha=-group["lr"])
        return loss
''')

_TEST = Template('''\
"""$class_ goes on from a checkpoint as if nothing had happened, and learns."""

import pytest
import torch

from optlab.data import dataset
from optlab.training import checkpoint, loop


class StoppedError(Exception):
    """Stands for a kill."""


class Saving(checkpoint.Checkpoint):
    """Saves in the middle, where the training stops."""

    def after_step(self, outcome, stepper):
        if sum(map(len, outcome.step_losses)) == 5:
            self.save(outcome, stepper)
            raise StoppedError


def train(small_config, sample, saver=None, epochs=2):
    config = small_config(
        optimizers={"mine": {"class": "$name.$class_"}},
        data={"train_size": 100, "validation_size": 20},
        training={"epochs": epochs, "batch_size": 16},
    )
    return loop.train(config, "mine", 0, dataset.load(sample, config.data, 0), torch.device("cpu"), saver=saver)


def test_it_goes_on_from_a_checkpoint_to_the_same_weights(small_config, sample, tmp_path):
    whole = train(small_config, sample)
    with pytest.raises(StoppedError):
        train(small_config, sample, Saving(tmp_path, lambda: None))
    assert list(tmp_path.iterdir())
    continued = train(small_config, sample, checkpoint.Checkpoint(tmp_path, lambda: None))
    assert continued.step_losses == whole.step_losses
    for ours, theirs in zip(continued.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_learns(small_config, sample):
    """Mean losses of an epoch: on a hundred images, ten epochs are enough to see it."""
    first, *_, last = train(small_config, sample, epochs=10).epochs
    assert last.train_loss < first.train_loss
''')


def begin(name: str, params: Path) -> list[Path]:
    """Write the three; returns the paths of the module and of its test. The working directory is the top.

    Raises:
        ConfigError: the name cannot be used, or something of that name is there; then nothing is written.
        StorageError: a file cannot be written.
    """
    _check(name, params)
    class_ = "".join(part.capitalize() for part in name.split("_"))
    written = {repository.CUSTOM / f"{name}.py": _MODULE, TESTS / f"test_{name}.py": _TEST}
    for path in written:
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name, or edit that one")
    for path, template in written.items():
        files.write(path, template.substitute(name=name, class_=class_).encode())
    try:
        editing.add(params, name, f"{{class: {name}.{class_}, lr: 0.01}}")
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return list(written)


def _check(name: str, params: Path) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for it: a lower-case letter, then up to 99 of them, digits or _")
    if name in reading.load(params).optimizers:
        raise ConfigError(f"{params}: optimizers.{name} is there already: choose another name")
    if not (repository.CUSTOM / f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name!r} is the name of a Python module already: choose another one")
