"""The stand-in for the compiler that torch's optimizers import."""

import sys

import pytest
import torch

from optlab.training import models, optimizers, uncompiled


@pytest.fixture
def without(monkeypatch):
    """As in a process that has not imported the compiler."""
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.delattr(torch, "_dynamo", raising=False)


def test_an_optimizer_s_step_leaves_the_compiler_out(without, small_config):
    optimizers.check(small_config())
    assert isinstance(sys.modules["torch._dynamo"], uncompiled._StandIn)
    assert not hasattr(sys.modules["torch._dynamo"], "__file__")  # as whoever looks through all modules asks


def test_a_model_that_compiles_itself_gets_it(without):
    uncompiled.install()
    model, images = models.build("zilliax", 0), torch.zeros(2, 3, 32, 32)
    assert torch.equal(torch.compile(model, backend="eager")(images), model(images))
    assert not isinstance(sys.modules["torch._dynamo"], uncompiled._StandIn)


def test_what_is_there_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", "the real one")
    uncompiled.install()
    assert sys.modules["torch._dynamo"] == "the real one"
