"""Learning rates that a class sets itself, or has not: a constant schedule touches none of them."""

import pytest
import ready_entries
import torch

from optlab.data import cifar10
from optlab.preflight import checks
from optlab.schema.optimizer import OptimizerSpec
from optlab.system.errors import ConfigError, StepError
from optlab.training import checkpoint, loop, models
from optlab.training.optimizer_factory import TrainingContext, resolve_optimizer
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
def class_path(tmp_path, monkeypatch):
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
    return loop.train(config, "mine", 0, cifar10.load(sample, config.data, 0), CPU, checkpointer=saver)


def test_constant_schedule_keeps_rate_set_by_class(class_path, small_config, sample):
    own_decay = trained(config_of(small_config, {"class": class_path("Decays"), "lr": 0.1}), sample)
    plain = trained(config_of(small_config, {"class": "SGD", "lr": 0.1}), sample)
    assert [epoch.lr for epoch in own_decay.epochs] == pytest.approx([0.1 * 0.9**5, 0.1 * 0.9**10])
    assert own_decay.step_losses[0][:2] == plain.step_losses[0][:2]
    assert own_decay.step_losses[0][2] != plain.step_losses[0][2]


def test_pytorch_optimizer_asgd_controls_own_learning_rate(small_config, sample):
    outcome = trained(config_of(small_config, {"class": "pytorch_optimizer.ASGD", "lr": 0.01}), sample)
    assert outcome.epochs[-1].lr < 0.002  # its steps lower it five times, and never far up again


COSINE = {"name": "cosine"}


def test_schedule_is_rejected_for_rate_setting_class(class_path, small_config):
    for entry in ({"class": class_path("Decays"), "lr": 0.1}, {"class": "pytorch_optimizer.ASGD"}):
        with pytest.raises(
            ConfigError, match=r"optimizers\.mine: \S+ sets its learning rate itself, so the schedule cosine"
        ):
            checks.check_config(config_of(small_config, entry | {"schedule": COSINE}))
        assert checks.check_config(config_of(small_config, entry)) == []


def test_schedule_multiplies_rate_changed_during_training(class_path, small_config, sample):
    step = {"name": "step", "step_epochs": 1, "gamma": 0.1}
    config = config_of(small_config, {"class": class_path("DecaysLater"), "lr": 0.1, "schedule": step}, epochs=5)
    (warning,) = checks.check_config(config)
    assert "can set its learning rate itself: the schedule step then multiplies" in warning
    assert [epoch.lr for epoch in trained(config, sample).epochs] == pytest.approx([0.1, 1e-2, 1e-3, 0.5e-4, 0.5e-5])


class StoppedError(Exception):
    """Stands for a kill."""


class Stopping(checkpoint.FileCheckpointer):
    def on_step_end(self, outcome, stepper):
        if sum(map(len, outcome.step_losses)) == 22:
            self.save(outcome, stepper)
            raise StoppedError


def test_rate_set_by_class_resumes_from_checkpoint(class_path, small_config, sample, tmp_path):
    config = config_of(small_config, {"class": class_path("DecaysLater"), "lr": 0.1, "schedule": COSINE}, epochs=5)
    (tmp_path / "saved" / "a_folder.safetensors").mkdir(parents=True)
    stopping = Stopping(tmp_path / "saved", lambda: None)
    with pytest.raises(StoppedError):
        trained(config, sample, stopping)
    continued = trained(config, sample, checkpoint.FileCheckpointer(tmp_path / "saved", lambda: None))
    whole = trained(config, sample)
    assert (continued.epochs, continued.step_losses) == (whole.epochs, whole.step_losses)


def test_class_without_learning_rate_records_none(class_path, small_config, sample):
    entries = ({"class": class_path("Without")}, {"class": "pytorch_optimizer.AdaFactor", "lr": None})
    for entry in entries:
        assert {epoch.lr for epoch in trained(config_of(small_config, entry), sample).epochs} == {None}
        with pytest.raises(
            ConfigError, match=r"has no learning rate, so the schedule cosine is not for it: add `sched"
        ):
            checks.check_config(config_of(small_config, entry | {"schedule": COSINE}))


def test_param_group_added_in_step_is_scheduled(class_path, small_config, sample):
    config = config_of(small_config, {"class": class_path("Adds"), "lr": 0.1, "schedule": COSINE})
    checks.check_config(config)
    assert trained(config, sample).status == "completed"
    model = models.build("zilliax", seed=0)
    stepper = build("mine", config.get_optimizer("mine"), TrainingContext.from_config(config, model))
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    stepper.scale_lr(0.5)
    stepper.step(lambda: torch.tensor(0.0))
    stepper.scale_lr(0.25)
    assert [group["lr"] for group in stepper.optimizers[0].param_groups] == pytest.approx([0.025, 0.25])


def test_optimizer_with_foreign_parameters_is_rejected(class_path, small_config, sample):
    with pytest.raises(ConfigError, match=r"fails in its first step: RuntimeError: its step has put other parameters"):
        checks.check_config(config_of(small_config, {"class": class_path("Replaces"), "lr": 0.1}))
    with pytest.raises(
        StepError, match=r"step 5 fails: RuntimeError: its step has put other parameters than the model's"
    ):
        trained(config_of(small_config, {"class": class_path("ReplacesLater"), "lr": 0.1}), sample)


def test_catalog_entries_setting_own_rate_are_known():
    """Those whose steps do so at once would be given a constant schedule."""
    own = [
        each.name
        for each in ready_entries.fill_in().values()
        if any(map(checks.can_set_lr, resolve_optimizer(each.name, OptimizerSpec.model_validate(each.values)).classes))
    ]
    assert own == ["swats"]
