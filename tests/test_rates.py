"""Learning rates that a class sets itself, or has not: a constant schedule touches none of them."""

import pytest
import torch

from optlab.config import zoo
from optlab.config.entries import OptimizerSpec
from optlab.data import dataset
from optlab.system.errors import ConfigError, StepError
from optlab.training import checkpoint, loop, models, optimizers
from optlab.training.classes import entry_of, sets_rate
from optlab.training.construction import Context
from optlab.training.optimizers import build

CPU = torch.device("cpu")
CLASSES = """
import torch

class Decays(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["lr"] *= 0.9

class DecaysLater(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["left"] = group.get("left", 20) - 1
            if not group["left"]:
                group["lr"] *= 0.5

class Without(torch.optim.Optimizer):
    def __init__(self, params, lr: float | None = None, rho: float = 0.01):
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for value in group["params"]:
                value -= group["rho"] * value.grad

class Adds(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        if len(self.param_groups) == 1:
            last = self.param_groups[0]["params"].pop()
            self.add_param_group({"params": [last], "lr": 0.5})

class Replaces(torch.optim.SGD):
    after = 0

    def step(self, closure=None):
        super().step()
        self.after -= 1
        for group in self.param_groups:
            if self.after < 0:
                group["params"] = [torch.nn.Parameter(value.detach().clone()) for value in group["params"]]

class ReplacesLater(Replaces):
    after = 5
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that says how params.yaml names one of the classes."""
    name = f"own_rates_{abs(hash(tmp_path))}"
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / f"{name}.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "custom"))
    return lambda cls: f"{name}.{cls}"


def config_of(small_config, entry, epochs=2):
    return small_config(
        optimizers={"mine": entry}, data={"train_size": 200, "validation_size": 20},
        training={"epochs": epochs, "batch_size": 40},
    )  # fmt: skip


def trained(config, sample, saver=None):
    return loop.train(config, "mine", 0, dataset.load(sample, config.data, 0), CPU, saver=saver)


def test_a_rate_that_a_class_sets_is_left_alone_under_a_constant_schedule(own, small_config, sample):
    own_decay = trained(config_of(small_config, {"class": own("Decays"), "lr": 0.1}), sample)
    plain = trained(config_of(small_config, {"class": "SGD", "lr": 0.1}), sample)
    assert [epoch.lr for epoch in own_decay.epochs] == pytest.approx([0.1 * 0.9**5, 0.1 * 0.9**10])
    assert own_decay.step_losses[0][:2] == plain.step_losses[0][:2]
    assert own_decay.step_losses[0][2] != plain.step_losses[0][2]


def test_asgd_of_a_collection_ends_where_it_takes_itself(small_config, sample):
    outcome = trained(config_of(small_config, {"class": "pytorch_optimizer.ASGD", "lr": 0.01}), sample)
    assert outcome.epochs[-1].lr < 0.002  # its steps lower it five times, and never far up again


COSINE = {"name": "cosine"}


def test_another_schedule_is_refused_for_a_class_that_sets_its_rate(own, small_config):
    for entry in ({"class": own("Decays"), "lr": 0.1}, {"class": "pytorch_optimizer.ASGD"}):
        with pytest.raises(
            ConfigError, match=r"optimizers\.mine: \S+ sets its learning rate itself, so the schedule cosine"
        ):
            optimizers.check(config_of(small_config, entry | {"schedule": COSINE}))
        assert optimizers.check(config_of(small_config, entry)) == []


def test_another_schedule_multiplies_a_rate_that_is_set_later(own, small_config, sample):
    step = {"name": "step", "step_epochs": 1, "gamma": 0.1}
    config = config_of(small_config, {"class": own("DecaysLater"), "lr": 0.1, "schedule": step}, epochs=5)
    (warning,) = optimizers.check(config)
    assert "can set its learning rate itself: the schedule step then multiplies" in warning
    assert [epoch.lr for epoch in trained(config, sample).epochs] == pytest.approx([0.1, 1e-2, 1e-3, 0.5e-4, 0.5e-5])


class StoppedError(Exception):
    """Stands for a kill."""


class Stopping(checkpoint.Checkpoint):
    def after_step(self, outcome, stepper):
        if sum(map(len, outcome.step_losses)) == 22:
            self.save(outcome, stepper)
            raise StoppedError


def test_a_rate_that_was_set_goes_on_from_a_checkpoint(own, small_config, sample, tmp_path):
    config = config_of(small_config, {"class": own("DecaysLater"), "lr": 0.1, "schedule": COSINE}, epochs=5)
    (tmp_path / "saved" / "a_folder.safetensors").mkdir(parents=True)
    stopping = Stopping(tmp_path / "saved", lambda: None)
    with pytest.raises(StoppedError):
        trained(config, sample, stopping)
    continued = trained(config, sample, checkpoint.Checkpoint(tmp_path / "saved", lambda: None))
    whole = trained(config, sample)
    assert (continued.epochs, continued.step_losses) == (whole.epochs, whole.step_losses)


def test_a_class_without_a_learning_rate_trains_and_none_is_recorded(own, small_config, sample):
    entries = ({"class": own("Without")}, {"class": "pytorch_optimizer.AdaFactor", "lr": None})
    for entry in entries:
        assert {epoch.lr for epoch in trained(config_of(small_config, entry), sample).epochs} == {None}
        with pytest.raises(
            ConfigError, match=r"has no learning rate, so the schedule cosine is not for it: add `sched"
        ):
            optimizers.check(config_of(small_config, entry | {"schedule": COSINE}))


def test_a_group_that_a_step_adds_is_trained_and_scaled(own, small_config, sample):
    config = config_of(small_config, {"class": own("Adds"), "lr": 0.1, "schedule": COSINE})
    optimizers.check(config)
    assert trained(config, sample).status == "completed"
    model = models.build("zilliax", seed=0)
    stepper = build("mine", config.optimizer("mine"), Context.of(config, model))
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    stepper.scale_lr(0.5)
    stepper.step(lambda: torch.tensor(0.0))
    stepper.scale_lr(0.25)
    assert [group["lr"] for group in stepper.optimizers[0].param_groups] == pytest.approx([0.025, 0.25])


def test_parameters_that_are_not_the_models_are_refused(own, small_config, sample):
    with pytest.raises(ConfigError, match=r"fails in its first step: RuntimeError: its step has put other parameters"):
        optimizers.check(config_of(small_config, {"class": own("Replaces"), "lr": 0.1}))
    with pytest.raises(
        StepError, match=r"step 5 fails: RuntimeError: its step has put other parameters than the model's"
    ):
        trained(config_of(small_config, {"class": own("ReplacesLater"), "lr": 0.1}), sample)


def test_which_ready_entries_set_their_rate():
    """Those whose steps do so at once would be given a constant schedule."""
    own = [each.name for each in zoo.KNOWN
           if any(map(sets_rate, entry_of(each.name, OptimizerSpec.model_validate(each.values)).classes))]  # fmt: skip
    assert own == ["swats"]
