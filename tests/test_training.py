"""The loop: what it computes, what it tells, and that it computes the same bits again."""

import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from optlab.data import cifar10
from optlab.training import determinism, loop, models, optimizer_factory, weights


@pytest.fixture(scope="module")
def device(small_config):
    return determinism.configure_torch(small_config().training)


def run(config, sample, device, name="sgd", seed=0, observers=()):
    return loop.train(config, name, seed, cifar10.load(sample, config.data, 0), device, observers)


def digest(outcome, tmp_path):
    return weights.save_model(tmp_path / "w.safetensors", outcome.model, "zilliax")


def test_training_loop_equals_plain_pytorch(small_config, sample, device):
    """The same losses as torch's documentation's loop over the same batches."""
    config = small_config()
    outcome = run(config, sample, device, "adam")
    splits = cifar10.load(sample, config.data, 0)
    model = models.build("zilliax", 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizers["adam"].hyperparameters["lr"])
    losses = []
    for images, labels in cifar10.iterate_batches(
        splits.train, cifar10.compute_epoch_order(0, 1, len(splits.train), True), 16
    ):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert outcome.step_losses == [losses]
    (epoch,) = outcome.epochs
    # 100 images in batches of 16: six whole ones and one of 4.
    assert epoch.train_loss == pytest.approx((16 * sum(losses[:6]) + 4 * losses[6]) / 100)
    assert epoch.running_loss == pytest.approx(sum(losses), rel=1e-6)
    logits = model(cifar10.convert_to_input(splits.validation.images))
    assert epoch.validation_loss == pytest.approx(float(F.cross_entropy(logits, splits.validation.labels)), rel=1e-5)
    assert epoch.validation_accuracy == float((logits.argmax(1) == splits.validation.labels).double().mean())


def test_tf32_is_forbidden(small_config):
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    determinism.configure_torch(small_config().training)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_label_smoothing_affects_training_loss_only(small_config, sample, device):
    config = small_config(training={"label_smoothing": 0.1})
    outcome = run(config, sample, device, "adam")
    splits = cifar10.load(sample, config.data, 0)
    images, labels = next(cifar10.iterate_epoch_batches(splits.train, config.data, 0, 1, 16, 0))
    logits = models.build("zilliax", 0)(images)
    # a tenth of each label is spread over the ten classes
    expected = 0.9 * F.cross_entropy(logits, labels) - 0.1 * logits.log_softmax(1).mean()
    assert outcome.step_losses[0][0] == pytest.approx(float(expected), rel=1e-6)
    validated = outcome.model(cifar10.convert_to_input(splits.validation.images))
    found = outcome.epochs[0].validation_loss
    assert found == pytest.approx(float(F.cross_entropy(validated, splits.validation.labels)), rel=1e-5)


VARIANTS = {
    "fp32": {},
    "augmented": {"data": {"augment": "flip_crop"}, "training": {"label_smoothing": 0.1}},
    "bf16": {"training": {"precision": "bf16", "batch_size": 50}},
    "cosine": {"training": {"epochs": 2, "schedule": {"name": "cosine", "warmup_epochs": 0.5}}},
    "conv6": {"model": "conv6", "training": {"batch_size": 20}, "data": {"train_size": 50, "validation_size": 10}},
    "fast": {
        "model": "fast",
        "training": {"epochs": 2, "batch_size": 10},
        "data": {"train_size": 20, "validation_size": 10, "augment": "alternating_flip_crop"},
    },
    "resnet18": {
        "model": "resnet18",
        "training": {"batch_size": 5},
        "data": {"train_size": 10, "validation_size": 10},
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_training_twice_gives_identical_bits(small_config, sample, device, tmp_path, changes):
    config = small_config(**changes)
    first = run(config, sample, device, "adam")
    torch.rand(7)  # what the process draws in between must not matter
    second = run(config, sample, device, "adam")
    assert first.step_losses == second.step_losses
    assert first.epochs == second.epochs
    expected = digest(first, tmp_path)
    assert digest(second, tmp_path) == expected
    assert digest(run(config, sample, device, "adam", seed=1), tmp_path) != expected


def test_whitening_is_computed_from_training_images_and_not_trained(small_config, sample, device):
    config = small_config(**VARIANTS["fast"])
    outcome = run(config, sample, device, "adam")
    model = models.build("fast", 0)
    models.initialize_from_images("fast", model, cifar10.load(sample, config.data, 0).train.images)
    assert torch.equal(outcome.model[0].weight, model[0].weight)
    assert not torch.equal(outcome.model[0].bias, model[0].bias)


def test_bf16_training_differs_from_fp32(small_config, sample, device):
    full = run(small_config(), sample, device)
    half = run(small_config(training={"precision": "bf16"}), sample, device)
    assert half.step_losses != full.step_losses
    assert half.step_losses[0] == pytest.approx(full.step_losses[0], rel=0.02)


def test_schedule_sets_learning_rate(small_config, sample, device):
    schedule = {"name": "step", "step_epochs": 1, "gamma": 0.1}
    outcome = run(small_config(training={"epochs": 3, "schedule": schedule}), sample, device)
    lr = small_config().optimizers["sgd"].hyperparameters["lr"]
    assert [epoch.lr for epoch in outcome.epochs] == pytest.approx([lr, lr / 10, lr / 100])


def test_validations_per_epoch_change_no_weights(small_config, sample, device, tmp_path):
    """Seven steps an epoch: a third of that is 2.33, two thirds 4.67."""
    listener = RecordingCallback()
    training = {"epochs": 2, "validations_per_epoch": 3}
    often = run(small_config(training=training), sample, device, "adam", observers=[listener])
    once = run(small_config(training={"epochs": 2}), sample, device, "adam")
    assert [each.step for each in often.validations] == [2, 5, 7, 9, 12, 14]
    assert [what for what in listener.heard if what[0] == "validation"] == [
        ("validation", step) for step in (2, 5, 7, 9, 12, 14)
    ]
    assert [each for each in often.validations if each.step in (7, 14)] == once.validations
    for epoch, validation in zip(once.epochs, once.validations, strict=True):
        figures = (validation.loss, validation.accuracy)
        assert figures == (epoch.validation_loss, epoch.validation_accuracy)
    assert often.epochs == once.epochs
    assert digest(often, tmp_path) == digest(once, tmp_path)


def test_mid_epoch_validation_equals_shorter_training(small_config, sample, device):
    """Half of an epoch of 100 images in batches of 10 is all of one of 50; without shuffling, of the same ones."""
    common = {"shuffle": False}
    half = run(
        small_config(data=common, training={"batch_size": 10, "validations_per_epoch": 2}), sample, device, "adam"
    )
    splits = cifar10.load(sample, small_config(data=common).data, 0)
    fewer = cifar10.Splits(cifar10.Split(splits.train.images[:50], splits.train.labels[:50]), splits.validation)
    whole = loop.train(small_config(data=common, training={"batch_size": 10}), "adam", 0, fewer, device)
    assert half.validations[0] == whole.validations[0]


def test_non_finite_loss_ends_run(small_config, sample, device):
    config = small_config(optimizers={"sgd": {"class": "SGD", "lr": 1e30}}, training={"epochs": 3})
    outcome = run(config, sample, device)
    assert outcome.status == "diverged"
    assert len(outcome.epochs) == len(outcome.step_losses) < 3
    assert not math.isfinite(outcome.step_losses[-1][-1])
    assert all(math.isfinite(loss) for loss in outcome.step_losses[-1][:-1])
    assert outcome.epochs[-1].train_loss is None


class Idle(nn.Sequential):
    """Has a weight and a buffer that decide no output, and a mask with infinities from the start."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3072, 10))
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("seen", torch.zeros(3), persistent=False)
        self.register_buffer("mask", torch.full((10, 10), -math.inf).triu(1))


def make_spoiling_step(name):
    """A step that leaves an infinity in one tensor of the model."""

    def step(model, *_):
        getattr(model, name).detach()[1] = math.inf
        return 2.5

    return {"train_step": step}


def one_logit_infinite(model, split):
    """Of a class that no label names: the loss stays finite."""
    logits = torch.zeros(len(split), 10)
    logits[0, (int(split.labels[0]) + 1) % 10] = -math.inf
    return logits


ONE_STEP = {"epochs": 3, "batch_size": 100}
# What is not finite → the changes of the configuration, those of the loop, and the first figure that is missing.
NOT_FINITE = {
    "a weight": ({"training": ONE_STEP, "model": "idle"}, make_spoiling_step("weight"), None),
    "a buffer": ({"training": ONE_STEP, "model": "idle"}, make_spoiling_step("seen"), None),
    "an output, with finite weights": (
        {"training": ONE_STEP, "optimizers": {"sgd": {"class": "SGD", "lr": 1e30}}}, {}, "validation_loss"),
    "one logit, with a finite loss": ({"training": ONE_STEP}, {"predict": one_logit_infinite}, "validation_loss"),
    "a validation loss": (
        {"training": ONE_STEP}, {"compute_loss_and_accuracy": lambda *_: (math.inf, 0.1)}, "validation_loss"),
    "a sum of losses": ({"training": {"epochs": 3}}, {"train_step": lambda *_: 3e38}, "running_loss"),
    "a loss": ({"training": ONE_STEP}, {"train_step": lambda *_: math.nan}, "train_loss"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "patches", "missing"), NOT_FINITE.values(), ids=NOT_FINITE)
def test_any_non_finite_value_counts_as_divergence(
    small_config, sample, device, monkeypatch, changes, patches, missing
):
    """The run ends with that epoch, and keeps the figures before the first that is missing."""
    monkeypatch.setitem(models.MODELS, "idle", Idle)
    for name, stand_in in patches.items():
        monkeypatch.setattr(loop, name, stand_in)
    listener = RecordingCallback()
    outcome = run(small_config(**changes), sample, device, observers=[listener])
    assert outcome.status == "diverged"
    assert listener.heard[-1] == ("end", "diverged")
    (epoch,) = outcome.epochs
    figures = ["train_loss", "running_loss", "validation_loss", "validation_accuracy"]
    known = figures[: figures.index(missing)] if missing else figures
    assert [name for name in figures if getattr(epoch, name) is not None] == known


def test_infinity_in_initial_model_is_not_divergence(small_config, sample, device, monkeypatch):
    monkeypatch.setitem(models.MODELS, "idle", Idle)
    outcome = run(small_config(model="idle"), sample, device)
    assert outcome.status == "completed"
    assert outcome.epochs[-1].validation_accuracy is not None


class RecordingCallback(loop.Callback):
    def __init__(self):
        self.heard = []

    def on_start(self, start):
        self.heard.append(("start", start.run, start.steps_per_epoch, start.hyperparameters["lr"], start.n_parameters))

    def on_step(self, epoch, step, loss, images):
        self.heard.append((epoch, step, images))

    def on_validation(self, validation):
        self.heard.append(("validation", validation.step))

    def on_epoch(self, epoch):
        self.heard.append(("epoch", epoch.epoch))

    def on_end(self, status):
        self.heard.append(("end", status))


def test_callbacks_receive_events_in_order(small_config, sample, device):
    listener = RecordingCallback()
    run(small_config(training={"epochs": 2, "batch_size": 50}), sample, device, observers=[listener])
    lr = small_config().optimizers["sgd"].hyperparameters["lr"]
    assert listener.heard == [
        ("start", "sgd-0", 2, lr, 145578),
        (1, 0, 50), (1, 1, 50), ("validation", 2), ("epoch", 1),
        (2, 2, 50), (2, 3, 50), ("validation", 4), ("epoch", 2), ("end", "completed"),
    ]  # fmt: skip


def test_schedule_free_validates_averaged_weights(small_config, sample, device):
    """The model that comes out is the one that was validated, not the point where training would go on."""
    config = small_config(optimizers={"free": {"class": "schedulefree.AdamWScheduleFree", "lr": 0.01}})
    outcome = run(config, sample, device, "free")
    validation = cifar10.load(sample, config.data, 0).validation
    loss, _ = loop.compute_loss_and_accuracy(loop.predict(outcome.model, validation), validation.labels)
    assert loss == outcome.epochs[-1].validation_loss


class Turning(torch.optim.SGD):
    """Would move its weights at each call, as it does not ask where they are."""

    calls: ClassVar[list[str]] = []

    def train(self):
        self.calls.append("train")

    def eval(self):
        self.calls.append("eval")


SEEN, UNSEEN = (
    {"train_size": 100, "validation_size": 20},
    {"train_split": "test", "train_size": 100, "validation_size": 0},
)


@pytest.mark.parametrize(
    ("data", "each", "expected"), [(SEEN, 1, 2), (SEEN, 2, 4), (UNSEEN, 1, 1)], ids=["seen", "seen twice", "unseen"]
)
def test_optimizer_train_and_eval_calls_alternate(small_config, sample, device, monkeypatch, data, each, expected):
    """They are where they are evaluated at the end, also where no validation split has asked for that."""
    monkeypatch.setattr(Turning, "calls", [])
    config = small_config(
        optimizers={"mine": {"class": f"{__name__}.Turning", "lr": 0.01}}, data=data,
        training={"epochs": 2, "batch_size": 16, "validations_per_epoch": each},
    )  # fmt: skip
    run(config, sample, device, "mine")
    assert Turning.calls[-2 * expected :] == ["train", "eval"] * expected


@pytest.mark.parametrize("name", sorted(set(optimizer_factory.get_torch_classes()) - {"SparseAdam"}))
def test_dense_optimizer_trains_one_epoch(small_config, sample, device, name):
    spec = {"class": name} | ({"fallback": {"class": "AdamW", "lr": 0.001}} if name == "Muon" else {})
    config = small_config(optimizers={"mine": spec}, data={"train_size": 20}, training={"batch_size": 10})
    outcome = run(config, sample, device, "mine")
    assert len(outcome.step_losses[0]) == 2
    assert all(math.isfinite(loss) for loss in outcome.step_losses[0])
