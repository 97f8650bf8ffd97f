"""The networks: the tutorial's, one of six convolutions, airbench's, torchvision's ResNet-18, or any callable."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optlab.data.cifar10 import convert_to_input
from optlab.schema.parameters import NUM_CLASSES
from optlab.system.errors import ConfigError, ResourceError, summarize_error
from optlab.training import class_import, determinism, guards

INITIALIZATION_IMAGES = 1000  # the first of the training split
EVALUATION_BATCH_SIZE = 125  # images: what a layer of it gives stays in a core's cache


def zilliax() -> nn.Module:
    """The tutorial's network, exactly: three convolutions with pooling, two linear layers, no activations."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, NUM_CLASSES),
    )


def conv6() -> nn.Module:
    """Six 3×3 convolutions with batch normalisation, in pairs of 32, 64 and 128 channels, and one linear layer."""
    layers: list[nn.Module] = []
    before = 3
    for channels in (32, 64, 128):
        for inputs in (before, channels):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        before = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * 4 * 4, NUM_CLASSES))


class Whitening(nn.Conv2d):
    """A 2×2 convolution whose fixed weights make patches of the images white: uncorrelated, each with variance 1.

    Of its 24 filters, 12 are the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue,
    the largest first; the other 12 are their negatives. The biases are trained: at first the mean patch gives 0.
    """

    _SIZE = 2  # pixels: height and width of a patch
    _EPSILON = 5e-4  # of the pixels' variance, added to each eigenvalue, so that noise is not amplified

    def __init__(self) -> None:
        super().__init__(3, 2 * 3 * self._SIZE**2, self._SIZE)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def initialize_from_images(self, images: Tensor) -> None:
        """Compute weights and biases, in float64.

        Args:
            images: float32, shape (n, 3, height, width).
        """
        patches = F.unfold(images, self._SIZE).transpose(1, 2).flatten(0, 1).double()
        covariance = torch.cov(patches.T, correction=0)
        variances, directions = torch.linalg.eigh(covariance)  # each column is an eigenvector, of either sign
        directions *= directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        filters = (directions / (variances + self._EPSILON * covariance.diagonal().mean()).sqrt()).T.flip(0)
        filters = torch.cat([filters, -filters])
        self.weight.copy_(filters.view_as(self.weight))
        assert self.bias is not None
        self.bias.copy_(-filters @ patches.mean(0))


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs times the factor."""
        return inputs * self._factor


def fast() -> nn.Module:
    """The network of airbench94 (Jordan, 2024, arXiv:2404.00498): whitening, and three pairs of convolutions.

    Each 3×3 convolution begins as the identity in its first channels. Of the batch normalisation, the biases are
    trained, and the weights stay 1.
    """
    layers: list[nn.Module] = [Whitening(), nn.GELU()]
    before = 24  # channels: the filters of the whitening
    for channels in (64, 256, 256):
        layers += [_make_identity_conv(before, channels), nn.MaxPool2d(2), _make_norm(channels), nn.GELU()]
        layers += [_make_identity_conv(channels, channels), _make_norm(channels), nn.GELU()]
        before = channels
    output = nn.Linear(before, NUM_CLASSES, bias=False)
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), output, Scale(1 / 9))


def _make_identity_conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.detach()[:inputs])
    return conv


def _make_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 with the stem usual for 32×32 images: a 3×3 convolution, no pooling."""
    import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=NUM_CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"zilliax": zilliax, "conv6": conv6, "fast": fast, "resnet18": resnet18}


def build(name: str, seed: int) -> nn.Module:
    """Build a network, its initial weights a function of (name, seed) alone.

    Seeds the global generators, so later random numbers of the model and the optimizer are repeatable, too. Weights
    stay contiguous, which optimizers that flatten gradients, such as LBFGS, need: the channels_last memory of the
    images already decides the layout of the convolutions, with the same speed and bits.

    Raises:
        ConfigError: the name is unknown, or its callable fails or does not return a module.
        ResourceError: the machine lacks memory.
    """
    factory = MODELS[name] if name in MODELS else class_import.resolve(name, f"model: {name}", MODELS)
    determinism.seed_all(seed)
    try:
        where = f"model: {name}"
        with guards.guard_torch_settings(where), guards.guard_resources(f"params.yaml: {where}"):
            model = factory()
    except (ConfigError, ResourceError):
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign callable raises
        raise ConfigError(
            f"params.yaml: model: {name} cannot be built: called without arguments, it raised "
            f"{type(error).__name__}: {error}"
        ) from None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"params.yaml: model: {name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def initialize_from_images(name: str, model: nn.Module, images: Tensor) -> None:
    """Call the method `initialize_from_images` of each part of a model that has one, to compute initial weights.

    It gets the first 1,000 images as the model does: float32, shape (n, 3, 32, 32), from 0 to 1.

    Args:
        name: of the model in params.yaml.
        images: uint8, shape (n, 32, 32, 3): the training split.

    Raises:
        ConfigError: a method fails.
        ResourceError: the machine lacks memory.
    """
    methods = {
        key: part.initialize_from_images for key, part in model.named_modules()
        if callable(getattr(part, "initialize_from_images", None))
    }  # fmt: skip
    inputs = convert_to_input(images[:INITIALIZATION_IMAGES]) if methods else None
    for key, method in methods.items():
        where = f"params.yaml: model: {name}: {key + '.' if key else ''}initialize_from_images"
        try:
            with guards.guard_resources(where):
                method(inputs)
        except ResourceError:
            raise
        except Exception as error:  # whatever a foreign method raises
            raise ConfigError(f"{where} fails: {type(error).__name__}: {summarize_error(error)}") from None
