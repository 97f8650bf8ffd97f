"""The networks: the tutorial's, a stronger one of six convolutions, torchvision's ResNet-18, or any callable."""

from collections.abc import Callable

from torch import nn

from optlab.schema.parameters import NUM_CLASSES
from optlab.system.errors import ConfigError, ResourceError
from optlab.training import class_import, determinism, guards

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


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 with the stem usual for 32×32 images: a 3×3 convolution, no pooling."""
    import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=NUM_CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"zilliax": zilliax, "conv6": conv6, "resnet18": resnet18}


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
