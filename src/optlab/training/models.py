"""The networks: the tutorial's, a stronger one of six convolutions, torchvision's ResNet-18, or any callable."""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from optlab.schema.parameters import NUM_CLASSES
from optlab.system.errors import ConfigError, ResourceError, print_stderr
from optlab.system.repository import CUSTOM
from optlab.system.text import suggest_similar
from optlab.training import class_import, determinism, error_attribution, process_settings

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
    """A new network, its initial weights a function of (name, seed) alone.

    It seeds the global generators, so what a model or an optimizer draws while it trains is repeatable too. The weights
    stay contiguous: the channels_last memory of the images decides the convolutions' layout, with the same speed and
    the same bits, and optimizers that flatten gradients, as LBFGS does, need contiguous ones.

    Raises:
        ConfigError: the name is unknown, or what it names does not return a module.
        LackError: there is not memory enough for it.
    """
    factory = MODELS[name] if name in MODELS else resolve(name, f"model: {name}", MODELS)
    determinism.seed_all(seed)
    try:
        with process_settings.guard_torch_settings(f"model: {name}"):
            model = factory()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign callable raises
        if resource_error := error_attribution.describe_resource_error(error):
            raise ResourceError(f"params.yaml: model: {name} {resource_error}") from None
        raise ConfigError(
            f"params.yaml: model: {name} cannot be built: called without arguments, it raised "
            f"{type(error).__name__}: {error}"
        ) from None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"params.yaml: model: {name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def resolve(path: str, where: str, known: Any = ()) -> Any:
    """What a dotted path names; modules of the folder custom/ and of the repository can be named too.

    Args:
        path: `package.module.attribute`.
        where: how messages call the place.
        known: the short names that could have been meant.

    Raises:
        ConfigError: it cannot be imported.
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        hint = suggest_similar(path, known) or f": it is one of {', '.join(known)}, or a dotted path to another"
        raise ConfigError(f"params.yaml: {where}: unknown name{hint}")
    top, _, below = path.partition(".")
    if top == CUSTOM.name and not any((CUSTOM / each).exists() for each in (top, f"{top}.py")):
        raise ConfigError(f"params.yaml: {where}: modules are looked for in {CUSTOM}/ itself: write {below}")
    class_import.check_module_name(top, where)
    class_import.extend_sys_path()
    try:
        with process_settings.guard_torch_settings(f"{where}: importing {module_name}"):
            module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign module raises while it is imported
        text = " ".join(str(error).split())
        raise ConfigError(
            f"params.yaml: {where}: cannot import {module_name} ({type(error).__name__}: {text}): "
            f"install it, or correct the path"
        ) from None
    if not hasattr(module, attribute):
        names = [name for name, _ in inspect.getmembers(module)]
        raise ConfigError(f"params.yaml: {where}: {module_name} has no {attribute}{suggest_similar(attribute, names)}")
    _warn_if_untracked(module_name, getattr(module, "__file__", None) or "/")
    return getattr(module, attribute)


@functools.cache
def _warn_if_untracked(module: str, file: str) -> None:
    """Once for each module of the repository that DVC does not see change."""
    here, path = Path.cwd(), Path(file)
    if not path.is_relative_to(here) or "site-packages" in path.parts:
        return
    if not path.is_relative_to(here / CUSTOM) and not path.is_relative_to(Path(__file__).parents[1]):
        print_stderr(f"warning: {module}: DVC does not see when {path.relative_to(here)} changes: move it to {CUSTOM}/")
