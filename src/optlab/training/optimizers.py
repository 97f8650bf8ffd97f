"""Optimizers built from the entries of params.yaml: which class gets which parameters, and how it is driven.

A class from outside torch is tried on small parameters first: how its step takes the gradient, and which states a
checkpoint has to hold.
"""

import contextlib
import copy
import inspect
import io
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.schema.optimizer import OptimizerSpec
from optlab.system import processes
from optlab.system.errors import ConfigError, ResourceError, summarize_error
from optlab.training import determinism, dynamo_stub, guards
from optlab.training.optimizer_driver import OptimizerDriver, ParamGroup, StepProtocol, detect_protocol
from optlab.training.optimizer_factory import (
    ResolvedOptimizer,
    TrainingContext,
    convert_hyperparameters,
    has_parameters_argument,
    instantiate,
    is_torch_class,
    resolve_optimizer,
    should_create_graph,
)

_PROBE_STEPS = 12  # before and after a restoration: some classes do something else in every tenth step

StateScope = Literal["own", "all", "nothing"]
EntryCheck = Callable[[ResolvedOptimizer, TrainingContext], None]
T = TypeVar("T")


class InstantiationError(ConfigError):
    """Error of a class that is instantiated; `preflight` finds the hyperparameter that causes it.

    Attributes:
        where: in params.yaml.
        make: instantiates the class with another spec.
    """

    def __init__(self, where: str, spec: OptimizerSpec, make: Callable[[OptimizerSpec], Any], reason: str) -> None:
        super().__init__(f"params.yaml: {where}: {spec.class_} refuses its hyperparameters: {reason}")
        self.where, self.spec, self.make, self.reason = where, spec, make, reason


def build(
    name: str, spec: OptimizerSpec, context: TrainingContext, check_entry: EntryCheck | None = None
) -> OptimizerDriver:
    """Build the optimizer of the entry `name` over all trainable parameters of the context's model.

    Args:
        check_entry: called with the entry, and with its fallback if that is used, before each is instantiated.

    Raises:
        ConfigError: the class is unknown or not a dense optimizer, or refuses a hyperparameter or a parameter, or a
            group has no parameter, or the class wraps another optimizer and gets none.
        ResourceError: the machine lacks memory.
    """
    dynamo_stub.install()
    parameters = {key: value for key, value in context.model.named_parameters() if value.requires_grad}
    parts: list[tuple[ResolvedOptimizer, list[ParamGroup]]] = []
    for where, part_spec in ((f"optimizers.{name}", spec), (f"optimizers.{name}.fallback", spec.fallback)):
        if part_spec and parameters:
            entry = resolve_optimizer(where, part_spec)
            if check_entry:
                check_entry(entry, context)
            param_groups, parameters = _assign_param_groups(entry, parameters, context)
            parts.append((entry, param_groups))
    needs_graph = any(should_create_graph(cls) for part, _ in parts for cls in part.classes)
    create_graph = needs_graph if spec.create_graph is None else spec.create_graph
    protocols = [probe_protocol(part, own[0].values, context) for part, own in parts]
    for (part, _), protocol in zip(parts[1:], protocols[1:], strict=True):
        if protocol not in ("gradient", "closure"):
            raise ConfigError(
                f"params.yaml: {part.where}: {part.spec.class_} takes two gradients a step: a fallback has one"
            )

    def probe_state_scopes() -> list[StateScope]:
        return [
            probe_state_scope(part, own[0].values, context, protocol, create_graph)
            for (part, own), protocol in zip(parts, protocols, strict=True)
        ]

    optimizers = [instantiate_entry(part, own, context) for part, own in parts]
    driver = OptimizerDriver(optimizers, [own for _, own in parts], create_graph, protocols[0], probe_state_scopes)
    driver.allowed_parameters += context.model.parameters()
    return driver


def _assign_param_groups(
    entry: ResolvedOptimizer, parameters: dict[str, nn.Parameter], context: TrainingContext
) -> tuple[list[ParamGroup], dict[str, nn.Parameter]]:
    """Return the class's groups, the one without values of its own first, and the parameters left for a fallback."""
    spec = entry.spec
    if not (has_parameters_argument(entry.cls) or entry.base):
        if entry.where.endswith(".fallback"):
            raise ConfigError(f"params.yaml: {entry.where}: {spec.class_} takes the model whole: it is no fallback")
        if spec.groups:
            raise ConfigError(f"params.yaml: {entry.where}.groups: {spec.class_} takes the model whole: remove them")
        return [ParamGroup("", {}, parameters)], {}
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


def _check_param_groups(where: str, spec: OptimizerSpec, grouped: list[dict[str, nn.Parameter]],
                  rest: dict[str, nn.Parameter], rejected: dict[str, tuple[nn.Parameter, str]],
                  parameters: dict[str, nn.Parameter]) -> None:  # fmt: skip
    """Check that class and groups have parameters, and that a fallback takes the rejected ones."""
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


def _find_rejection_reason(
    entry: ResolvedOptimizer, parameter: nn.Parameter, values: dict[str, Any], context: TrainingContext
) -> str | None:
    """Return the class's error for a parameter of this shape with its group's values, or None if it takes it.

    A class that refuses a 2-D matrix as well refuses a hyperparameter, not the shape.
    """
    param_group = ParamGroup("", values, {"": parameter})
    single_context = context.replace_parameters(parameter)
    try:
        instantiate(entry.cls, entry.spec, entry.base, [param_group], single_context)
    except ValueError as error:
        instantiate_entry(entry, [ParamGroup("", values, {"": nn.Parameter(torch.zeros(2, 2))})], single_context)
        return summarize_error(error)
    except Exception:
        instantiate_entry(entry, [param_group], single_context)
    return None


def instantiate_entry(entry: ResolvedOptimizer, param_groups: list[ParamGroup], context: TrainingContext) -> Optimizer:
    """Instantiate the entry's class over these groups.

    Raises:
        InstantiationError: the class raises an error.
        ResourceError: the machine lacks memory.
    """

    def make(spec: OptimizerSpec) -> Optimizer:
        base = (entry.base[0], spec.base or entry.base[1]) if entry.base else None
        return instantiate(entry.cls, spec, base, param_groups, context)

    try:
        with guards.guard_resources(f"params.yaml: {entry.where}: {entry.spec.class_}"):
            return make(entry.spec)
    except (ConfigError, ResourceError):
        raise
    except Exception as error:  # classes check their values with errors of their own
        raise InstantiationError(entry.where, entry.spec, make, summarize_error(error)) from None


def probe_protocol(entry: ResolvedOptimizer, values: dict[str, Any], context: TrainingContext) -> StepProtocol:
    """Return how the class's step takes the gradient.

    Args:
        values: of a group that the class takes.
    """

    def run_probe() -> StepProtocol | None:
        with contextlib.suppress(Exception):  # some take no such parameters
            optimizer, parameters = make_toy_optimizer(entry, values, context)
            return detect_protocol(optimizer, parameters[0], _make_closure(parameters, should_create_graph(entry.cls)))
        return None

    found = None if is_torch_class(entry.cls) else run_isolated(run_probe)
    return found or ("closure" if "closure" in inspect.signature(entry.cls.step).parameters else "gradient")


def probe_state_scope(
    entry: ResolvedOptimizer,
    values: dict[str, Any],
    context: TrainingContext,
    protocol: StepProtocol,
    create_graph: bool,
) -> StateScope:
    """Return whose states a checkpoint must hold: the class's, also its base's, or `nothing` if these do not suffice.

    The class is restored from them after some steps, and must then take the same steps as without that.
    """

    def run_probe() -> StateScope:
        try:
            for scope in ("own", "all"):
                if _can_resume_identically(entry, values, context, protocol, create_graph, scope):
                    return scope
        except Exception:  # it takes no such parameters, or fails in a later step
            return "own"
        return "nothing"

    return "own" if is_torch_class(entry.cls) else run_isolated(run_probe)


def run_isolated(function: Callable[[], T]) -> T:
    """Call `function` in a fork: a class can keep state in its module, and draw random numbers.

    A process that uses a GPU cannot be forked; there, the call is made in this one.
    """

    def run_quietly() -> T:
        with determinism.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
            return function()

    def run_single_threaded() -> T:
        torch.set_num_threads(1)  # a fork has no worker threads
        return run_quietly()

    return run_quietly() if torch.cuda.is_initialized() else cast(T, processes.call_in_fork(run_single_threaded))


def _can_resume_identically(
    entry: ResolvedOptimizer,
    values: dict[str, Any],
    context: TrainingContext,
    protocol: StepProtocol,
    create_graph: bool,
    scope: StateScope,
) -> bool:
    drivers, weights = [], []
    for _ in range(2):
        optimizer, parameters = make_toy_optimizer(entry, values, context)
        drivers.append(OptimizerDriver([optimizer], [[]], create_graph, protocol, lambda: [scope]))
        weights.append(parameters)
    run_steps(drivers[0], weights[0])
    assert drivers[0].checkpointed_optimizers is not None and drivers[1].checkpointed_optimizers is not None
    with torch.no_grad():
        for own, other in zip(*weights, strict=True):
            other.copy_(own)
    for one, other in zip(drivers[0].checkpointed_optimizers, drivers[1].checkpointed_optimizers, strict=True):
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    drivers[1].mode = drivers[0].mode
    rng_state = determinism.get_rng_state()
    for driver, own in zip(drivers, weights, strict=True):
        determinism.set_rng_state(rng_state)
        run_steps(driver, own)
        driver.eval()
    return all(torch.equal(own, other) for own, other in zip(*weights, strict=True))


def run_steps(driver: OptimizerDriver, parameters: list[nn.Parameter]) -> None:
    """Take some steps towards a constant."""
    for _ in range(_PROBE_STEPS):
        driver.train()
        driver.step(_make_closure(parameters, driver.create_graph))


def _make_closure(parameters: list[nn.Parameter], create_graph: bool) -> Any:
    @torch.enable_grad()
    def closure() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = torch.stack([(parameter - 0.3).square().sum() for parameter in parameters]).sum()
        loss.backward(create_graph=create_graph)
        return loss

    return closure


def make_toy_optimizer(entry: ResolvedOptimizer, values: dict[str, Any], context: TrainingContext,
          groups: int = 1) -> tuple[Optimizer, list[nn.Parameter]]:  # fmt: skip
    """Return the optimizer over two small matrices, in one group or in one each, and the matrices."""
    parameters = [nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), nn.Parameter(torch.ones(2, 2))]
    own = context.replace_parameters(*parameters)
    named = dict(own.model.named_parameters())
    parts = [named] if groups == 1 else [{name: value} for name, value in named.items()]
    param_groups = [ParamGroup("", values, part) for part in parts]
    return instantiate(entry.cls, entry.spec, entry.base, param_groups, own), parameters
