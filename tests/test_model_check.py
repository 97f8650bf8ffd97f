"""A model is checked for what will be done with it: training steps of the sizes that occur, and evaluations."""

import sys

import bad_input
import bad_models
import pytest
import torch

from optlab.data import cifar10
from optlab.preflight import checks
from optlab.system.errors import ConfigError, StepError
from optlab.training import guards, loop

STRANGE = """
import torch

class Threads(torch.optim.SGD):
    def step(self, closure=None):
        torch.set_num_threads(3)
        return super().step()

class ThreadsLater(torch.optim.SGD):
    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 3:
            torch.set_num_threads(3)
        return super().step()
"""


@pytest.fixture
def project_dir(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", bad_models.MODELS)
def test_unusual_model_is_refused_or_accepted_cleanly(project_dir, kind):
    before = guards.read_torch_settings()
    assert bad_input.check_model(kind) in (bad_input.REFUSED, bad_input.ACCEPTED)
    assert guards.read_torch_settings() == before


BROKEN_PART = """
from torch import nn

class Part(nn.Flatten):
    def initialize_from_images(self, images):
        raise ValueError(tuple(images.shape))

def net():
    return nn.Sequential(Part(), nn.Linear(3072, 10))
"""


def test_failing_initialization_from_images_is_refused(project_dir, small_config):
    (project_dir / "custom" / "broken_part.py").write_text(BROKEN_PART)
    said = r"0\.initialize_from_images fails: ValueError: \(100, 3, 32, 32\)$"
    with pytest.raises(ConfigError, match=rf"^params.yaml: model: broken_part.net: {said}"):
        checks.check_config(small_config(model="broken_part.net"))


def test_fast_model_passes_check_without_images(small_config):
    assert checks.check_config(small_config(model="fast")) == []


def test_class_changing_process_settings_is_refused(project_dir, small_config, sample):
    (project_dir / "custom" / "strange_1.py").write_text(STRANGE)
    said = r"changes torch's number of threads from 2 to 3, for the whole process: remove that$"
    with pytest.raises(ConfigError, match=rf"^params.yaml: optimizers.mine: strange_1.Threads {said}"):
        checks.check_config(small_config(optimizers={"mine": {"class": "strange_1.Threads", "lr": 0.1}}))
    later = small_config(optimizers={"mine": {"class": "strange_1.ThreadsLater", "lr": 0.1}})
    checks.check_config(later)
    with pytest.raises(StepError, match=rf"^step 2 {said}"):
        loop.train(later, "mine", 0, cifar10.load(sample, later.data, 0), torch.device("cpu"))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("model", "cls", "warned"), (
    ("conv6", "schedulefree.SGDScheduleFree", True), ("zilliax", "schedulefree.SGDScheduleFree", False),
    ("conv6", "SGD", False),
))  # fmt: skip
def test_averaging_optimizer_with_batch_norm_gives_warning(small_config, model, cls, warned):
    warnings = checks.check_config(small_config(model=model, optimizers={"mine": {"class": cls, "lr": 0.1}}))
    assert [each.startswith("warning: optimizers.mine: schedulefree.SGDScheduleFree is ev") for each in warnings] == (
        [True] if warned else []
    )
