"""Optimizer classes of params.yaml's entries, and the arguments that they are instantiated with.

Arguments other than hyperparameters, such as the model or the number of steps, are recognized by their names.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optlab.config import catalog
from optlab.schema.optimizer import GroupSpec, OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system.errors import ConfigError
from optlab.training.class_import import resolve
from optlab.training.optimizer_driver import ParamGroup

# Common names of arguments that params.yaml need not give.
_MODEL_ARGUMENTS = ("model",)
_NAMED_PARAMETERS_ARGUMENTS = ("named_parameters", "named_params")
_PARAMETERS_ARGUMENTS = ("params", "parameters", "param_groups")
_BASE_ARGUMENTS = ("base_optimizer", "optimizer", "base", "inner_optimizer", "optim", "opt")
_LENGTH_ARGUMENTS = {
    "total_steps": ("total_steps", "num_training_steps", "num_iterations", "total_iterations", "max_steps", "t_total"),
    "steps_per_epoch": ("steps_per_epoch", "iterations_per_epoch", "num_batches_per_epoch"),
    "epochs": ("num_epochs", "epochs"),
    "images": ("num_data", "train_size", "dataset_size", "data_size"),
}


@dataclass(frozen=True)
class TrainingContext:
    """Facts about a training that a class may take as arguments.

    Attributes:
        lengths: `total_steps`, `steps_per_epoch`, `epochs` and `images` of the training split.
    """

    model: nn.Module
    lengths: dict[str, int]

    def replace_parameters(self, *parameters: nn.Parameter) -> "TrainingContext":
        """Return a context with a model of these parameters only, to try a class without touching the real model."""
        return TrainingContext(
            nn.ParameterDict({f"p{number}": each for number, each in enumerate(parameters)}), self.lengths
        )

    def get_injectable_arguments(self) -> dict[str, Any]:
        """Return argument → value, for arguments that are required or None by default."""
        found: dict[str, Any] = dict.fromkeys(_MODEL_ARGUMENTS, self.model)
        found |= {name: list(self.model.named_parameters()) for name in _NAMED_PARAMETERS_ARGUMENTS}
        for length, names in _LENGTH_ARGUMENTS.items():
            if length in self.lengths:
                found |= dict.fromkeys(names, self.lengths[length])
        return found

    @classmethod
    def from_config(cls, config: Config, model: nn.Module) -> "TrainingContext":
        """Return the context of a training."""
        epochs, steps = config.training.epochs, config.steps_per_epoch
        lengths = {"total_steps": epochs * steps, "steps_per_epoch": steps, "epochs": epochs}
        return cls(model, lengths | {"images": config.data.train_size})


BaseOptimizer = tuple[type[Optimizer], OptimizerSpec]


def get_arguments(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class by name, without `self`."""
    return dict(inspect.signature(cls).parameters)


def find_base_argument(cls: type[Optimizer]) -> str | None:
    """Return the name of the argument for an optimizer to wrap, if the class has one."""
    own = get_arguments(cls)
    return next((name for name in _BASE_ARGUMENTS if name in own), None)


def has_parameters_argument(cls: type[Optimizer]) -> bool:
    """Return whether the class takes parameters or groups; otherwise it gets them from the model or its base."""
    names = list(get_arguments(cls))
    return bool(names) and (
        names[0] not in (*_MODEL_ARGUMENTS, *_NAMED_PARAMETERS_ARGUMENTS, *_BASE_ARGUMENTS)
        or any(name in names for name in _PARAMETERS_ARGUMENTS)
    )


def get_injected_names(cls: type[Optimizer]) -> set[str]:
    """Return the arguments that params.yaml need not give, and may not if they are objects."""
    own = list(get_arguments(cls))
    return {
        name
        for name in own
        if name in (*_MODEL_ARGUMENTS, *_NAMED_PARAMETERS_ARGUMENTS, *_PARAMETERS_ARGUMENTS, *_BASE_ARGUMENTS)
    } | set(own[:1])


def convert_hyperparameters(spec: OptimizerSpec | GroupSpec) -> dict[str, Any]:
    """Return the hyperparameters, with lists as tuples, which torch's classes expect."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.hyperparameters.items()}


def instantiate(
    cls: type[Optimizer],
    spec: OptimizerSpec,
    base: BaseOptimizer | None,
    param_groups: Sequence[ParamGroup],
    context: TrainingContext,
) -> Optimizer:
    """Instantiate a class over these parameters.

    Args:
        base: the optimizer that it wraps, given as a class or as an instance, by the class's other arguments.

    Raises:
        Exception: whatever the class raises.
    """
    own, values, injectable = get_arguments(cls), convert_hyperparameters(spec), context.get_injectable_arguments()
    first = next(iter(own), "")
    for name, argument in own.items():
        if name == first and argument.kind is argument.VAR_POSITIONAL:  # the class passes its arguments on
            values[name] = make_params_argument(param_groups)
        if name in values or argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            continue
        if base and name == find_base_argument(cls):
            values |= _make_base_arguments(name, own, base, param_groups, context)
        elif name in injectable and argument.default in (argument.empty, None):
            values[name] = injectable[name]
        elif name in _PARAMETERS_ARGUMENTS or (name == first and name not in _BASE_ARGUMENTS):
            values[name] = make_params_argument(param_groups)
    positional = [values.pop(first)] if first in values else []
    return cls(*positional, **values)


def _make_base_arguments(
    name: str,
    own: dict[str, inspect.Parameter],
    base: BaseOptimizer,
    param_groups: Sequence[ParamGroup],
    context: TrainingContext,
) -> dict[str, Any]:
    """Return the base as an instance if the wrapper takes no parameters, otherwise as a class with its arguments."""
    cls, spec = base
    if not any(each in own for each in _PARAMETERS_ARGUMENTS):
        return {name: instantiate(cls, spec, None, param_groups, context)}
    if not any(each.kind is each.VAR_KEYWORD for each in own.values()):
        return {name: functools.partial(cls, **convert_hyperparameters(spec))}
    for key in spec.hyperparameters:
        if key in own:  # wrapper and base share their groups
            raise ValueError(f"{key} is a hyperparameter of its own, and cannot be given to its base as well")
    return {name: cls, **convert_hyperparameters(spec)}


def make_params_argument(param_groups: Sequence[ParamGroup]) -> list[Any]:
    """Return groups as torch's optimizers take them; plain parameters for one group without values of its own."""
    if len(param_groups) == 1 and not param_groups[0].values:
        return list(param_groups[0].parameters.values())
    return [share.convert_to_dict() for share in param_groups]


def get_torch_classes() -> dict[str, type[Optimizer]]:
    """Return the optimizer classes of torch.optim by name."""
    return {
        name: cls
        for name, cls in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(cls, Optimizer) and cls is not Optimizer
    }


@dataclass(frozen=True)
class ResolvedOptimizer:
    """One entry of params.yaml with its class.

    Attributes:
        where: place in params.yaml.
        base: class and spec of the optimizer that it wraps.
    """

    where: str
    cls: type[Optimizer]
    spec: OptimizerSpec
    base: BaseOptimizer | None

    @property
    def classes(self) -> list[type[Optimizer]]:
        """Classes of the entry and its base."""
        return [self.cls, *([self.base[0]] if self.base else [])]


def resolve_optimizer(where: str, spec: OptimizerSpec) -> ResolvedOptimizer:
    """Import the class of an entry, and that of its base.

    Raises:
        ConfigError: the class does not exist or is no dense optimizer, or it needs a base and has none, or vice versa.
    """
    cls = _resolve_class(where, spec)
    base_argument = find_base_argument(cls)
    if spec.base is None:
        if base_argument and get_arguments(cls)[base_argument].default is inspect.Parameter.empty:
            raise ConfigError(
                f"params.yaml: {where}: {spec.class_} wraps another optimizer: add `base: {{class: SGD, lr: 0.1}}`"
            )
        return ResolvedOptimizer(where, cls, spec, None)
    if base_argument is None:
        raise ConfigError(f"params.yaml: {where}.base: {spec.class_} wraps no other optimizer: remove it")
    return ResolvedOptimizer(where, cls, spec, (resolve_optimizer(f"{where}.base", spec.base).cls, spec.base))


def _resolve_class(where: str, spec: OptimizerSpec) -> type[Optimizer]:
    known, named = get_torch_classes(), f"{where}.class: {spec.class_}"
    is_short = "." not in spec.class_ and spec.class_ not in known
    if is_short and (entry := catalog.find_name(spec.class_)):  # reading the catalog takes time
        raise ConfigError(f"params.yaml: {named}: no class of torch.optim: `optlab add {entry}` has an entry for it")
    cls = known[spec.class_] if spec.class_ in known else resolve(spec.class_, named, known)
    if not (inspect.isclass(cls) and issubclass(cls, Optimizer)):
        raise ConfigError(f"params.yaml: {where}.class: {spec.class_} is no subclass of torch.optim.Optimizer")
    if cls is torch.optim.SparseAdam:
        raise ConfigError(
            f"params.yaml: {where}.class: SparseAdam takes sparse gradients only, and no model here has them: use Adam"
        )
    return cls


def is_torch_class(cls: type) -> bool:
    """Return whether the class is one of torch's, whose behaviour is known."""
    return cls.__module__.partition(".")[0] == "torch"


def should_create_graph(cls: type[Optimizer]) -> bool:
    """Return whether the class's source mentions `create_graph`, so that it needs second derivatives."""
    return not is_torch_class(cls) and "create_graph" in get_source(cls)


def get_source(cls: Any) -> str:
    """Return the source of a class or function; empty if it was not read from a file."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""
