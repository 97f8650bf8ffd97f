"""The stand-in for the compiler that torch's optimizers import."""

import subprocess
import sys
from pathlib import Path

from optlab.training import uncompiled

PROGRAM = """
import sys, torch
from optlab.training import models, optimizers, uncompiled
from conftest import _small_config

optimizers.check(_small_config())
assert isinstance(sys.modules["torch._dynamo"], uncompiled._StandIn)
assert not hasattr(sys.modules["torch._dynamo"], "__file__")  # as whoever looks through all modules asks
print("without")
model, images = models.build("zilliax", 0), torch.zeros(2, 3, 32, 32)
assert torch.equal(torch.compile(model, backend="eager")(images), model(images))
assert not isinstance(sys.modules["torch._dynamo"], uncompiled._StandIn)
optimizers.check(_small_config())
import torch._dynamo.config
print("with")
"""


def test_an_optimizer_leaves_the_compiler_out_and_who_asks_gets_it():
    result = subprocess.run([sys.executable, "-c", PROGRAM],
                            cwd=Path(__file__).parent, capture_output=True, text=True)  # fmt: skip
    assert result.stdout.split() == ["without", "with"], result.stderr


def test_what_is_there_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", "the real one")
    uncompiled.install()
    assert sys.modules["torch._dynamo"] == "the real one"
