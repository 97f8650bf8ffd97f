"""What is tried before a training, or beside it, leaves no trace in the process that trains."""

import os
import subprocess
import sys

import pytest
import torch

from optlab.data import dataset
from optlab.system import forked
from optlab.system.errors import ConfigError, LackError
from optlab.training import loop, optimizers
from optlab.training.construction import Context
from optlab.training.models import build as build_model

COUNTING = """
import torch
steps = built = 0

class Counting(torch.optim.SGD):
    def step(self, closure=None):
        global steps
        steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / steps
        return super().step()

def net():
    global built
    built += 1
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
"""
PROGRAM = """
import sys
from optlab.config.parameters import Config
from optlab.execution import checked
checked.ensure(Config.model_validate_json(sys.argv[1]))
import torch
from optlab.training import models
models.resolve("counting.net", "model")
print(sys.modules["counting"].steps, sys.modules["counting"].built, len(torch.empty(0)))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "counting.py").write_text(COUNTING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("counting", None)


def test_a_check_leaves_none(here, small_config):
    config = small_config(model="counting.net", optimizers={"mine": {"class": "counting.Counting", "lr": 0.1}})
    words = [sys.executable, "-c", PROGRAM, config.model_dump_json(by_alias=True)]
    for _ in range(2):  # without a remembered check, and with one
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.stdout == "0 0 0\n", result.stderr


def test_what_is_found_out_about_a_class_leaves_none(here, small_config, sample):
    """That a checkpoint is written depends on the time: it must decide no bit."""
    config = small_config(optimizers={"mine": {"class": "counting.Counting", "lr": 0.1}})
    loop.train(config, "mine", 0, dataset.load(sample, config.data, 0), torch.device("cpu"))
    module = sys.modules["counting"]
    assert module.steps == 7
    context = Context.of(config, build_model("zilliax", seed=0))
    stepper = optimizers.build("mine", config.optimizer("mine"), context)
    assert stepper.stateful is None  # it goes on from more than the state that it gives
    assert module.steps == 7


def test_what_a_child_returns_and_raises(capfd):
    assert forked.call(lambda: [1, "two", None]) == [1, "two", None]

    def refuse():
        raise ConfigError("params.yaml: so it is")

    with pytest.raises(ConfigError, match=r"^params.yaml: so it is$"):
        forked.call(refuse)
    with pytest.raises(ChildProcessError, match="ZeroDivisionError: division by zero"):
        forked.call(lambda: 1 / 0)
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(LackError, match=r"stopped \(exit status -9\)"):
        forked.call(lambda: os.kill(os.getpid(), 9))
