"""What is tried before a training, or beside it, leaves no trace in the process that trains."""

import os
import subprocess
import sys

import pytest
import torch

from optlab.data import cifar10
from optlab.system import processes
from optlab.system.errors import ConfigError, ResourceError
from optlab.training import loop, optimizers
from optlab.training.models import build as build_model
from optlab.training.optimizer_factory import TrainingContext

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
from optlab.schema.parameters import Config
from optlab.orchestration import preflight_cache
preflight_cache.load_or_run(Config.model_validate_json(sys.argv[1]))
import torch
from optlab.training import class_import
class_import.resolve("counting.net", "model")
print(sys.modules["counting"].steps, sys.modules["counting"].built, len(torch.empty(0)))
"""


@pytest.fixture
def counting_module(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "counting.py").write_text(COUNTING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("counting", None)


def test_preflight_leaves_process_state_unchanged(counting_module, small_config):
    config = small_config(model="counting.net", optimizers={"mine": {"class": "counting.Counting", "lr": 0.1}})
    words = [sys.executable, "-c", PROGRAM, config.model_dump_json(by_alias=True)]
    for _ in range(2):  # without a remembered check, and with one
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.stdout == "0 0 0\n", result.stderr


def test_optimizer_probe_leaves_process_state_unchanged(counting_module, small_config, sample):
    """That a checkpoint is written depends on the time: it must decide no bit."""
    config = small_config(optimizers={"mine": {"class": "counting.Counting", "lr": 0.1}})
    loop.train(config, "mine", 0, cifar10.load(sample, config.data, 0), torch.device("cpu"))
    module = sys.modules["counting"]
    assert module.steps == 7
    context = TrainingContext.from_config(config, build_model("zilliax", seed=0))
    stepper = optimizers.build("mine", config.get_optimizer("mine"), context)
    assert stepper.checkpointed_optimizers is None  # it goes on from more than the state that it gives
    assert module.steps == 7


def test_forked_call_returns_results_and_raises_errors(capfd):
    assert processes.call_in_fork(lambda: [1, "two", None]) == [1, "two", None]

    def refuse():
        raise ConfigError("params.yaml: so it is")

    with pytest.raises(ConfigError, match=r"^params.yaml: so it is$"):
        processes.call_in_fork(refuse)
    with pytest.raises(ChildProcessError, match="ZeroDivisionError: division by zero"):
        processes.call_in_fork(lambda: 1 / 0)
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(ResourceError, match=r"stopped \(exit status -9\)"):
        processes.call_in_fork(lambda: os.kill(os.getpid(), 9))
