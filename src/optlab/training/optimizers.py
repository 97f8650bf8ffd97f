"""Optimizers by name: every dense class of torch.optim, and any other by its dotted path."""

import contextlib
import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import processes
from optlab.system.errors import ConfigError, ResourceError, WeightsError, summarize_error
from optlab.training import dynamo_stub, error_attribution, model_check, optimizer_probe, process_settings, weights
from optlab.training.models import build as build_model
from optlab.training.optimizer_driver import OptimizerDriver, ParamGroup, flatten_wrappers
from optlab.training.optimizer_factory import (
    ResolvedOptimizer,
    TrainingContext,
    can_set_lr,
    check_groups,
    convert_hyperparameters,
    get_arguments,
    has_parameters_argument,
    instantiate,
    resolve_optimizer,
    should_create_graph,
)

MAX_CLOSURE_CALLS = (
    50  # evaluations of the loss in a checked step; LBFGS with `max_iter: 1000000000` would not come back
)


class _ClosureLimitError(Exception):
    """Ends a step that goes on and on."""


def build(name: str, spec: OptimizerSpec, context: TrainingContext) -> OptimizerDriver:
    """The optimizer of params.yaml's entry `name` over all parameters of the context's model.

    Raises:
        ConfigError: the class is unknown or no dense optimizer, or refuses a hyperparameter or a parameter, or a group
            has no parameter, or the class wants another optimizer and gets none.
    """
    dynamo_stub.install()
    entry = resolve_optimizer(f"optimizers.{name}", spec)
    parameters = {key: value for key, value in context.model.named_parameters() if value.requires_grad}
    param_groups, rejected = _assign_param_groups(entry, parameters, context)
    parts = [(entry, param_groups)]
    if rejected:
        assert spec.fallback is not None
        fallback = resolve_optimizer(f"optimizers.{name}.fallback", spec.fallback)
        parts.append((fallback, _assign_param_groups(fallback, rejected, context)[0]))
    needs_graph = any(should_create_graph(cls) for part, _ in parts for cls in part.classes)
    create_graph = needs_graph if spec.create_graph is None else spec.create_graph
    protocols = [optimizer_probe.probe_protocol(part, own[0].values, context) for part, own in parts]
    for (part, _), protocol in zip(parts[1:], protocols[1:], strict=True):
        if protocol not in ("gradient", "closure"):
            raise ConfigError(
                f"params.yaml: {part.where}: {part.spec.class_} takes two gradients a step: a fallback has one"
            )

    def probe_state_scopes() -> list[optimizer_probe.StateScope]:
        tried = zip(parts, protocols, strict=True)
        return [
            optimizer_probe.probe_state_scope(part, own[0].values, context, each, create_graph)
            for (part, own), each in tried
        ]

    optimizers = [_instantiate(part, own, context) for part, own in parts]
    driver = OptimizerDriver(optimizers, [own for _, own in parts], create_graph, protocols[0], probe_state_scopes)
    driver.allowed_parameters += context.model.parameters()
    return driver


def _assign_param_groups(entry: ResolvedOptimizer, parameters: dict[str, nn.Parameter],
            context: TrainingContext) -> tuple[list[ParamGroup], dict[str, nn.Parameter]]:  # fmt: skip
    """The class's groups, the one without values of its own first, and the parameters that are left for a fallback."""
    spec = entry.spec
    check_groups(entry)
    if not (has_parameters_argument(entry.cls) or entry.base):
        if entry.where.endswith(".fallback"):
            raise ConfigError(f"params.yaml: {entry.where}: {spec.class_} takes the model whole: it is no fallback")
        if spec.groups:
            raise ConfigError(f"params.yaml: {entry.where}.groups: {spec.class_} takes the model whole: remove them")
        return [ParamGroup("", {}, parameters)], {}
    if spec.groups:
        _check_group_values(entry, context)
    else:
        optimizer_probe.check_group_flag(entry, context)
    grouped: list[dict[str, nn.Parameter]] = [{} for _ in spec.groups]
    rest: dict[str, nn.Parameter] = {}
    rejected: dict[str, tuple[nn.Parameter, str]] = {}
    for key, value in parameters.items():
        number = next((i for i, group in enumerate(spec.groups) if group.matches(key, value.ndim)), None)
        reason = _find_rejection_reason(
            entry, value, {} if number is None else convert_hyperparameters(spec.groups[number]), context
        )
        if reason is not None:
            rejected[key] = value, reason
        elif number is not None:
            grouped[number][key] = value
        elif spec.groups and spec.fallback:
            rejected[key] = value, "no group has it"
        else:
            rest[key] = value
    _check_param_groups(entry.where, spec, grouped, rest, rejected, parameters)
    param_groups = [ParamGroup("", {}, rest)] if rest else []
    param_groups += [
        ParamGroup(group.selector, convert_hyperparameters(group), own)
        for group, own in zip(spec.groups, grouped, strict=True)
        if own
    ]
    return param_groups, {key: value for key, (value, _) in rejected.items()}


def _check_group_values(entry: ResolvedOptimizer, context: TrainingContext) -> None:
    """Let the class judge a group's values as its own: torch's look at the values of groups in no other way."""
    own = get_arguments(entry.cls)
    for number, group in enumerate(entry.spec.groups):
        as_own = {key: value for key, value in group.hyperparameters.items() if key in own}
        spec = OptimizerSpec.model_validate({"class": entry.spec.class_, **entry.spec.hyperparameters, **as_own})
        param_group = ParamGroup("", convert_hyperparameters(group), {"": nn.Parameter(torch.ones(2, 2))})
        _instantiate(replace(entry, where=f"{entry.where}.groups.{number}", spec=spec), [param_group], context)


def _check_param_groups(where: str, spec: OptimizerSpec, grouped: list[dict[str, nn.Parameter]],
                  rest: dict[str, nn.Parameter], rejected: dict[str, tuple[nn.Parameter, str]],
                  parameters: dict[str, nn.Parameter]) -> None:  # fmt: skip
    """Every group has a parameter, the class has one, and what it does not have has somewhere to go."""
    for number, (group, own) in enumerate(zip(spec.groups, grouped, strict=True)):
        if not own:
            key, reason = next(((key, why) for key, (value, why) in rejected.items() if group.matches(key, value.ndim)),
                               (None, ""))  # fmt: skip
            message = (
                f"{spec.class_} refuses {key} ({reason})" if key
                else f"no parameter is left for {group.selector!r}: the model has {', '.join(parameters)}"
            )  # fmt: skip
            raise ConfigError(f"params.yaml: {where}.groups.{number}: {message}")
    if not rejected:
        return
    key, (_, reason) = next(iter(rejected.items()))
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
        weights.encode(model, config.model)
    except WeightsError as error:
        raise ConfigError(f"params.yaml: model: {error}") from None
    warnings = []
    for name, spec in config.optimizers.items():
        context = TrainingContext.from_config(config, copy.deepcopy(model))
        try:
            with (
                processes.measure_peak_memory() as peak_memory,
                process_settings.guard_torch_settings(f"optimizers.{name}: {spec.class_}"),
            ):
                driver = _check_step(name, spec, context)
        except ConfigError as error:
            raise ConfigError(f"{error}{_suggest_groups(name, spec, context)}") from None
        warnings += _check_schedule(name, config, driver, context)
        if driver.swaps_weights and any(isinstance(each, _BatchNorm) for each in model.modules()):
            warnings.append(
                f"warning: optimizers.{name}: {spec.class_} is evaluated with other weights than it trains, and the "
                f"model's batch normalisation with the statistics of the latter: docs/entries.md has what that costs"
            )
        if peak_memory.bytes > processes.get_total_memory() / 2:
            warnings.append(
                f"warning: optimizers.{name}: its first step took {peak_memory.bytes / processes.GIB:.1f} GiB of "
                f"memory, more "
                f"than half of the {processes.get_total_memory() / processes.GIB:.1f} GiB that there are"
            )
    return warnings


def _check_step(name: str, spec: OptimizerSpec, context: TrainingContext) -> OptimizerDriver:
    """Take one step without data, down the mean of the weights; returns what has taken it."""

    trainable = [value for value in context.model.parameters() if value.requires_grad]

    def take_step(spec: OptimizerSpec) -> OptimizerDriver:
        driver, remaining_calls = build(name, spec, context), iter(range(MAX_CLOSURE_CALLS))

        @torch.enable_grad()
        def closure() -> Tensor:
            if next(remaining_calls, None) is None:
                raise _ClosureLimitError
            driver.zero_grad()
            loss = torch.stack([value.square().mean() for value in trainable]).sum()
            loss.backward(create_graph=driver.create_graph)
            return loss

        driver.train()
        with contextlib.suppress(_ClosureLimitError):
            driver.step(closure)
        return driver

    driver: OptimizerDriver = error_attribution.call_with_attribution(
        f"optimizers.{name}", spec, take_step, first_step=True
    )
    return driver


def _check_schedule(name: str, config: Config, driver: OptimizerDriver, context: TrainingContext) -> list[str]:
    """Refuse a schedule for what has no learning rate, or sets its own; returns warnings."""
    schedule, spec, warnings = config.get_schedule(name), config.get_optimizer(name), []
    if schedule.name == "constant" and not schedule.warmup_epochs:
        return []
    entries = [resolve_optimizer(f"optimizers.{name}", spec)]
    if len(driver.optimizers) > 1 and spec.fallback:
        entries.append(resolve_optimizer(f"optimizers.{name}.fallback", spec.fallback))
    for entry, optimizer, param_groups in zip(entries, driver.optimizers, driver.param_groups, strict=True):
        probe_arguments = param_groups[0].values, context, driver.protocol, driver.create_graph
        groups = [group for each in flatten_wrappers(optimizer) for group in each.param_groups]
        reason = "has no learning rate" if all(group.get("lr") is None for group in groups) else (
            "sets its learning rate itself" if optimizer_probe.does_change_lr(entry, *probe_arguments) else ""
        )  # fmt: skip
        if reason:
            raise ConfigError(
                f"params.yaml: {entry.where}: {entry.spec.class_} {reason}, so the schedule {schedule.name} is not for "
                f"it: add `schedule: {{name: constant}}` to optimizers.{name}"
            )
        if any(can_set_lr(cls) for cls in entry.classes):
            warnings.append(
                f"warning: {entry.where}: {entry.spec.class_} can set its learning rate itself: the schedule "
                f"{schedule.name} then multiplies that by the change of its factor"
            )
    return warnings


def _suggest_groups(name: str, spec: OptimizerSpec, context: TrainingContext) -> str:
    """What to add where the first step is fine with parameters of some numbers of dimensions, and not of others."""
    if spec.groups or spec.fallback:
        return ""
    by_dimensions: dict[int, nn.Parameter] = {}
    for value in context.model.parameters():
        by_dimensions.setdefault(value.ndim, value)
    accepted_ndims = []
    for ndim, value in by_dimensions.items():
        single_parameter = nn.ParameterDict({"alone": nn.Parameter(value.detach().clone())})
        with contextlib.suppress(ConfigError, ResourceError):
            with process_settings.guard_torch_settings(f"optimizers.{name}"):
                _check_step(name, spec, TrainingContext(single_parameter, context.lengths))
            accepted_ndims.append(ndim)
    if not 0 < len(accepted_ndims) < len(by_dimensions):
        return ""
    groups = ", ".join(f"{{ndim: {ndim}}}" for ndim in accepted_ndims)
    return f": it takes some parameters: add `groups: [{groups}]` and `fallback: {{class: AdamW, lr: 0.001}}`"


def _find_rejection_reason(
    entry: ResolvedOptimizer, parameter: nn.Parameter, values: dict[str, Any], context: TrainingContext
) -> str | None:
    """Why the class does not take a parameter of this shape, with its group's values, or None if it takes it.

    A class that refuses a 2-D matrix as well refuses a hyperparameter, not the shape.
    """
    param_group = ParamGroup("", values, {"": parameter})
    single_context = context.replace_parameters(parameter)
    try:
        instantiate(entry.cls, entry.spec, entry.base, [param_group], single_context)
    except ValueError as error:
        _instantiate(entry, [ParamGroup("", values, {"": nn.Parameter(torch.zeros(2, 2))})], single_context)
        return summarize_error(error)
    except Exception:
        _instantiate(entry, [param_group], single_context)
    return None


def _instantiate(entry: ResolvedOptimizer, param_groups: list[ParamGroup], context: TrainingContext) -> Optimizer:
    def make(spec: OptimizerSpec) -> Optimizer:
        base = (entry.base[0], spec.base or entry.base[1]) if entry.base else None
        return instantiate(entry.cls, spec, base, param_groups, context)

    optimizer: Optimizer = error_attribution.call_with_attribution(entry.where, entry.spec, make)
    return optimizer
