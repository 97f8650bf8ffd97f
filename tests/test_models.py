"""Networks by name or by path; their initial weights are a function of (seed, name) alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from optlab.data import cifar10
from optlab.system.errors import ConfigError
from optlab.training import models

ZILLIAX = [
    "Conv2d(3, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))",
    "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)",
    "Conv2d(32, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))",
    "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)",
    "Conv2d(32, 64, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))",
    "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)",
    "Flatten(start_dim=1, end_dim=-1)",
    "Linear(in_features=1024, out_features=64, bias=True)",
    "Linear(in_features=64, out_features=10, bias=True)",
]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that puts a module's source beside params.yaml and returns its name, new for every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"user_models_{abs(hash(tmp_path))}"

    def write(source):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def count_parameters(model):
    return sum(value.numel() for value in model.parameters())


def test_zilliax_equals_tutorial_network():
    model = models.build("zilliax", seed=0)
    assert [str(layer) for layer in model] == ZILLIAX
    # weights and biases: 3·32·25+32, 32·32·25+32, 32·64·25+64, 1024·64+64, 64·10+10
    assert count_parameters(model) == 2432 + 25632 + 51264 + 65600 + 650 == 145578


@pytest.mark.parametrize("name", models.MODELS)
def test_model_has_ten_outputs_per_image(name):
    model = models.build(name, seed=0).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_conv6_has_six_paired_convolutions():
    model = models.build("conv6", seed=0)
    kinds = [type(layer).__name__ for layer in model]
    pair = ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"]
    assert kinds == pair * 3 + ["Flatten", "Linear"]
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 32, 64, 64, 128, 128]
    # the convolutions' weights, two numbers for each channel of a normalisation, and 128·4·4·10+10
    assert (
        count_parameters(model) == 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 2 * 448 + 20490
    )


def test_fast_has_layers_of_airbench94():
    model = models.build("fast", seed=0)
    kinds = [type(layer).__name__ for layer in model]
    pair = ["Conv2d", "MaxPool2d", "BatchNorm2d", "GELU", "Conv2d", "BatchNorm2d", "GELU"]
    assert kinds == ["Whitening", "GELU", *pair * 3, "MaxPool2d", "Flatten", "Linear", "Scale"]
    # the convolutions' weights, one bias for each channel of a normalisation and of the whitening, and 256·10
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trained == convolutions + 2 * (64 + 256 + 256) + 24 + 2560
    images = torch.rand(2, 24, 8, 8)
    assert torch.allclose(model[2](images)[:, :24], images, atol=1e-6)  # at first
    assert torch.equal(model[-1](torch.ones(1)), torch.tensor([1 / 9]))


def draw_images(seed, count=200):
    """Random images whose neighbouring pixels and colours are correlated: uint8, shape (n, 32, 32, 3)."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, 34, 34, 3)) @ generator.normal(size=(3, 3))
    smooth = sum(noise[:, row : row + 32, column : column + 32] for row in range(3) for column in range(3))
    return torch.from_numpy((120 + 12 * smooth).clip(0, 255).astype(np.uint8))


def build_fast(images, seed=0):
    model = models.build("fast", seed)
    models.initialize_from_images("fast", model, images)
    return model


def test_whitening_makes_patches_white():
    """Mean 0 and the identity as covariance, for the first half of the filters; the other half is its negative."""
    images = draw_images(0)
    outputs = build_fast(images)[0](cifar10.convert_to_input(images)).detach().transpose(0, 1).flatten(1)
    assert outputs.shape == (24, 200 * 31 * 31)
    covariance = torch.cov(outputs[:12].double(), correction=0)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.001
    # eigenvalue / (eigenvalue + 0.0005 of the mean variance), in falling order
    assert 0.9 < covariance[11, 11] < covariance[0, 0] < 1
    assert outputs.mean(1).abs().max() < 0.001
    assert torch.equal(outputs[:12], -outputs[12:])


def test_filters_do_not_depend_on_sign_of_eigenvectors(monkeypatch):
    images, eigh = draw_images(0), torch.linalg.eigh
    expected = build_fast(images)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    assert weights_equal(build_fast(images), expected)


def test_initial_weights_from_images_depend_on_seed_and_first_images_only():
    images = draw_images(0, models.INITIALIZATION_IMAGES)
    first = build_fast(images)
    torch.rand(17)
    more = torch.cat([images, draw_images(1, 10)])
    assert weights_equal(first, build_fast(more))
    other_images, other_seed = build_fast(draw_images(1)), build_fast(images, seed=1)
    assert not torch.equal(first[0].weight, other_images[0].weight)
    assert torch.equal(first[2].weight, other_images[2].weight)  # a convolution
    assert torch.equal(first[0].weight, other_seed[0].weight)
    assert not torch.equal(first[2].weight, other_seed[2].weight)


@pytest.mark.parametrize("name", sorted(set(models.MODELS) - {"fast"}))
def test_other_models_keep_their_initial_weights(name):
    model = models.build(name, seed=0)
    state = torch.get_rng_state()
    models.initialize_from_images(name, model, draw_images(0, 2))
    assert weights_equal(model, models.build(name, seed=0)) and torch.equal(torch.get_rng_state(), state)


CENTRED = """
import torch
from torch import nn

class Centre(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def initialize_from_images(self, images):
        assert len(images) > 1
        self.mean.copy_(images.mean((0, 2, 3)).view(3, 1, 1))

    def forward(self, images):
        return images - self.mean

def net():
    return nn.Sequential(Centre(), nn.Flatten(), nn.Linear(3072, 10))
"""


def test_part_of_custom_model_is_initialized_from_images(module):
    name, images = f"{module(CENTRED)}.net", draw_images(0, 5)
    model = models.build(name, seed=0)
    models.initialize_from_images(name, model, images)
    assert model[0].mean.flatten().tolist() == pytest.approx((images / 255).mean((0, 1, 2)).tolist(), rel=1e-5)
    with pytest.raises(ConfigError, match=r"\.net: 0\.initialize_from_images fails: AssertionError: AssertionError$"):
        models.initialize_from_images(name, model, images[:1])


def test_resnet18_has_stem_for_small_images():
    model = models.build("resnet18", seed=0)
    assert str(model.conv1) == "Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
    assert isinstance(model.maxpool, nn.Identity)
    # torchvision's 11,689,512 for 1000 classes, less 990 outputs of 512 weights and a bias, less 64·3·(49-9)
    assert count_parameters(model) == 11_689_512 - 990 * 513 - 64 * 3 * 40


@pytest.mark.parametrize("name", models.MODELS)
def test_model_weights_stay_contiguous_with_channels_last(name):
    """LBFGS and its like view each gradient as one row, which channels_last weights would not allow."""
    model = models.build(name, seed=0)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    model(images).sum().backward()
    assert all(value.is_contiguous() for value in model.parameters())
    assert all(value.grad.is_contiguous() for value in model.parameters() if value.requires_grad)
    assert first(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", models.MODELS)
def test_model_trains_with_batch_of_one(name):
    """The check of a model leaves these out."""
    model = models.build(name, seed=0).train()
    model(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def weights_equal(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", models.MODELS)
def test_initial_weights_depend_on_seed_and_name_only(name):
    torch.manual_seed(99)
    first = models.build(name, seed=3)
    torch.rand(17)
    models.build("zilliax", seed=5)
    second = models.build(name, seed=3)
    assert weights_equal(first, second)
    assert not weights_equal(first, models.build(name, seed=4))


def test_initial_weights_equal_seeded_pytorch():
    torch.manual_seed(7)
    expected = nn.Conv2d(3, 32, 5, padding=2)
    assert torch.equal(models.build("zilliax", seed=7)[0].weight, expected.weight)


def test_random_draws_after_build_are_repeatable():
    first = (models.build("zilliax", seed=1), torch.rand(5))[1]
    second = (models.build("zilliax", seed=1), torch.rand(5))[1]
    assert torch.equal(first, second)


def test_model_can_be_callable_of_user_module(module):
    name = module(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )  # fmt: skip
    first, second = models.build(f"{name}.tiny", seed=0), models.build(f"{name}.tiny", seed=0)
    assert count_parameters(first) == 30730
    assert weights_equal(first, second)


REFUSED = {
    "misspelt": ("zilliaks", "did you mean zilliax?"),
    "another case": ("ResNet18", "did you mean resnet18?"),
    "unlike any": ("vit", "unknown name: it is one of zilliax, conv6, fast, resnet18, or a dotted path to another"),
    "no such package": ("no_such_package.net", "cannot import no_such_package"),
    "no such attribute": ("torchvision.models.resnet19", "did you mean resnet18?"),
    "needs arguments": ("torch.nn.Linear", "called without arguments, it raised"),
    "explains itself in many lines": ("torch.zeros", "called without arguments, it raised"),
    "a number": ("math.pi", "called without arguments, it raised"),
    "returns no module": ("collections.OrderedDict", "returned a OrderedDict, not a torch.nn.Module"),
    "empty": ("", "unknown name"),
    "only dots": ("..", "correct the path"),
}


@pytest.mark.parametrize(("name", "phrase"), REFUSED.values(), ids=REFUSED)
def test_invalid_model_name_is_refused(name, phrase):
    with pytest.raises(ConfigError) as caught:
        models.build(name, seed=0)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"params.yaml: model: {name}"), message
    assert phrase in message


def test_model_constructor_error_is_one_line(module):
    name = module("def broken():\n    raise ValueError('two\\nlines')\n")
    with pytest.raises(ConfigError, match=rf"^params\.yaml: model: {name}\.broken.*two") as caught:
        models.build(f"{name}.broken", seed=0)
    assert "\n" not in str(caught.value)


def test_model_import_error_is_one_line(module):
    name = module("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"cannot import \w+ \(ModuleNotFoundError: No module named 'no_such_p"):
        models.build(f"{name}.net", seed=0)


def test_model_import_calling_sys_exit_is_refused(module):
    """A script without a main function reads the command line, and ends the program that imports it."""
    name = module("import sys\nsys.exit()\n")
    with pytest.raises(ConfigError, match=r"cannot import \w+ \(SystemExit: "):
        models.build(f"{name}.net", seed=0)


def test_model_constructor_calling_sys_exit_is_refused():
    with pytest.raises(ConfigError, match=r"^params\.yaml: model: sys\.exit cannot be built: .* SystemExit:$"):
        models.build("sys.exit", seed=0)


def test_torchvision_imports_before_torch():
    """Its compiled part is a CUDA build on the package index, and cannot load beside a CPU build of torch."""
    code = (
        "import torchvision, torch\n"
        "from torchvision.transforms import v2\n"
        "assert v2.functional.hflip(torch.arange(3).view(1, 1, 3)).flatten().tolist() == [2, 1, 0]\n"
        "torchvision.models.resnet18(); torchvision.datasets.CIFAR10; torchvision.ops.nms\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
