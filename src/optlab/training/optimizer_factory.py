"""What an optimizer's class is given besides its hyperparameters, by the names of its arguments.

The class that an entry of params.yaml names, and what its source says that it wants.
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

# Argument → what it is given, where params.yaml does not; by the names that are common.
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
    """What is known of a training before its first step.

    Attributes:
        lengths: `total_steps`, `steps_per_epoch`, `epochs` and `images`, those that are trained on.
    """

    model: nn.Module
    lengths: dict[str, int]

    def replace_parameters(self, *parameters: nn.Parameter) -> "TrainingContext":
        """The same with a model of these parameters only: what is tried out must not touch the real one."""
        return TrainingContext(
            nn.ParameterDict({f"p{number}": each for number, each in enumerate(parameters)}), self.lengths
        )

    def get_injectable_arguments(self) -> dict[str, Any]:
        """Argument → what is given for it, where the class leaves it open."""
        found: dict[str, Any] = dict.fromkeys(_MODEL_ARGUMENTS, self.model)
        found |= {name: list(self.model.named_parameters()) for name in _NAMED_PARAMETERS_ARGUMENTS}
        for length, names in _LENGTH_ARGUMENTS.items():
            if length in self.lengths:
                found |= dict.fromkeys(names, self.lengths[length])
        return found

    @classmethod
    def from_config(cls, config: Config, model: nn.Module) -> "TrainingContext":
        """That of a training by this params.yaml."""
        epochs, steps = config.training.epochs, config.steps_per_epoch
        lengths = {"total_steps": epochs * steps, "steps_per_epoch": steps, "epochs": epochs}
        return cls(model, lengths | {"images": config.data.train_size})


BaseOptimizer = tuple[type[Optimizer], OptimizerSpec]


def get_arguments(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """Its arguments by name, without `self`."""
    return dict(inspect.signature(cls).parameters)


def find_base_argument(cls: type[Optimizer]) -> str | None:
    """The argument for another optimizer that it wraps, if it has one."""
    own = get_arguments(cls)
    return next((name for name in _BASE_ARGUMENTS if name in own), None)


def has_parameters_argument(cls: type[Optimizer]) -> bool:
    """Whether it is given parameters, or groups of them; otherwise they come with the model or with its base."""
    names = list(get_arguments(cls))
    return bool(names) and (
        names[0] not in (*_MODEL_ARGUMENTS, *_NAMED_PARAMETERS_ARGUMENTS, *_BASE_ARGUMENTS)
        or any(name in names for name in _PARAMETERS_ARGUMENTS)
    )


def get_injected_names(cls: type[Optimizer]) -> set[str]:
    """The arguments that params.yaml need not give, and may not if they are objects."""
    own = list(get_arguments(cls))
    return {
        name
        for name in own
        if name in (*_MODEL_ARGUMENTS, *_NAMED_PARAMETERS_ARGUMENTS, *_PARAMETERS_ARGUMENTS, *_BASE_ARGUMENTS)
    } | set(own[:1])


def convert_hyperparameters(spec: OptimizerSpec | GroupSpec) -> dict[str, Any]:
    """The hyperparameters with YAML's lists as the tuples that torch's classes expect."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.hyperparameters.items()}


def instantiate(
    cls: type[Optimizer],
    spec: OptimizerSpec,
    base: BaseOptimizer | None,
    param_groups: Sequence[ParamGroup],
    context: TrainingContext,
) -> Optimizer:
    """An optimizer over these parameters.

    Args:
        base: what it wraps, which it gets as a class where its argument is for one, otherwise as an instance.

    Raises:
        Exception: whatever the class raises.
    """
    own, values, injectable = get_arguments(cls), convert_hyperparameters(spec), context.get_injectable_arguments()
    first = next(iter(own), "")
    for name, argument in own.items():
        if name == first and argument.kind is argument.VAR_POSITIONAL:  # it passes on whatever it is given
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
    """The base as an instance where the wrapper takes no parameters, otherwise as a class with what goes with it."""
    cls, spec = base
    if not any(each in own for each in _PARAMETERS_ARGUMENTS):
        return {name: instantiate(cls, spec, None, param_groups, context)}
    if not any(each.kind is each.VAR_KEYWORD for each in own.values()):
        return {name: functools.partial(cls, **convert_hyperparameters(spec))}
    for key in spec.hyperparameters:
        if key in own:  # the groups that they share have one value of that name
            raise ValueError(f"{key} is a hyperparameter of its own, and cannot be given to its base as well")
    return {name: cls, **convert_hyperparameters(spec)}


def make_params_argument(param_groups: Sequence[ParamGroup]) -> list[Any]:
    """Groups as torch's optimizers take them, or only parameters where no group has values of its own."""
    if len(param_groups) == 1 and not param_groups[0].values:
        return list(param_groups[0].parameters.values())
    return [share.convert_to_dict() for share in param_groups]


def get_torch_classes() -> dict[str, type[Optimizer]]:
    """The optimizer classes of torch.optim, by name."""
    return {
        name: cls
        for name, cls in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(cls, Optimizer) and cls is not Optimizer
    }


@dataclass(frozen=True)
class ResolvedOptimizer:
    """One class with its hyperparameters, and what it wraps.

    Attributes:
        where: in params.yaml.
    """

    where: str
    cls: type[Optimizer]
    spec: OptimizerSpec
    base: BaseOptimizer | None

    @property
    def classes(self) -> list[type[Optimizer]]:
        """Its own, and that of what it wraps."""
        return [self.cls, *([self.base[0]] if self.base else [])]


def resolve_optimizer(where: str, spec: OptimizerSpec) -> ResolvedOptimizer:
    """The entry with its class, and that of its base.

    Raises:
        ConfigError: there is no such class, it has no such hyperparameter, or it wraps another optimizer and gets none.
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
    if spec.class_ not in known and (entry := catalog.find_name(spec.class_)):
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
    """Whether it is one of torch's own, whose ways are known."""
    return cls.__module__.partition(".")[0] == "torch"


def should_create_graph(cls: type[Optimizer]) -> bool:
    """Whether its own source speaks of gradients that can be differentiated once more."""
    return not is_torch_class(cls) and "create_graph" in get_source(cls)


def get_source(cls: Any) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # it was not read from a file
        return ""
