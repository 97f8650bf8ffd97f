"""Add an entry to a params.yaml, and leave every other byte of it as it is.

The beginning of an optimizer of one's own: a module in custom/, a test of it, and an entry in params.yaml.
"""

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from optlab.config import loader
from optlab.schema.parameters import NAME_PATTERN
from optlab.system import files, repository
from optlab.system.errors import ConfigError

OPTIMIZERS_KEY = "optimizers"


def add_entry(path: Path, name: str, entry: str, comment: str = "") -> None:
    """Put the entry after the last one; on one line.

    Args:
        path: of a params.yaml.
        entry: a mapping in braces.

    Raises:
        ConfigError: the file cannot be used as it is, has an entry of that name, or could not be used with this one.
        StorageError: it cannot be written.
    """
    if name in loader.load(path).optimizers:
        raise ConfigError(f"{path}: {OPTIMIZERS_KEY}.{name} is there already: remove or rename that one")
    before = path.read_bytes().decode()
    after = _insert_line(before, f"{name}: {entry}", f"  # {comment}" if comment else "")
    values = _parse_yaml(before)
    values[OPTIMIZERS_KEY] |= {name: _parse_yaml(entry)}
    if _parse_yaml(after) != values:
        raise ConfigError(
            f"{path}: {OPTIMIZERS_KEY} is written in a way that cannot be added to: add `{name}: {entry}`"
        )
    loader.parse(after, path)
    files.write_atomic(path, after.encode())


def _parse_yaml(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except Exception:  # no YAML, so it is not what it should be
        return None


def _insert_line(text: str, line: str, comment: str) -> str:
    """The text with the line in its mapping of optimizers."""
    optimizers = _find_optimizers(YAML(typ="rt", pure=True).compose(text))
    last_key, last = optimizers.value[-1]
    if optimizers.flow_style:
        end = last.end_mark.index
        return f"{text[:end]}, {line}{text[end:]}"
    lines = text.splitlines(keepends=True)
    line_index = last.end_mark.line
    if last.end_mark.column or not isinstance(last, MappingNode) or last.flow_style:
        line_index += 1  # it ends within a line
    else:
        while not lines[line_index - 1].strip() or lines[line_index - 1].lstrip().startswith("#"):
            line_index -= 1  # what follows it in a block ends where something else begins
    newline = "\r\n" if "\r\n" in text else "\n"
    if not lines[line_index - 1].endswith("\n"):
        lines[line_index - 1] += newline
    lines.insert(line_index, f"{' ' * last_key.start_mark.column}{line}{comment}{newline}")
    return "".join(lines)


def _find_optimizers(top: Node) -> MappingNode:
    found = next(value for key, value in top.value if key.value == OPTIMIZERS_KEY)
    assert isinstance(found, MappingNode)
    return found


TESTS_FOLDER = Path("tests")

_MODULE_TEMPLATE = Template('''\
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

_TEST_TEMPLATE = Template('''\
"""$class_ goes on from a checkpoint as if nothing had happened, and learns."""

import pytest
import torch

from optlab.data import cifar10
from optlab.training import checkpoint, loop


class StoppedError(Exception):
    """Stands for a kill."""


class Saving(checkpoint.FileCheckpointer):
    """Saves in the middle, where the training stops."""

    def on_step_end(self, result, driver):
        if sum(map(len, result.step_losses)) == 5:
            self.save(result, driver)
            raise StoppedError


def train(small_config, sample, checkpointer=None, epochs=2):
    config = small_config(
        optimizers={"mine": {"class": "$name.$class_"}},
        data={"train_size": 100, "validation_size": 20},
        training={"epochs": epochs, "batch_size": 16},
    )
    return loop.train(config, "mine", 0, cifar10.load(sample, config.data, 0), torch.device("cpu"),
    checkpointer=checkpointer)


def test_it_goes_on_from_a_checkpoint_to_the_same_weights(small_config, sample, tmp_path):
    whole = train(small_config, sample)
    with pytest.raises(StoppedError):
        train(small_config, sample, Saving(tmp_path, lambda: None))
    assert list(tmp_path.iterdir())
    continued = train(small_config, sample, checkpoint.FileCheckpointer(tmp_path, lambda: None))
    assert continued.step_losses == whole.step_losses
    for ours, theirs in zip(continued.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_learns(small_config, sample):
    """Mean losses of an epoch: on a hundred images, ten epochs are enough to see it."""
    first, *_, last = train(small_config, sample, epochs=10).epochs
    assert last.train_loss < first.train_loss
''')


def create_optimizer(name: str, params: Path) -> list[Path]:
    """Write the three; returns the paths of the module and of its test. The working directory is the top.

    Raises:
        ConfigError: the name cannot be used, or something of that name is there; then nothing is written.
        StorageError: a file cannot be written.
    """
    _check_name(name, params)
    class_ = "".join(part.capitalize() for part in name.split("_"))
    templates = {repository.CUSTOM / f"{name}.py": _MODULE_TEMPLATE, TESTS_FOLDER / f"test_{name}.py": _TEST_TEMPLATE}
    for path in templates:
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name, or edit that one")
    for path, template in templates.items():
        files.write_atomic(path, template.substitute(name=name, class_=class_).encode())
    try:
        add_entry(params, name, f"{{class: {name}.{class_}, lr: 0.01}}")
    except BaseException:
        for path in templates:
            path.unlink()
        raise
    return list(templates)


def _check_name(name: str, params: Path) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for it: a lower-case letter, then up to 99 of them, digits or _")
    if name in loader.load(params).optimizers:
        raise ConfigError(f"{params}: optimizers.{name} is there already: choose another name")
    if not (repository.CUSTOM / f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name!r} is the name of a Python module already: choose another one")
