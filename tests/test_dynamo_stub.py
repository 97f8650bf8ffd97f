"""The stand-in for the compiler that torch's optimizers import."""

import subprocess
import sys
from pathlib import Path

from optlab.training import dynamo_stub

PROGRAM = """
import sys, torch
from optlab.preflight import checks
from optlab.training import models, dynamo_stub
from conftest import _small_config

checks.check_config(_small_config())
assert isinstance(sys.modules["torch._dynamo"], dynamo_stub._DynamoStub)
assert not hasattr(sys.modules["torch._dynamo"], "__file__")  # as whoever looks through all modules asks
print("without")
model, images = models.build("zilliax", 0), torch.zeros(2, 3, 32, 32)
assert torch.equal(torch.compile(model, backend="eager")(images), model(images))
assert not isinstance(sys.modules["torch._dynamo"], dynamo_stub._DynamoStub)
checks.check_config(_small_config())
import torch._dynamo.config
print("with")
"""


def test_dynamo_stub_is_replaced_on_real_use():
    result = subprocess.run([sys.executable, "-c", PROGRAM],
                            cwd=Path(__file__).parent, capture_output=True, text=True)  # fmt: skip
    assert result.stdout.split() == ["without", "with"], result.stderr


def test_dynamo_stub_keeps_already_imported_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", "the real one")
    dynamo_stub.install()
    assert sys.modules["torch._dynamo"] == "the real one"
