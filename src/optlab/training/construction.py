"""What an optimizer's class is given besides its hyperparameters, by the names of its arguments."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from optlab.config.entries import Group, OptimizerSpec
from optlab.config.parameters import Config
from optlab.training.stepping import Share

# Argument → what it is given, where params.yaml does not; by the names that are common.
_MODEL = ("model",)
_NAMED = ("named_parameters", "named_params")
_PARAMETERS = ("params", "parameters", "param_groups")
_BASE = ("base_optimizer", "optimizer", "base", "inner_optimizer", "optim", "opt")
_LENGTHS = {
    "total_steps": ("total_steps", "num_training_steps", "num_iterations", "total_iterations", "max_steps", "t_total"),
    "steps_per_epoch": ("steps_per_epoch", "iterations_per_epoch", "num_batches_per_epoch"),
    "epochs": ("num_epochs", "epochs"),
    "images": ("num_data", "train_size", "dataset_size", "data_size"),
}


@dataclass(frozen=True)
class Context:
    """What is known of a training before its first step.

    Attributes:
        lengths: `total_steps`, `steps_per_epoch`, `epochs` and `images`, those that are trained on.
    """

    model: nn.Module
    lengths: dict[str, int]

    def around(self, *parameters: nn.Parameter) -> "Context":
        """The same with a model of these parameters only: what is tried out must not touch the real one."""
        return Context(nn.ParameterDict({f"p{number}": each for number, each in enumerate(parameters)}), self.lengths)

    def handed_over(self) -> dict[str, Any]:
        """Argument → what is given for it, where the class leaves it open."""
        found: dict[str, Any] = dict.fromkeys(_MODEL, self.model)
        found |= {name: list(self.model.named_parameters()) for name in _NAMED}
        for length, names in _LENGTHS.items():
            if length in self.lengths:
                found |= dict.fromkeys(names, self.lengths[length])
        return found

    @classmethod
    def of(cls, config: Config, model: nn.Module) -> "Context":
        """That of a training by this params.yaml."""
        epochs, steps = config.training.epochs, config.steps_per_epoch
        lengths = {"total_steps": epochs * steps, "steps_per_epoch": steps, "epochs": epochs}
        return cls(model, lengths | {"images": config.data.train_size})


Base = tuple[type[Optimizer], OptimizerSpec]


def arguments(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """Its arguments by name, without `self`."""
    return dict(inspect.signature(cls).parameters)


def base_argument(cls: type[Optimizer]) -> str | None:
    """The argument for another optimizer that it wraps, if it has one."""
    own = arguments(cls)
    return next((name for name in _BASE if name in own), None)


def takes_parameters(cls: type[Optimizer]) -> bool:
    """Whether it is given parameters, or groups of them; otherwise they come with the model or with its base."""
    names = list(arguments(cls))
    return bool(names) and (names[0] not in (*_MODEL, *_NAMED, *_BASE) or any(name in names for name in _PARAMETERS))


def known(cls: type[Optimizer]) -> set[str]:
    """The arguments that params.yaml need not give, and may not if they are objects."""
    own = list(arguments(cls))
    return {name for name in own if name in (*_MODEL, *_NAMED, *_PARAMETERS, *_BASE)} | set(own[:1])


def values_of(spec: OptimizerSpec | Group) -> dict[str, Any]:
    """The hyperparameters with YAML's lists as the tuples that torch's classes expect."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.hyperparameters.items()}


def construct(cls: type[Optimizer], spec: OptimizerSpec, base: Base | None, shares: Sequence[Share],
              context: Context) -> Optimizer:  # fmt: skip
    """An optimizer over these parameters.

    Args:
        base: what it wraps, which it gets as a class where its argument is for one, otherwise as an instance.

    Raises:
        Exception: whatever the class raises.
    """
    own, values, handed = arguments(cls), values_of(spec), context.handed_over()
    first = next(iter(own), "")
    for name, argument in own.items():
        if name == first and argument.kind is argument.VAR_POSITIONAL:  # it passes on whatever it is given
            values[name] = as_argument(shares)
        if name in values or argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            continue
        if base and name == base_argument(cls):
            values |= _wrapped(name, own, base, shares, context)
        elif name in handed and argument.default in (argument.empty, None):
            values[name] = handed[name]
        elif name in _PARAMETERS or (name == first and name not in _BASE):
            values[name] = as_argument(shares)
    positional = [values.pop(first)] if first in values else []
    return cls(*positional, **values)


def _wrapped(name: str, own: dict[str, inspect.Parameter], base: Base, shares: Sequence[Share],
             context: Context) -> dict[str, Any]:  # fmt: skip
    """The base as an instance where the wrapper takes no parameters, otherwise as a class with what goes with it."""
    cls, spec = base
    if not any(each in own for each in _PARAMETERS):
        return {name: construct(cls, spec, None, shares, context)}
    if not any(each.kind is each.VAR_KEYWORD for each in own.values()):
        return {name: functools.partial(cls, **values_of(spec))}
    for key in spec.hyperparameters:
        if key in own:  # the groups that they share have one value of that name
            raise ValueError(f"{key} is a hyperparameter of its own, and cannot be given to its base as well")
    return {name: cls, **values_of(spec)}


def as_argument(shares: Sequence[Share]) -> list[Any]:
    """Groups as torch's optimizers take them, or only parameters where no group has values of its own."""
    if len(shares) == 1 and not shares[0].values:
        return list(shares[0].parameters.values())
    return [share.as_group() for share in shares]
