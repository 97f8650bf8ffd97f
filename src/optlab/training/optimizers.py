"""Optimizers by name: every dense class of torch.optim, and any other by its dotted path."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.config.parameters import CLASS_COUNT, Config, OptimizerSpec
from optlab.system.errors import ConfigError, one_line
from optlab.system.wording import did_you_mean, shown, to_blame
from optlab.training import uncompiled
from optlab.training.models import build as build_model
from optlab.training.models import resolve

Closure = Callable[[], Tensor]
ENOUGH = 50  # evaluations of the loss in a checked step; LBFGS with `max_iter: 1000000000` would not come back
FALLBACK = "fallback."  # begins the names of a fallback's hyperparameters


class _EnoughError(Exception):
    """Ends a step that goes on and on."""


def torch_classes() -> dict[str, type[Optimizer]]:
    """The optimizer classes of torch.optim, by name."""
    return {
        name: cls
        for name, cls in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(cls, Optimizer) and cls is not Optimizer
    }


class Stepper:
    """One optimizer, or one with a fallback for the parameters that it refuses, driven as one.

    Attributes:
        optimizers: the configured class first, then its fallback if any parameter went there.
    """

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        self._base_lr = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
        self._takes_closure = "closure" in inspect.signature(optimizers[0].step).parameters

    def step(self, closure: Closure) -> Tensor:
        """Run `closure` (zero_grad, forward, backward; returns the loss) and update; returns the first loss.

        LBFGS and its like call the closure several times; the others once.
        """
        if self._takes_closure:
            loss: Tensor = self.optimizers[0].step(closure)  # type: ignore[assignment, arg-type]
        else:
            loss = closure()
            self.optimizers[0].step()
        for optimizer in self.optimizers[1:]:
            optimizer.step()
        return loss.detach()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to `factor` times its configured value."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, base in zip(groups, self._base_lr, strict=True):
            if base is not None and group["lr"] != base * factor:
                group["lr"] = base * factor

    @property
    def lr(self) -> float:
        """The learning rate in force, of the first group."""
        return float(self.optimizers[0].param_groups[0].get("lr", 0.0))

    def train(self) -> None:
        """Put the weights where they are trained (Schedule-Free keeps two sets of them)."""
        self._call("train")

    def eval(self) -> None:
        """Put the weights where they are evaluated."""
        self._call("eval")

    def _call(self, name: str) -> None:
        for optimizer in self.optimizers:
            method = getattr(optimizer, name, None)
            if callable(method):
                method()

    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters in force, the classes' defaults as well; a fallback's begin with `fallback.`."""
        values: dict[str, Any] = {"class": type(self.optimizers[0]).__name__} | self.optimizers[0].defaults
        for optimizer in self.optimizers[1:]:
            own = {"class": type(optimizer).__name__} | optimizer.defaults
            values |= {f"{FALLBACK}{key}": value for key, value in own.items()}
        return values


def build(name: str, spec: OptimizerSpec, model: nn.Module) -> Stepper:
    """The optimizer of params.yaml's entry `name` over all parameters of `model`.

    Raises:
        ConfigError: the class is unknown or no dense optimizer, or refuses a hyperparameter or a parameter.
    """
    uncompiled.install()
    where = f"optimizers.{name}"
    cls = _class(where, spec)
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    refused = {
        key: reason for key, value in parameters.items() if (reason := _refusal(where, cls, spec, value)) is not None
    }
    if not refused:
        return Stepper([_construct(where, cls, spec, list(parameters.values()))])
    key, reason = next(iter(refused.items()))
    if spec.fallback is None:
        raise ConfigError(
            f"params.yaml: {where}: {spec.class_} refuses the model's {key} ({reason}): add "
            f"`fallback: {{class: AdamW, lr: 0.001}}` for such parameters"
        )
    taken = [value for key, value in parameters.items() if key not in refused]
    if not taken:
        raise ConfigError(f"params.yaml: {where}: {spec.class_} refuses every parameter of the model ({reason})")
    fallback = _class(f"{where}.fallback", spec.fallback)
    rest = [parameters[key] for key in refused]
    return Stepper(
        [_construct(where, cls, spec, taken), _construct(f"{where}.fallback", fallback, spec.fallback, rest)]
    )


def check(config: Config) -> None:
    """Build the model and every optimizer and take one step without data, before a byte is downloaded.

    Some values, such as a third beta for Adam, are refused by a class's first step only.

    Raises:
        ConfigError: one line with the place in params.yaml and the remedy.
    """
    model = build_model(config.model, seed=0)
    _check_outputs(config.model, model)
    for name, spec in config.optimizers.items():
        _check_step(name, spec, model)


def _check_step(name: str, spec: OptimizerSpec, model: nn.Module) -> None:
    """Take one step without data, down the mean of the weights."""

    def step(spec: OptimizerSpec) -> None:
        stepper, left = build(name, spec, model), iter(range(ENOUGH))

        def closure() -> Tensor:
            if next(left, None) is None:
                raise _EnoughError
            stepper.zero_grad()
            loss = torch.stack([value.mean() for value in model.parameters() if value.requires_grad]).sum()
            loss.backward()
            return loss

        stepper.train()
        with contextlib.suppress(_EnoughError):
            stepper.step(closure)

    _attempt(f"optimizers.{name}", spec, step, first_step=True)


def _check_outputs(name: str, model: nn.Module) -> None:
    try:
        with torch.inference_mode():
            shape: Any = tuple(model.eval()(torch.zeros(2, 3, 32, 32)).shape)
    except Exception as error:  # whatever a foreign module raises
        shape = f"{type(error).__name__}: {one_line(error)}"
    if shape != (2, CLASS_COUNT):
        raise ConfigError(
            f"params.yaml: model: {name}: for two images of shape (3, 32, 32) it must return logits of shape "
            f"(2, {CLASS_COUNT}), not {shape}"
        )
    model.train()


def _class(where: str, spec: OptimizerSpec) -> type[Optimizer]:
    known = torch_classes()
    cls = known[spec.class_] if spec.class_ in known else resolve(spec.class_, f"{where}.class: {spec.class_}", known)
    if not (inspect.isclass(cls) and issubclass(cls, Optimizer)):
        raise ConfigError(f"params.yaml: {where}.class: {spec.class_} is no subclass of torch.optim.Optimizer")
    if cls is torch.optim.SparseAdam:
        raise ConfigError(
            f"params.yaml: {where}.class: SparseAdam takes sparse gradients only, and no model here has them: use Adam"
        )
    _check_names(where, cls, spec)
    return cls


def _check_names(where: str, cls: type[Optimizer], spec: OptimizerSpec) -> None:
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for key in spec.hyperparameters:
        if key not in known:
            hint = did_you_mean(key, known) or f": it takes {', '.join(known)}"
            raise ConfigError(f"params.yaml: {where}.{key}: {spec.class_} has no such hyperparameter{hint}")


def _refusal(where: str, cls: type[Optimizer], spec: OptimizerSpec, parameter: Tensor) -> str | None:
    """Why the class does not take a parameter of this shape, or None if it takes it.

    A class that refuses a 2-D matrix as well refuses a hyperparameter, not the shape.
    """
    try:
        cls([parameter], **_values(spec))
    except ValueError as error:
        _construct(where, cls, spec, [nn.Parameter(torch.zeros(2, 2))])
        return one_line(error)
    except Exception:
        _construct(where, cls, spec, [parameter])
    return None


def _construct(where: str, cls: type[Optimizer], spec: OptimizerSpec, parameters: list[Any]) -> Optimizer:
    optimizer: Optimizer = _attempt(where, spec, lambda spec: cls(parameters, **_values(spec)))
    return optimizer


def _attempt(where: str, spec: OptimizerSpec, work: Callable[[OptimizerSpec], Any], first_step: bool = False) -> Any:
    """What `work` makes of the entry.

    Raises:
        ConfigError: it fails; the hyperparameter is named where one is to blame.
    """

    def said_of(values: dict[str, Any]) -> str | None:
        try:
            work(_with(spec, values))
        except Exception as error:
            return one_line(error)
        return None

    try:
        return work(spec)
    except ConfigError:
        raise
    except Exception as error:  # classes check their values with errors of their own
        reason = f"{type(error).__name__}: {one_line(error)}" if first_step else one_line(error)
        values = _flat(spec)
        key = to_blame(one_line(error), values, said_of)
    when, whole = (" in its first step", "fails") if first_step else ("", "refuses its hyperparameters")
    if key is None:
        raise ConfigError(f"params.yaml: {where}: {spec.class_} {whole}{when}: {reason}")
    cls = spec.fallback.class_ if spec.fallback and key.startswith(FALLBACK) else spec.class_
    raise ConfigError(f"params.yaml: {where}.{key}: {cls} refuses {shown(values[key])}{when} ({reason})")


def _flat(spec: OptimizerSpec) -> dict[str, Any]:
    """The hyperparameters, with those of the fallback as `fallback.lr` and so on."""
    rest = spec.fallback.hyperparameters if spec.fallback else {}
    return spec.hyperparameters | {f"{FALLBACK}{key}": value for key, value in rest.items()}


def _with(spec: OptimizerSpec, values: dict[str, Any]) -> OptimizerSpec:
    """The entry with these hyperparameters, named as in `_flat`, and no others."""
    rest = {key.removeprefix(FALLBACK): value for key, value in values.items() if key.startswith(FALLBACK)}
    own = {key: value for key, value in values.items() if not key.startswith(FALLBACK)}
    fallback = _with(spec.fallback, rest) if spec.fallback else None
    return OptimizerSpec.model_validate({"class": spec.class_, "fallback": fallback, **own})


def _values(spec: OptimizerSpec) -> dict[str, Any]:
    """The hyperparameters with YAML's lists as the tuples that torch's classes expect."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.hyperparameters.items()}
