"""Optimizers by name: each dense class trains as it does by hand, and a wrong entry is refused with the remedy."""

import functools
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
import pytorch_optimizer
import schedulefree
import torch
import torch.nn.functional as F
from torch import nn

from optlab.data import cifar10
from optlab.preflight import checks
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import TrainingConfig
from optlab.system.errors import ConfigError
from optlab.training import loop, models, optimizer_factory, optimizers
from optlab.training.optimizer_factory import TrainingContext

DENSE = {name: cls for name, cls in optimizer_factory.get_torch_classes().items() if cls is not torch.optim.SparseAdam}
SETTINGS = TrainingConfig(epochs=1, batch_size=32, threads=1)
MUON = {"class": "Muon", "lr": 0.02, "fallback": {"class": "AdamW", "lr": 0.001}}
STEPS = 2
TOP = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches are too small to share out, and threads that wait for a busy processor take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def batches(sample, small_config):
    """Two batches of 32 real images."""
    split = cifar10.load(sample, small_config().data, 0).train
    return list(cifar10.iterate_batches(split, torch.arange(32 * STEPS), 32))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that puts a module's source beside params.yaml and returns its name, new for every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"user_module_{abs(hash(tmp_path))}"

    def write(source):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def spec(**entry):
    return OptimizerSpec.model_validate(entry)


def build_optimizer(**entry):
    model = models.build("zilliax", seed=0)
    return model, optimizers.build("mine", spec(**entry), TrainingContext(model, {}))


def check(**entry):
    return checks.check_optimizer("mine", spec(**entry), TrainingContext(models.build("zilliax", seed=0), {}))


def train_ours(batches, **entry):
    model, stepper = build_optimizer(**entry)
    stepper.train()
    losses = [loop.train_step(model, stepper, *batch, SETTINGS) for batch in batches]
    stepper.eval()
    return model, losses


def train_by_hand(batches, make, closure=False):
    """The usual loop of torch's documentation, without anything of ours but the initial weights."""
    model = models.build("zilliax", seed=0)
    optimizer = make(model.parameters())
    losses = []
    for images, labels in batches:

        def compute(images=images, labels=labels):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        if closure:
            losses.append(float(optimizer.step(compute).detach()))
        else:
            losses.append(float(compute().detach()))
            optimizer.step()
    return model, losses


def assert_same_weights(ours, theirs):
    for (name, value), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_torch_optimizer_classes_are_all_known():
    assert {"SGD", "Adam", "AdamW", "LBFGS", "Muon", "Adafactor", "SparseAdam"} <= set(
        optimizer_factory.get_torch_classes()
    )
    assert "Optimizer" not in optimizer_factory.get_torch_classes()


@pytest.mark.parametrize("name", DENSE)
def test_dense_optimizer_updates_every_parameter(batches, name):
    entry = {"Muon": MUON, "LBFGS": {"class": "LBFGS", "max_iter": 4}}.get(name, {"class": name})
    before = models.build("zilliax", seed=0)
    after, losses = train_ours(batches, **entry)
    for (key, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.isfinite(new).all(), key
        assert not torch.equal(old, new), key
    assert losses[0] == pytest.approx(2.3, abs=0.1)  # ln 10: the loss is the one before the update


@pytest.mark.parametrize("name", [name for name in DENSE if name != "Muon"])
def test_optimizer_equals_plain_torch_loop(batches, name):
    ours, our_losses = train_ours(batches, **{"class": name})
    theirs, their_losses = train_by_hand(batches, DENSE[name], closure=name == "LBFGS")
    assert_same_weights(ours, theirs)
    assert our_losses == their_losses


HYPERPARAMETERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.003, "betas": [0.8, 0.95], "eps": 1e-6, "amsgrad": True},
    "RMSprop": {"lr": 0.002, "alpha": 0.9, "centered": True},
    "LBFGS": {"lr": 0.1, "max_iter": 4},
}


@pytest.mark.parametrize(("name", "values"), HYPERPARAMETERS.items(), ids=HYPERPARAMETERS)
def test_hyperparameters_are_passed_to_optimizer_class(batches, name, values):
    ours, _ = train_ours(batches, **{"class": name}, **values)
    theirs, _ = train_by_hand(batches, lambda weights: DENSE[name](weights, **values), closure=name == "LBFGS")
    default, _ = train_by_hand(batches, DENSE[name], closure=name == "LBFGS")
    assert_same_weights(ours, theirs)
    assert not torch.equal(ours[0].weight, default[0].weight)


def test_muon_gets_matrices_and_fallback_other_parameters():
    model, stepper = build_optimizer(**MUON)
    taken, rest = ({id(value) for value in each.param_groups[0]["params"]} for each in stepper.optimizers)
    assert [type(each).__name__ for each in stepper.optimizers] == ["Muon", "AdamW"]
    assert taken == {id(value) for value in model.parameters() if value.ndim == 2}
    assert rest == {id(value) for value in model.parameters() if value.ndim != 2}


def test_muon_with_fallback_equals_plain_torch(batches):
    ours, _ = train_ours(batches, **MUON)

    class Both:
        def __init__(self, parameters):
            values = list(parameters)
            self.each = [
                torch.optim.Muon([value for value in values if value.ndim == 2], lr=0.02),
                torch.optim.AdamW([value for value in values if value.ndim != 2], lr=0.001),
            ]

        def zero_grad(self):
            for each in self.each:
                each.zero_grad()

        def step(self):
            for each in self.each:
                each.step()

    assert_same_weights(ours, train_by_hand(batches, Both)[0])


def test_unneeded_fallback_is_not_built():
    _, stepper = build_optimizer(**{"class": "SGD", "fallback": {"class": "Adam"}})
    assert [type(each).__name__ for each in stepper.optimizers] == ["SGD"]


def test_learning_rate_scaling_does_not_compound():
    _, stepper = build_optimizer(**MUON)
    seen = []
    for factor in (0.25, 1, 0.5, 0.5):
        stepper.scale_lr(factor)
        seen.append(stepper.lr)
    assert seen == [0.005, 0.02, 0.01, 0.01]
    assert [group["lr"] for each in stepper.optimizers for group in each.param_groups] == [0.01, 0.0005]


def test_effective_hyperparameters_include_class_defaults():
    _, stepper = build_optimizer(**MUON)
    values = stepper.get_hyperparameters()
    assert (values["class"], values["lr"], values["momentum"]) == ("Muon", 0.02, 0.95)
    assert (values["fallback.class"], values["fallback.lr"], values["fallback.eps"]) == ("AdamW", 0.001, 1e-8)


REFUSED = {
    "misspelt class": ({"class": "Adm"}, "optimizers.mine.class: Adm", "did you mean Adam?"),
    "lower case": ({"class": "adamw"}, "optimizers.mine.class: adamw", "did you mean AdamW?"),
    "unlike any class": ({"class": "zzzz"}, "optimizers.mine.class: zzzz", "unknown name: it is one of ASGD, "),
    "of a ready entry": ({"class": "Adan"}, "optimizers.mine.class: Adan", "`optlab add adan` has an entry for it"),
    "a ready entry": (
        {"class": "schedule_free_sgd"}, "optimizers.mine.class", "`optlab add schedule_free_sgd` has an entry"),
    "misspelt in a path": ({"class": "torch.optim.Adm"}, "optimizers.mine.class", "did you mean Adam?"),
    "misspelt hyperparameter": (
        {"class": "SGD", "momentun": 0.9}, "optimizers.mine.momentun", "did you mean momentum?"),
    "hyperparameter of another class": (
        {"class": "SGD", "betas": [0.9, 0.99]}, "optimizers.mine.betas", "it takes lr, momentum"),
    "the parameters themselves": ({"class": "SGD", "params": 1}, "optimizers.mine.params", "no such hyperparameter"),
    "negative momentum": (
        {"class": "SGD", "momentum": -1}, "optimizers.mine.momentum: SGD refuses -1 (", "Invalid momentum value: -1)"),
    "text as momentum": (
        {"class": "SGD", "momentum": "much"}, "optimizers.mine.momentum: SGD takes a number, not 'much'", ""),
    "two texts": (
        {"class": "AdamW", "lr": 0.001, "eps": "little", "weight_decay": "much"},
        "optimizers.mine.eps: AdamW takes a number, not 'little'", ""),
    "two bad values": (
        {"class": "SGD", "weight_decay": -2, "momentum": -1},
        "optimizers.mine.momentum: SGD refuses -1 (", "Invalid momentum value: -1)"),
    "values that do not fit each other": (
        {"class": "SGD", "nesterov": True, "momentum": 0.9, "dampening": 0.1},
        "optimizers.mine: SGD refuses its hyperparameters: ", "Nesterov momentum requires"),
    "nesterov alone": ({"class": "SGD", "nesterov": True}, "optimizers.mine.nesterov: SGD refuses True (", "momentum"),
    "one beta": ({"class": "Adam", "betas": 0.9}, "optimizers.mine.betas: Adam takes a list of 2 numbers, not 0.9", ""),
    "beta of one": (
        {"class": "Adam", "betas": [0.9, 1.0]}, "optimizers.mine.betas: Adam refuses [0.9, 1.0] (", "Invalid beta"),
    "no optimizer": ({"class": "torch.nn.Linear"}, "optimizers.mine.class", "no subclass of torch.optim.Optimizer"),
    "a scheduler": ({"class": "torch.optim.lr_scheduler.StepLR"}, "optimizers.mine.class", "no subclass"),
    "a number": ({"class": "math.pi"}, "optimizers.mine.class: math.pi", "no subclass"),
    "the base class": ({"class": "torch.optim.Optimizer"}, "optimizers.mine", "refuses its hyperparameters"),
    "sparse": ({"class": "SparseAdam"}, "optimizers.mine.class: SparseAdam", "use Adam"),
    "sparse by its path": ({"class": "torch.optim.SparseAdam"}, "optimizers.mine.class: SparseAdam", "use Adam"),
    "path that does not import": ({"class": "no_such_package.Lion"}, "optimizers.mine.class", "install it, or correct"),
    "relative path": ({"class": "..Adam"}, "optimizers.mine.class: ..Adam", "correct the path"),
    "muon without fallback": ({"class": "Muon"}, "optimizers.mine: Muon", "add `fallback: {class: AdamW, lr: 0.001}`"),
    "muon with a bad momentum": (
        {**MUON, "momentum": -3}, "optimizers.mine.momentum: Muon refuses -3 (", "momentum should be >= 0"),
    "misspelt fallback": (
        {"class": "Muon", "fallback": {"class": "AdmW"}}, "optimizers.mine.fallback.class", "did you mean AdamW?"),
    "fallback with a bad value": (
        {"class": "Muon", "fallback": {"class": "SGD", "momentum": -1}},
        "optimizers.mine.fallback.momentum: SGD refuses -1 (", "Invalid momentum value"),
    "fallback that refuses as well": (
        {"class": "Muon", "fallback": {"class": "Muon"}}, "optimizers.mine.fallback: Muon", "only supports 2D"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "place", "phrase"), REFUSED.values(), ids=REFUSED)
def test_invalid_optimizer_entry_is_rejected(entry, place, phrase):
    with pytest.raises(ConfigError) as caught:
        check(**entry)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"params.yaml: {place}"), message
    assert phrase in message


# Adam's constructor takes `capturable` wherever it is built; its step only on a GPU.
FIRST_STEP = {
    "a flag for a GPU": (
        {"class": "Adam", "lr": 0.001, "capturable": True},
        "optimizers.mine.capturable: Adam refuses True in its first step (AssertionError: If capturable=True"),
    "a flag of a fallback": (
        {**MUON, "fallback": {"class": "AdamW", "lr": 0.001, "capturable": True}},
        "optimizers.mine.fallback.capturable: AdamW refuses True in its first step (AssertionError: "),
    "an unknown line search": (
        {"class": "LBFGS", "lr": 1, "line_search_fn": "fast"},
        "optimizers.mine.line_search_fn: LBFGS refuses 'fast' in its first step (RuntimeError: only 'strong_wolfe'"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "start"), FIRST_STEP.values(), ids=FIRST_STEP)
def test_preflight_rejects_values_failing_in_first_step(small_config, entry, start):
    with pytest.raises(ConfigError) as caught:
        checks.check_config(small_config(optimizers={"mine": entry}))
    assert str(caught.value).startswith(f"params.yaml: {start}"), caught.value


def test_nested_fallback_is_rejected(small_config):
    """It would never be built: to accept it would be to ignore it."""
    nested = {"class": "Muon", "fallback": {"class": "SGD", "fallback": {"class": "Adam"}}}
    with pytest.raises((ConfigError, ValueError)):
        checks.check_config(small_config(optimizers={"mine": nested}))


def test_preflight_names_invalid_entry(small_config):
    config = small_config(optimizers={"sgd": {"class": "SGD"}, "second": {"class": "Adm"}})
    with pytest.raises(ConfigError, match=r"optimizers\.second\.class: Adm"):
        checks.check_config(config)


def test_preflight_accepts_trainable_optimizers(small_config):
    checks.check_config(small_config(optimizers={"muon": MUON, "lbfgs": {"class": "LBFGS"}}))


def test_preflight_ends_despite_endless_first_step(small_config):
    checks.check_config(small_config(optimizers={"lbfgs": {"class": "LBFGS", "max_iter": 1_000_000_000}}))


def test_preflight_rejects_unknown_model(small_config):
    with pytest.raises(ConfigError, match="did you mean zilliax"):
        checks.check_config(small_config(model="zilliaks"))


SIGN = """
import torch

class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(selfARGUMENTS):
        for group in self.param_groups:
            for value in group["params"]:
                value -= group["lr"] * value.grad.sign()
"""


def test_always_failing_class_blames_no_hyperparameter(module, small_config):
    """No value is to blame, and none is named."""
    name = module(
        SIGN.replace("ARGUMENTS", ", closure=None").replace("        for group", "        1 / 0\n        for group")
    )
    with pytest.raises(ConfigError) as caught:
        checks.check_config(small_config(optimizers={"mine": {"class": f"{name}.Sign", "lr": 0.25}}))
    assert str(caught.value) == (
        f"params.yaml: optimizers.mine: {name}.Sign fails in its first step: ZeroDivisionError: division by zero"
    )


def test_required_argument_is_not_blamed_for_error(module):
    """Without the learning rate it cannot be built, so the learning rate is not to blame."""
    source = SIGN.replace("ARGUMENTS", ", closure=None").replace("lr=0.1", "lr, decay=0.0")
    name = module(
        source.replace("        super()", "        if decay < 0:\n            raise ValueError(decay)\n        super()")
    )
    with pytest.raises(ConfigError, match=r"^params\.yaml: optimizers\.mine\.decay: \w+\.Sign refuses -1 \(-1\)$"):
        check(**{"class": f"{name}.Sign", "lr": 0.25, "decay": -1})


def test_local_class_without_closure_argument_trains(batches, module):
    name = module(SIGN.replace("ARGUMENTS", ""))
    before = models.build("zilliax", seed=0)
    after, losses = train_ours(batches[:1], **{"class": f"{name}.Sign", "lr": 0.25})
    change = (after[0].weight - before[0].weight).detach().abs()
    assert change.unique().numpy() == pytest.approx(0.25, abs=1e-6)
    assert losses[0] == pytest.approx(2.3, abs=0.1)


def test_sign_descent_example_moves_weights_by_learning_rate(batches, monkeypatch, capsys):
    monkeypatch.chdir(TOP)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = models.build("zilliax", seed=0)
    after, losses = train_ours(batches[:1], **{"class": "sign_descent.SignDescent", "lr": 0.25})
    change = (after[0].weight - before[0].weight).detach().abs()
    assert change.unique().numpy() == pytest.approx(0.25, abs=1e-6)
    assert losses[0] == pytest.approx(2.3, abs=0.1)
    assert capsys.readouterr().err == ""  # DVC watches the folder


def take_muon_step(optimizer_class, weights, gradients, **options):
    """How far each weight moves in a step, as Muon orthogonalizes it."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer_class([{"params": parameters, "use_muon": True}], lr=0.1, weight_decay=0, **options).step()
    return torch.cat([(after - weight).detach().flatten() for after, weight in zip(parameters, weights, strict=True)])


def test_muon_fp32_example_is_muon_but_for_bf16(monkeypatch):
    """Nearer to iterations in fp64 than Muon itself, by all of bf16's error."""
    monkeypatch.syspath_prepend(TOP / "custom")
    muon_fp32 = importlib.import_module("muon_fp32")
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 3, 5, 5), (64, 8), (8, 64), (20,)]
    weights, gradients = ([torch.randn(*shape, generator=generator) for shape in shapes] for _ in range(2))
    own, bf16 = (take_muon_step(each, weights, gradients) for each in (muon_fp32.MuonFP32, pytorch_optimizer.Muon))
    iterations = "pytorch_optimizer.optimizer.muon.base.zero_power_via_newton_schulz_5"
    exact_iterations = functools.partial(pkgutil.resolve_name(iterations), dtype=torch.float64)
    monkeypatch.setattr(iterations, exact_iterations)
    exact = take_muon_step(pytorch_optimizer.Muon, weights, gradients)
    assert (own - exact).norm() < 1e-5 * exact.norm()
    assert 1e-3 * exact.norm() < (bf16 - exact).norm() < 0.05 * exact.norm()
    with pytest.raises(ValueError, match="ns_method: gram_newton_schulz: MuonFP32 has newton_schulz only"):
        take_muon_step(muon_fp32.MuonFP32, weights, gradients, ns_method="gram_newton_schulz")


def test_module_outside_custom_gives_one_warning(module, capsys):
    name = module(SIGN.replace("ARGUMENTS", ", closure=None"))
    for _ in range(3):
        build_optimizer(**{"class": f"{name}.Sign", "lr": 0.25})
    assert capsys.readouterr().err == (
        f"warning: {name}: DVC does not see when {name}.py changes: move it to custom/\n"
    )


def test_misspelt_hyperparameter_of_dotted_class_is_rejected(module):
    name = module(SIGN.replace("ARGUMENTS", ", closure=None"))
    with pytest.raises(ConfigError, match=r"optimizers\.mine\.rl: .* has no such hyperparameter"):
        check(**{"class": f"{name}.Sign", "rl": 0.25})


def test_failing_module_import_is_reported(module):
    name = module("raise RuntimeError('two\\nlines')\n")
    with pytest.raises(ConfigError, match=r"cannot import \w+ \(RuntimeError: two lines\): install it, or correct"):
        build_optimizer(**{"class": f"{name}.Sign"})


def test_schedule_free_switches_between_train_and_eval_mode(sample, small_config):
    """It keeps two sets of weights: untold, it stops at the first step, and is evaluated with the wrong set."""
    entry = {"class": "schedulefree.AdamWScheduleFree", "lr": 0.01}
    config = small_config(optimizers={"mine": entry})
    splits = cifar10.load(sample, config.data, 0)
    ours = loop.train(config, "mine", 0, splits, torch.device("cpu")).model

    theirs = models.build("zilliax", seed=0)
    optimizer = schedulefree.AdamWScheduleFree(theirs.parameters(), lr=0.01)
    optimizer.train()
    order = cifar10.compute_epoch_order(0, 1, 100, shuffle=True)
    for images, labels in cifar10.iterate_batches(splits.train, order, 16):
        optimizer.zero_grad()
        F.cross_entropy(theirs(images), labels).backward()
        optimizer.step()
    trained = theirs[0].weight.clone()
    optimizer.eval()
    assert_same_weights(ours, theirs)
    assert not torch.equal(ours[0].weight, trained)
