"""Optimizers by name: every dense class of torch.optim, and any other by its dotted path."""

import contextlib
import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from optlab.config.entries import OptimizerSpec
from optlab.config.parameters import Config
from optlab.system import memory
from optlab.system.errors import ConfigError, LackError, WeightsError, one_line
from optlab.training import blame, model_check, probing, process_settings, uncompiled, weights
from optlab.training.classes import Entry, asks_for_graph, check_groups, entry_of, sets_rate
from optlab.training.construction import Context, arguments, construct, takes_parameters, values_of
from optlab.training.models import build as build_model
from optlab.training.stepping import Share, Stepper, with_wrapped

ENOUGH = 50  # evaluations of the loss in a checked step; LBFGS with `max_iter: 1000000000` would not come back


class _EnoughError(Exception):
    """Ends a step that goes on and on."""


def build(name: str, spec: OptimizerSpec, context: Context) -> Stepper:
    """The optimizer of params.yaml's entry `name` over all parameters of the context's model.

    Raises:
        ConfigError: the class is unknown or no dense optimizer, or refuses a hyperparameter or a parameter, or a group
            has no parameter, or the class wants another optimizer and gets none.
    """
    uncompiled.install()
    entry = entry_of(f"optimizers.{name}", spec)
    parameters = {key: value for key, value in context.model.named_parameters() if value.requires_grad}
    shares, refused = _shares(entry, parameters, context)
    parts = [(entry, shares)]
    if refused:
        assert spec.fallback is not None
        below = entry_of(f"optimizers.{name}.fallback", spec.fallback)
        parts.append((below, _shares(below, refused, context)[0]))
    found = any(asks_for_graph(cls) for part, _ in parts for cls in part.classes)
    create_graph = found if spec.create_graph is None else spec.create_graph
    asked = [probing.protocol(part, own[0].values, context) for part, own in parts]
    for (part, _), protocol in zip(parts[1:], asked[1:], strict=True):
        if protocol not in ("gradient", "closure"):
            raise ConfigError(
                f"params.yaml: {part.where}: {part.spec.class_} takes two gradients a step: a fallback has one"
            )

    def kept() -> list[probing.Kept]:
        tried = zip(parts, asked, strict=True)
        return [probing.kept(part, own[0].values, context, each, create_graph) for (part, own), each in tried]

    optimizers = [_construct(part, own, context) for part, own in parts]
    stepper = Stepper(optimizers, [own for _, own in parts], create_graph, asked[0], kept)
    stepper.known += context.model.parameters()
    return stepper


def _shares(entry: Entry, parameters: dict[str, nn.Parameter],
            context: Context) -> tuple[list[Share], dict[str, nn.Parameter]]:  # fmt: skip
    """The class's groups, the one without values of its own first, and the parameters that are left for a fallback."""
    spec = entry.spec
    check_groups(entry)
    if not (takes_parameters(entry.cls) or entry.base):
        if entry.where.endswith(".fallback"):
            raise ConfigError(f"params.yaml: {entry.where}: {spec.class_} takes the model whole: it is no fallback")
        if spec.groups:
            raise ConfigError(f"params.yaml: {entry.where}.groups: {spec.class_} takes the model whole: remove them")
        return [Share("", {}, parameters)], {}
    if spec.groups:
        _check_values(entry, context)
    else:
        probing.check_flag(entry, context)
    grouped: list[dict[str, nn.Parameter]] = [{} for _ in spec.groups]
    rest: dict[str, nn.Parameter] = {}
    refused: dict[str, tuple[nn.Parameter, str]] = {}
    for key, value in parameters.items():
        number = next((i for i, group in enumerate(spec.groups) if group.has(key, value.ndim)), None)
        reason = _refusal(entry, value, {} if number is None else values_of(spec.groups[number]), context)
        if reason is not None:
            refused[key] = value, reason
        elif number is not None:
            grouped[number][key] = value
        elif spec.groups and spec.fallback:
            refused[key] = value, "no group has it"
        else:
            rest[key] = value
    _check_shares(entry.where, spec, grouped, rest, refused, parameters)
    shares = [Share("", {}, rest)] if rest else []
    shares += [
        Share(group.which, values_of(group), own) for group, own in zip(spec.groups, grouped, strict=True) if own
    ]
    return shares, {key: value for key, (value, _) in refused.items()}


def _check_values(entry: Entry, context: Context) -> None:
    """Let the class judge a group's values as its own: torch's look at the values of groups in no other way."""
    own = arguments(entry.cls)
    for number, group in enumerate(entry.spec.groups):
        as_own = {key: value for key, value in group.hyperparameters.items() if key in own}
        spec = OptimizerSpec.model_validate({"class": entry.spec.class_, **entry.spec.hyperparameters, **as_own})
        share = Share("", values_of(group), {"": nn.Parameter(torch.ones(2, 2))})
        _construct(replace(entry, where=f"{entry.where}.groups.{number}", spec=spec), [share], context)


def _check_shares(where: str, spec: OptimizerSpec, grouped: list[dict[str, nn.Parameter]],
                  rest: dict[str, nn.Parameter], refused: dict[str, tuple[nn.Parameter, str]],
                  parameters: dict[str, nn.Parameter]) -> None:  # fmt: skip
    """Every group has a parameter, the class has one, and what it does not have has somewhere to go."""
    for number, (group, own) in enumerate(zip(spec.groups, grouped, strict=True)):
        if not own:
            key, reason = next(((key, why) for key, (value, why) in refused.items() if group.has(key, value.ndim)),
                               (None, ""))  # fmt: skip
            said = (
                f"{spec.class_} refuses {key} ({reason})" if key
                else f"no parameter is left for {group.which!r}: the model has {', '.join(parameters)}"
            )  # fmt: skip
            raise ConfigError(f"params.yaml: {where}.groups.{number}: {said}")
    if not refused:
        return
    key, (_, reason) = next(iter(refused.items()))
    if not rest and not any(grouped):
        raise ConfigError(f"params.yaml: {where}: {spec.class_} refuses every parameter of the model ({reason})")
    if spec.fallback is None:
        remedy = "" if where.endswith(".fallback") else (
            ": add `fallback: {class: AdamW, lr: 0.001}` for such parameters"
        )  # fmt: skip
        raise ConfigError(f"params.yaml: {where}: {spec.class_} refuses the model's {key} ({reason}){remedy}")


def check(config: Config) -> list[str]:
    """Build the model and every optimizer and take one step without data, before a byte is downloaded.

    Some values, such as a third beta for Adam, are refused by a class's first step only.

    Returns:
        warnings, of a first step that takes more than half of the machine's memory.

    Raises:
        ConfigError: one line with the place in params.yaml and the remedy.
    """
    model = build_model(config.model, seed=0)
    model_check.check(config.model, model, config.data, config.training)
    try:
        weights.encoded(model, config.model)
    except WeightsError as error:
        raise ConfigError(f"params.yaml: model: {error}") from None
    warnings = []
    for name, spec in config.optimizers.items():
        context = Context.of(config, copy.deepcopy(model))
        try:
            with memory.measured() as taken, process_settings.guarded(f"optimizers.{name}: {spec.class_}"):
                stepper = _check_step(name, spec, context)
        except ConfigError as error:
            raise ConfigError(f"{error}{_remedy(name, spec, context)}") from None
        warnings += _check_schedule(name, config, stepper, context)
        if stepper.swaps_weights and any(isinstance(each, _BatchNorm) for each in model.modules()):
            warnings.append(
                f"warning: optimizers.{name}: {spec.class_} is evaluated with other weights than it trains, and the "
                f"model's batch normalisation with the statistics of the latter: docs/entries.md has what that costs"
            )
        if taken.bytes > memory.total() / 2:
            warnings.append(
                f"warning: optimizers.{name}: its first step took {taken.bytes / memory.GIB:.1f} GiB of memory, more "
                f"than half of the {memory.total() / memory.GIB:.1f} GiB that there are"
            )
    return warnings


def _check_step(name: str, spec: OptimizerSpec, context: Context) -> Stepper:
    """Take one step without data, down the mean of the weights; returns what has taken it."""

    trained = [value for value in context.model.parameters() if value.requires_grad]

    def step(spec: OptimizerSpec) -> Stepper:
        stepper, left = build(name, spec, context), iter(range(ENOUGH))

        @torch.enable_grad()
        def closure() -> Tensor:
            if next(left, None) is None:
                raise _EnoughError
            stepper.zero_grad()
            loss = torch.stack([value.square().mean() for value in trained]).sum()
            loss.backward(create_graph=stepper.create_graph)
            return loss

        stepper.train()
        with contextlib.suppress(_EnoughError):
            stepper.step(closure)
        return stepper

    stepper: Stepper = blame.attempt(f"optimizers.{name}", spec, step, first_step=True)
    return stepper


def _check_schedule(name: str, config: Config, stepper: Stepper, context: Context) -> list[str]:
    """Refuse a schedule for what has no learning rate, or sets its own; returns warnings."""
    schedule, spec, warnings = config.schedule(name), config.optimizer(name), []
    if schedule.name == "constant" and not schedule.warmup_epochs:
        return []
    entries = [entry_of(f"optimizers.{name}", spec)]
    if len(stepper.optimizers) > 1 and spec.fallback:
        entries.append(entry_of(f"optimizers.{name}.fallback", spec.fallback))
    for entry, optimizer, shares in zip(entries, stepper.optimizers, stepper.shares, strict=True):
        own = shares[0].values, context, stepper.protocol, stepper.create_graph
        groups = [group for each in with_wrapped(optimizer) for group in each.param_groups]
        reason = "has no learning rate" if all(group.get("lr") is None for group in groups) else (
            "sets its learning rate itself" if probing.moves_rate(entry, *own) else ""
        )  # fmt: skip
        if reason:
            raise ConfigError(
                f"params.yaml: {entry.where}: {entry.spec.class_} {reason}, so the schedule {schedule.name} is not for "
                f"it: add `schedule: {{name: constant}}` to optimizers.{name}"
            )
        if any(sets_rate(cls) for cls in entry.classes):
            warnings.append(
                f"warning: {entry.where}: {entry.spec.class_} can set its learning rate itself: the schedule "
                f"{schedule.name} then multiplies that by the change of its factor"
            )
    return warnings


def _remedy(name: str, spec: OptimizerSpec, context: Context) -> str:
    """What to add where the first step is fine with parameters of some numbers of dimensions, and not of others."""
    if spec.groups or spec.fallback:
        return ""
    by_dimensions: dict[int, nn.Parameter] = {}
    for value in context.model.parameters():
        by_dimensions.setdefault(value.ndim, value)
    taken = []
    for ndim, value in by_dimensions.items():
        alone = nn.ParameterDict({"alone": nn.Parameter(value.detach().clone())})
        with contextlib.suppress(ConfigError, LackError):
            with process_settings.guarded(f"optimizers.{name}"):
                _check_step(name, spec, Context(alone, context.lengths))
            taken.append(ndim)
    if not 0 < len(taken) < len(by_dimensions):
        return ""
    groups = ", ".join(f"{{ndim: {ndim}}}" for ndim in taken)
    return f": it takes some parameters: add `groups: [{groups}]` and `fallback: {{class: AdamW, lr: 0.001}}`"


def _refusal(entry: Entry, parameter: nn.Parameter, values: dict[str, Any], context: Context) -> str | None:
    """Why the class does not take a parameter of this shape, with its group's values, or None if it takes it.

    A class that refuses a 2-D matrix as well refuses a hyperparameter, not the shape.
    """
    share = Share("", values, {"": parameter})
    alone = context.around(parameter)
    try:
        construct(entry.cls, entry.spec, entry.base, [share], alone)
    except ValueError as error:
        _construct(entry, [Share("", values, {"": nn.Parameter(torch.zeros(2, 2))})], alone)
        return one_line(error)
    except Exception:
        _construct(entry, [share], alone)
    return None


def _construct(entry: Entry, shares: list[Share], context: Context) -> Optimizer:
    def make(spec: OptimizerSpec) -> Optimizer:
        base = (entry.base[0], spec.base or entry.base[1]) if entry.base else None
        return construct(entry.cls, spec, base, shares, context)

    optimizer: Optimizer = blame.attempt(entry.where, entry.spec, make)
    return optimizer
