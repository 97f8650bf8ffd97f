"""Parameters with hyperparameters of their own, steps that compute several gradients, and schedules of an entry."""

import pytest
import torch
from test_optimizers import (
    assert_same_weights,
    batches,
    build_optimizer,
    check,
    module,
    one_thread,
    train_by_hand,
    train_ours,
)

from optlab.data import cifar10
from optlab.preflight import checks
from optlab.system.errors import ConfigError
from optlab.training import determinism, loop, models

__all__ = ["batches", "module", "one_thread"]  # fixtures

NAMES = [name for name, _ in models.build("zilliax", seed=0).named_parameters()]


def group_parameter_names(optimizer, model):
    """Of each of its groups, the names of the parameters."""
    names = {id(value): name for name, value in model.named_parameters()}
    return [[names[id(value)] for value in group["params"]] for group in optimizer.param_groups]


# Entry → how torch's own optimizer is built by hand, from parameters by name.
GROUPS = {
    "no decay on biases": (
        {"class": "AdamW", "lr": 0.01, "groups": [{"match": "*.bias", "weight_decay": 0}]},
        lambda named: torch.optim.AdamW(
            [{"params": [value for name, value in named if not name.endswith("bias")]},
             {"params": [value for name, value in named if name.endswith("bias")], "weight_decay": 0}], lr=0.01),
    ),
    "by dimensions": (
        {"class": "SGD", "lr": 0.1, "groups": [{"ndim": 1, "lr": 0.2, "momentum": 0.9}]},  # Caffe's twice for biases
        lambda named: torch.optim.SGD(
            [{"params": [value for _, value in named if value.ndim != 1]},
             {"params": [value for _, value in named if value.ndim == 1], "lr": 0.2, "momentum": 0.9}], lr=0.1),
    ),
    "the first that matches": (
        {"class": "SGD", "lr": 0.1, "groups": [{"match": NAMES[0], "lr": 0.3}, {"match": "*", "lr": 0.2}]},
        lambda named: torch.optim.SGD(
            [{"params": [value for name, value in named if name == NAMES[0]], "lr": 0.3},
             {"params": [value for name, value in named if name != NAMES[0]], "lr": 0.2}], lr=0.1),
    ),
    "betas": (
        {"class": "Adam", "groups": [{"ndim": 4, "betas": [0.8, 0.9]}]},
        lambda named: torch.optim.Adam(
            [{"params": [value for _, value in named if value.ndim != 4]},
             {"params": [value for _, value in named if value.ndim == 4], "betas": (0.8, 0.9)}]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "by_hand"), GROUPS.values(), ids=GROUPS)
def test_param_groups_equal_plain_pytorch(batches, entry, by_hand):
    def make(parameters):
        return by_hand(list(zip(NAMES, parameters, strict=True)))

    ours, our_losses = train_ours(batches, **entry)
    theirs, their_losses = train_by_hand(batches, make)
    assert_same_weights(ours, theirs)
    assert our_losses == their_losses
    without, _ = train_ours(batches, **{key: value for key, value in entry.items() if key != "groups"})
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), without.parameters(), strict=True))


def test_fallback_gets_parameters_outside_groups():
    last = max(name for name in NAMES if name.endswith("weight"))
    entry = {"class": "Muon", "lr": 0.02, "groups": [{"match": last}], "fallback": {"class": "AdamW", "lr": 0.001}}
    model, stepper = build_optimizer(**entry)
    muon, rest = stepper.optimizers
    assert group_parameter_names(muon, model) == [[last]]
    assert group_parameter_names(rest, model) == [[name for name in NAMES if name != last]]


def test_fallback_has_own_param_groups():
    fallback = {"class": "AdamW", "lr": 0.001, "groups": [{"match": "*.bias", "weight_decay": 0}]}
    model, stepper = build_optimizer(**{"class": "Muon", "lr": 0.02, "fallback": fallback})
    weights, biases = group_parameter_names(stepper.optimizers[1], model)
    assert all(name.endswith("bias") for name in biases) and not any(name.endswith("bias") for name in weights)
    values = stepper.get_hyperparameters()
    assert (values["fallback.groups.0.match"], values["fallback.groups.0.weight_decay"]) == ("*.bias", 0)


def test_lr_scale_applies_to_every_param_group():
    _, stepper = build_optimizer(**{"class": "SGD", "lr": 0.1, "groups": [{"ndim": 1, "lr": 0.2}]})
    stepper.scale_lr(0.5)
    assert [group["lr"] for group in stepper.optimizers[0].param_groups] == [0.05, 0.1]
    assert stepper.lr == 0.05


def test_param_group_sizes_are_described_and_logged():
    _, stepper = build_optimizer(**{"class": "SGD", "lr": 0.1, "groups": [{"match": "*.bias", "lr": 0.2}]})
    values = stepper.get_hyperparameters()
    assert values["groups.0.match"] == "*.bias" and values["groups.0.lr"] == 0.2
    assert values["parameters"] + values["groups.0.parameters"] == 145578
    weights, biases = stepper.describe()
    assert weights.startswith("SGD: 145,376 numbers (99.9%): ")
    assert biases.startswith("SGD, *.bias: 202 numbers (0.1%): ")
    assert build_optimizer(**{"class": "SGD"})[1].describe() == []


FLAGGED = """
import torch

class Flagged(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.5 if group.get("use_half") else 0.0
        return super().step(closure)
"""


def test_group_flag_reaches_its_param_group(module, batches):
    name = module(FLAGGED)
    ours, _ = train_ours(batches, **{"class": f"{name}.Flagged", "groups": [{"ndim": 1, "use_half": True}]})
    before = dict(models.build("zilliax", seed=0).named_parameters())
    moved = {key for key, value in ours.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {key for key in NAMES if before[key].ndim == 1}


REFUSED = {
    "nothing matches": (
        [{"match": "layers.*"}], "optimizers.mine.groups.0: no parameter is left for 'layers.*': the model has "),
    "nothing is left": ([{"match": "*"}, {"ndim": 1}], "optimizers.mine.groups.1: no parameter is left for 'ndim 1'"),
    "misspelt": (
        [{"ndim": 1, "weight_dcay": 0}],
        "optimizers.mine.groups.0.weight_dcay: SGD has no such hyperparameter: did you mean weight_decay?"),
    "unknown flag": ([{"ndim": 1, "use_muon": True}], "optimizers.mine.groups.0.use_muon: SGD has no such hyper"),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "start"), REFUSED.values(), ids=REFUSED)
def test_invalid_param_groups_are_refused(groups, start):
    with pytest.raises(ConfigError) as caught:
        check(**{"class": "SGD", "groups": groups})
    assert str(caught.value).startswith(f"params.yaml: {start}"), caught.value


def test_param_group_refused_by_class_is_named():
    with pytest.raises(ConfigError, match=r"optimizers\.mine\.groups\.0: Muon refuses .*bias \("):
        build_optimizer(**{"class": "Muon", "groups": [{"match": "*.bias"}], "fallback": {"class": "AdamW"}})


CLOSURES = """
import torch

class Silent(torch.optim.SGD):
    "Calls the closure twice, and returns nothing."
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            closure()
        super().step()

class Deaf(torch.optim.SGD):
    "Takes a closure, and does not call it."
    def step(self, closure=None):
        super().step()
"""


@pytest.mark.parametrize(("name", "gradients"), [("Silent", 2), ("Deaf", 1)])
def test_optimizer_may_ignore_or_repeat_closure(module, batches, name, gradients):
    ours, losses = train_ours(batches, **{"class": f"{module(CLOSURES)}.{name}", "lr": 0.1})
    theirs, expected = train_by_hand(batches, lambda values: torch.optim.SGD(values, lr=0.1))
    assert_same_weights(ours, theirs)
    assert losses == expected
    _, stepper = build_optimizer(**{"class": f"{module(CLOSURES)}.{name}", "lr": 0.1})
    stepper.step(lambda: torch.tensor(1.0))
    assert stepper.gradients == gradients


SECOND = """
import torch

class Second(torch.optim.SGD):
    "Needs loss.backward(create_graph=True)."
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad.grad_fn is None:
                    raise RuntimeError("no grad_fn")
        super().step()
        return loss
"""


@pytest.fixture(scope="module")
def device(small_config):
    return determinism.configure_torch(small_config().training)


def train_run(config, sample, device, name="mine"):
    return loop.train(config, name, 0, cifar10.load(sample, config.data, 0), device)


SMALL = {"data": {"train_size": 100, "validation_size": 20}, "training": {"epochs": 2, "batch_size": 20}}


def test_create_graph_is_set_when_class_needs_it(module, small_config, sample, device):
    name = module(SECOND)
    config = small_config(optimizers={"mine": {"class": f"{name}.Second", "lr": 0.1}}, **SMALL)
    checks.check_config(config)
    assert train_run(config, sample, device).hyperparameters["create_graph"] is True
    never = {"class": f"{name}.Second", "lr": 0.1, "create_graph": False}
    with pytest.raises(ConfigError, match="no grad_fn"):
        checks.check_config(small_config(optimizers={"mine": never}))


def test_gradient_evaluations_are_counted(small_config, sample, device):
    config = small_config(optimizers={"mine": {"class": "LBFGS", "max_iter": 3}, "sgd": {"class": "SGD"}}, **SMALL)
    assert [epoch.gradients for epoch in train_run(config, sample, device, "sgd").epochs] == [5, 5]
    first, second = train_run(config, sample, device).epochs
    assert 5 < first.gradients <= 20 and 5 < second.gradients <= 20


def test_entry_schedule_overrides_common_schedule(small_config, sample, device):
    step = {"name": "step", "step_epochs": 1, "gamma": 0.1}
    config = small_config(
        optimizers={"own": {"class": "SGD", "lr": 1.0, "schedule": step}, "common": {"class": "SGD", "lr": 1.0}},
        **SMALL,
    )
    rates = {
        name: [epoch.lr for epoch in train_run(config, sample, device, name).epochs] for name in ("own", "common")
    }  # fmt: skip
    assert rates == {"own": pytest.approx([1.0, 0.1]), "common": [1.0, 1.0]}
