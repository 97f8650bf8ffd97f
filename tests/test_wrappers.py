"""Optimizers around another optimizer, steps in two passes, and what a class is given by its arguments' names."""

import functools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_checkpoint import assert_same, resume_after_interruptions
from test_optimizers import assert_same_weights, batches, build_optimizer, module, one_thread, train_by_hand, train_ours
from test_param_groups import SMALL, train_run

from optlab.preflight import checks
from optlab.system.errors import ConfigError, ResourceError, StepError
from optlab.training import determinism, models, optimizers
from optlab.training.optimizer_driver import flatten_wrappers
from optlab.training.optimizer_factory import TrainingContext

__all__ = ["batches", "module", "one_thread"]  # fixtures

SOURCE = '''
import torch


class Sam(torch.optim.Optimizer):
    """Foret et al. 2021; takes its base as a class, as most implementations do."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, dict(rho=rho, **kwargs))
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        values = [value for group in self.param_groups for value in group["params"]]
        norm = torch.stack([value.grad.norm() for value in values]).norm() + 1e-12
        for group in self.param_groups:
            for value in group["params"]:
                self.state[value]["old"] = value.clone()
                value.add_(value.grad * (group["rho"] / norm))

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for value in group["params"]:
                value.copy_(self.state[value]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class TwoSteps(Sam):
    """The same without a closure."""

    def step(self):
        raise RuntimeError("call first_step and second_step")


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019; takes its base as an instance."""

    def __init__(self, optimizer, k=2, alpha=0.5):
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.param_groups, self.defaults, self.state = optimizer.param_groups, dict(k=k, alpha=alpha), {}
        self.slow = [value.detach().clone() for group in self.param_groups for value in group["params"]]
        self.steps = 0

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            values = [value for group in self.param_groups for value in group["params"]]
            for slow, value in zip(self.slow, values):
                slow.add_(value - slow, alpha=self.alpha)
                value.copy_(slow)
        return loss

    def state_dict(self):
        return {"steps": self.steps, "slow": [value.clone() for value in self.slow]}

    def load_state_dict(self, state):
        self.steps, self.slow = state["steps"], [value.clone() for value in state["slow"]]


class Forgetful(torch.optim.SGD):
    """Keeps a state that it does not give."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.count
        return super().step(closure)


class Passing(torch.optim.SGD):
    """Takes whatever it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Hooked(torch.optim.Optimizer):
    """Updates where the gradients come, and takes the model for that."""

    def __init__(self, model, lr=0.1):
        super().__init__(model.parameters(), dict(lr=lr))
        self.updates = []
        for value in model.parameters():
            value.register_post_accumulate_grad_hook(self.updates.append)

    def step(self, closure=None):
        closure()


class Whole(torch.optim.SGD):
    """Takes the model and how long it will be trained."""

    def __init__(self, model, total_steps, num_data, lr=0.1):
        super().__init__(model.parameters(), lr=lr)
        self.defaults = dict(self.defaults, total_steps=total_steps, num_data=num_data)


class Flagged(torch.optim.SGD):
    """Wants a flag of every group."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            if 'use_it' not in group:
                raise ValueError("`use_it` must be set")


class Flat(torch.optim.SGD):
    """Finds out late that it takes matrices only."""

    def step(self, closure=None):
        if any(value.ndim != 2 for group in self.param_groups for value in group["params"]):
            raise ValueError("2-D only")
        return super().step(closure)


class Late(torch.optim.SGD):
    """Fails in its fourth step."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        if self.count == 4:
            raise RuntimeError("enough")
        return super().step(closure)
'''
BASE = {"class": "SGD", "lr": 0.1, "momentum": 0.9}


@pytest.fixture
def path(module):
    """The dotted path of a class above."""
    name = module(SOURCE)
    return lambda cls: f"{name}.{cls}"


@pytest.fixture(scope="module")
def device(small_config):
    return determinism.configure_torch(small_config().training)


class PlainSam:
    """Sharpness-aware minimization in a few lines: climb by rho along the gradient, take the gradient there, step."""

    def __init__(self, parameters):
        self.values = list(parameters)
        self.base = torch.optim.SGD(self.values, lr=0.1, momentum=0.9)

    def step(self, model, images, labels):
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, self.values)
        norm = torch.stack([each.norm() for each in gradients]).norm() + 1e-12
        before = [value.detach().clone() for value in self.values]
        with torch.no_grad():
            for value, gradient in zip(self.values, gradients, strict=True):
                value.add_(gradient * (0.05 / norm))
        self.base.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        with torch.no_grad():
            for value, old in zip(self.values, before, strict=True):
                value.copy_(old)
        self.base.step()
        return loss.item()


@pytest.mark.parametrize("cls", ["Sam", "TwoSteps"])
def test_sharpness_aware_minimization_equals_plain_torch(path, batches, cls):
    ours, losses = train_ours(batches, **{"class": path(cls), "base": BASE})
    theirs = models.build("zilliax", seed=0)
    plain = PlainSam(theirs.parameters())
    assert [plain.step(theirs, *batch) for batch in batches] == pytest.approx(losses, rel=1e-6)
    without, _ = train_ours(batches, **BASE)
    for value, own, alone in zip(theirs.parameters(), ours.parameters(), without.parameters(), strict=True):
        assert torch.allclose(value, own, rtol=0, atol=1e-7)  # the norm's last bit
        assert not torch.allclose(alone, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cls", "gradients"), [("Sam", 2), ("TwoSteps", 2), ("Lookahead", 1)])
def test_wrapper_gradients_are_counted(path, small_config, sample, device, cls, gradients):
    config = small_config(optimizers={"mine": {"class": path(cls), "base": BASE}}, **SMALL)
    checks.check_config(config)
    assert [epoch.gradients for epoch in train_run(config, sample, device).epochs] == [5 * gradients] * 2


def test_lookahead_wraps_base_optimizer_instance(path, batches):
    """Before the second step is averaged with the start: half of what the base did in two."""
    ours, _ = train_ours(batches, **{"class": path("Lookahead"), "base": BASE})
    base, _ = train_by_hand(batches, lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9))
    start = models.build("zilliax", seed=0)
    for value, own, first in zip(ours.parameters(), base.parameters(), start.parameters(), strict=True):
        assert torch.allclose(value, first + (own - first) / 2, atol=1e-6)


def test_base_learning_rate_is_scaled_and_logged(path):
    for cls in ("Sam", "Lookahead"):
        _, stepper = build_optimizer(**{"class": path(cls), "base": BASE})
        values = stepper.get_hyperparameters()
        assert (values["class"], values["base.class"], values["base.momentum"]) == (cls, "SGD", 0.9)
        stepper.scale_lr(0.5)
        stepper.scale_lr(0.25)
        assert stepper.lr == 0.025


@pytest.mark.parametrize("cls", ["Sam", "Lookahead"])
def test_wrapper_resumes_to_identical_bytes(path, small_config, sample, device, tmp_path, cls):
    schedule = {"name": "cosine", "warmup_epochs": 0}
    config = small_config(optimizers={"mine": {"class": path(cls), "base": BASE, "schedule": schedule}}, **SMALL)
    continued = resume_after_interruptions(config, sample, device, tmp_path / "checkpoint", 3, 7)
    assert_same(train_run(config, sample, device), continued, tmp_path)


def test_param_groups_reach_wrapped_optimizer(path):
    for cls in ("Sam", "Lookahead"):
        entry = {"class": path(cls), "base": BASE, "groups": [{"match": "*.bias", "lr": 0.2}]}
        _, stepper = build_optimizer(**entry)
        _, inner = flatten_wrappers(stepper.optimizers[0])
        assert [group["lr"] for group in inner.param_groups] == [0.1, 0.2]


def test_constructor_arguments_are_injected_by_name(path, small_config):
    config = small_config(optimizers={"mine": {"class": path("Whole"), "lr": 0.2}}, **SMALL)
    stepper = optimizers.build(
        "mine", config.get_optimizer("mine"), TrainingContext.from_config(config, models.build("zilliax", seed=0))
    )
    values = stepper.get_hyperparameters()
    assert (values["total_steps"], values["num_data"], values["lr"]) == (10, 100, 0.2)
    given = small_config(optimizers={"mine": {"class": path("Whole"), "total_steps": 7}}, **SMALL)
    again = optimizers.build(
        "mine", given.get_optimizer("mine"), TrainingContext.from_config(given, models.build("zilliax", seed=0))
    )
    assert again.get_hyperparameters()["total_steps"] == 7


def refusal(config):
    with pytest.raises(ConfigError) as caught:
        checks.check_config(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


REFUSED = {
    "no base": ("Sam", {}, "optimizers.mine: {} wraps another optimizer: add `base: {{class: SGD, lr: 0.1}}`"),
    "a base for nobody": ("Late", {"base": BASE}, "optimizers.mine.base: {} wraps no other optimizer: remove it"),
    "misspelt base": ("Sam", {"base": {"class": "Sdg"}}, "optimizers.mine.base.class: Sdg: unknown name"),
    "a base's bad value": (
        "Lookahead", {"base": {"class": "SGD", "momentum": -1}},
        "optimizers.mine.base.momentum: SGD refuses -1 (Invalid momentum value: -1)"),
    "no flag": (
        "Flagged", {}, "optimizers.mine: {} wants `use_it` of each group: add `groups: [{{ndim: 2, use_it: true}}, "
        '{{match: "*", use_it: false}}]`'),
    "one value for two": (
        "Sam", {"base": {"class": "Adadelta", "rho": 0.9}},
        "optimizers.mine.base.rho: Adadelta refuses 0.9 (rho is a hyperparameter of its own"),
    "two gradients for the rest": (
        "Flat", {"class": "Muon", "lr": 0.02, "fallback": {"class": "{Sam}", "base": BASE}},
        "optimizers.mine.fallback: {Sam} takes two gradients a step: a fallback has one"),
    "the model for the rest": (
        "Flat", {"class": "Muon", "lr": 0.02, "fallback": {"class": "{Whole}"}},
        "optimizers.mine.fallback: {Whole} takes the model whole: it is no fallback"),
    "a group's bad value": (
        "Passing", {"class": "SGD", "groups": [{"ndim": 1, "momentum": -1}]},
        "optimizers.mine.groups.0.momentum: SGD refuses -1 (Invalid momentum value: -1)"),
    "the parameters in a group": (
        "Flat", {"groups": [{"ndim": 1, "params": 1}]}, "optimizers.mine.groups.0.params: Flat has no such"),
    "groups of the whole": (
        "Whole", {"groups": [{"ndim": 1}]}, "optimizers.mine.groups: {} takes the model whole: remove them"),
    "matrices only": (
        "Flat", {}, "optimizers.mine: {} fails in its first step: ValueError: 2-D only: it takes some parameters: add "
        "`groups: [{{ndim: 2}}]` and `fallback: {{class: AdamW, lr: 0.001}}`"),
}  # fmt: skip


@pytest.mark.parametrize(("cls", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_missing_optimizer_requirement_is_named(path, small_config, cls, more, message):
    entry = {"class": path(cls), **more}
    for name in ("Sam", "Whole"):
        message = message.replace(f"{{{name}}}", path(name))
        if entry.get("fallback", {}).get("class") == f"{{{name}}}":
            entry = entry | {"fallback": entry["fallback"] | {"class": path(name)}}
    config = small_config(optimizers={"mine": entry})
    assert refusal(config).startswith(f"params.yaml: {message.format(path(cls))}")


class Given:
    """Has no text of its own."""


def test_hyperparameter_text_contains_no_memory_address(path, small_config):
    """Another process has it elsewhere: the record, and the checkpoint of a killed run, would not be of this one."""
    config = small_config(optimizers={"mine": {"class": path("Sam"), "base": BASE}}, **SMALL)
    built = optimizers.build(
        "mine", config.get_optimizer("mine"), TrainingContext.from_config(config, models.build("zilliax", seed=0))
    )
    built.optimizers[0].defaults |= {
        "given": Given(),
        "called": functools.partial(np.add, out=Given),
        "many": [Given()],
    }
    text = str(built.get_hyperparameters())
    assert "at 0x" not in text and "Given object" in text and "'rho': 0.05" in text


def test_nested_base_is_rejected(small_config):
    nested = {"class": "a.B", "base": {"class": "a.C", "base": {"class": "SGD"}}}
    with pytest.raises(ValueError, match=r"base\.base would never be used"):
        small_config(optimizers={"mine": nested})


def test_class_forwarding_arguments_gets_parameters(path, batches):
    ours, _ = train_ours(batches, **{"class": path("Passing"), "lr": 0.1})
    assert_same_weights(ours, train_by_hand(batches, lambda values: torch.optim.SGD(values, lr=0.1))[0])


def test_incomplete_optimizer_state_prevents_checkpoint(path, small_config, sample, device, tmp_path):
    """It would go on to other bytes; a saver that is not the tests' says so once, and the training goes on."""
    config = small_config(optimizers={"mine": {"class": path("Forgetful")}}, **SMALL)
    with pytest.raises(ValueError, match="the state that Forgetful gives is not all that it goes on from"):
        resume_after_interruptions(config, sample, device, tmp_path / "checkpoint", 7)


def test_optimizer_probe_leaves_no_model_hooks(path, small_config):
    config = small_config(optimizers={"mine": {"class": path("Hooked")}}, **SMALL)
    model = models.build("zilliax", seed=0)
    (optimizer,) = optimizers.build(
        "mine", config.get_optimizer("mine"), TrainingContext.from_config(config, model)
    ).optimizers
    torch.stack([value.sum() for value in model.parameters()]).sum().backward()
    assert len(optimizer.updates) == len(list(model.parameters()))
    assert all(len(value._post_accumulate_grad_hooks) == 1 for value in model.parameters())


def test_optimizer_probe_draws_no_random_numbers(path, small_config):
    config = small_config(optimizers={"mine": {"class": path("Sam"), "base": BASE}}, **SMALL)
    context = TrainingContext.from_config(config, models.build("zilliax", seed=0))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    optimizers.build("mine", config.get_optimizer("mine"), context)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        ("Flagged", {"groups": [{"ndim": 2, "use_it": True}, {"match": "*", "use_it": False}]}),
        ("Flat", {"groups": [{"ndim": 2}], "fallback": {"class": "AdamW", "lr": 0.001}}),
    ],
)
def test_optimizer_trains_with_required_groups(path, small_config, sample, device, cls, more):
    config = small_config(optimizers={"mine": {"class": path(cls), **more}}, **SMALL)
    checks.check_config(config)
    assert train_run(config, sample, device).status == "completed"


def test_failing_step_is_reported_with_source_line(path, small_config, sample, device):
    config = small_config(optimizers={"mine": {"class": path("Late")}}, **SMALL)
    checks.check_config(config)
    with pytest.raises(StepError, match=r"^step 3 fails: RuntimeError: enough \(.*user_module_\d+\.py, line \d+\)$"):
        train_run(config, sample, device)


FAULTS = [
    OSError(28, "No space left on device"), MemoryError(), torch.OutOfMemoryError("all"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]  # fmt: skip


@pytest.mark.parametrize("error", FAULTS)
def test_resource_error_does_not_blame_optimizer(small_config, sample, device, monkeypatch, error):
    def step(self, closure=None):
        raise error

    monkeypatch.setattr(torch.optim.SGD, "step", step)

    def begins(self, *words, **more):
        raise error

    config = small_config(optimizers={"mine": {"class": "SGD", "lr": 0.1}}, **SMALL)
    with pytest.raises(ResourceError, match=r"^step 0 "):
        train_run(config, sample, device)
    monkeypatch.setattr(torch.optim.SGD, "__init__", begins)
    with pytest.raises(ResourceError, match=r"^params.yaml: optimizers.mine: SGD "):
        train_run(config, sample, device)
    monkeypatch.setitem(models.MODELS, "zilliax", lambda: begins(None))
    with pytest.raises(ResourceError, match=r"^params.yaml: model: zilliax "):
        train_run(config, sample, device)


def test_missing_file_in_step_blames_optimizer(small_config, sample, device, monkeypatch):
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: Path("/nowhere").read_bytes())
    with pytest.raises(StepError, match=r"^step 0 fails: FileNotFoundError"):
        train_run(small_config(optimizers={"mine": {"class": "SGD", "lr": 0.1}}, **SMALL), sample, device)


def test_custom_folder_prefix_in_class_is_rejected(small_config):
    with pytest.raises(
        ConfigError, match=r"custom.lion.Lion: modules are looked for in custom/ itself: write lion.Lion$"
    ):
        checks.check_config(small_config(optimizers={"mine": {"class": "custom.lion.Lion"}}))
