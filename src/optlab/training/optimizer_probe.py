"""What is found out about a class by trying it, on small parameters of its own and with random numbers of its own."""

import contextlib
import copy
import inspect
import io
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.system import processes
from optlab.system.errors import ConfigError, summarize_error
from optlab.training import determinism
from optlab.training.optimizer_driver import OptimizerDriver, ParamGroup, StepProtocol, detect_protocol
from optlab.training.optimizer_factory import (
    ResolvedOptimizer,
    TrainingContext,
    find_missing_group_flag,
    instantiate,
    is_torch_class,
    should_create_graph,
)

_STEP_COUNT = 12  # before and after a restoration: some do something else in every tenth step

StateScope = Literal["own", "all", "nothing"]
T = TypeVar("T")


def check_group_flag(entry: ResolvedOptimizer, context: TrainingContext) -> None:
    """Refuse an entry without groups where the class wants a flag of each.

    Raises:
        ConfigError: it does; the message says what to add.
    """
    flag = None
    for count in (1, 2):
        try:
            with determinism.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
                _make_toy_optimizer(entry, {}, context, groups=count)
        except Exception as error:  # whatever it is, it is said in full where each parameter is tried
            flag = find_missing_group_flag(entry.cls, summarize_error(error))
        else:
            return
    if flag:
        raise ConfigError(
            f"params.yaml: {entry.where}: {entry.spec.class_} wants `{flag}` of each group: add "
            f'`groups: [{{ndim: 2, {flag}: true}}, {{match: "*", {flag}: false}}]`'
        )


def probe_protocol(entry: ResolvedOptimizer, values: dict[str, Any], context: TrainingContext) -> StepProtocol:
    """How its step wants the gradient.

    Args:
        values: of a group that it takes.
    """

    def run_probe() -> StepProtocol | None:
        with contextlib.suppress(Exception):  # some take no such parameters
            optimizer, parameters = _make_toy_optimizer(entry, values, context)
            return detect_protocol(optimizer, parameters[0], _make_closure(parameters, should_create_graph(entry.cls)))
        return None

    found = None if is_torch_class(entry.cls) else _run_isolated(run_probe)
    return found or ("closure" if "closure" in inspect.signature(entry.cls.step).parameters else "gradient")


def probe_state_scope(
    entry: ResolvedOptimizer,
    values: dict[str, Any],
    context: TrainingContext,
    protocol: StepProtocol,
    create_graph: bool,
) -> StateScope:
    """Whose states a checkpoint has to hold: the class's own, those of what it wraps, too; or it would not be enough.

    It is restored from them after some steps, and takes the same ones as if nothing had happened, or not.
    """

    def run_probe() -> StateScope:
        try:
            for scope in ("own", "all"):
                if _can_resume_identically(entry, values, context, protocol, create_graph, scope):
                    return scope
        except Exception:  # it takes no such parameters, or fails in a later step: that is said where it happens
            return "own"
        return "nothing"

    return "own" if is_torch_class(entry.cls) else _run_isolated(run_probe)


def does_change_lr(
    entry: ResolvedOptimizer,
    values: dict[str, Any],
    context: TrainingContext,
    protocol: StepProtocol,
    create_graph: bool,
) -> bool:
    """Whether its steps set its own learning rate."""

    def run_probe() -> bool:
        with contextlib.suppress(Exception):  # as for `probe_state_scope`
            optimizer, parameters = _make_toy_optimizer(entry, values, context)
            driver = OptimizerDriver([optimizer], [[]], create_graph, protocol, lambda: [])
            before = driver.get_current_lrs()
            _run_steps(driver, parameters)
            after = driver.get_current_lrs()
            return any(after.get(place) != rate for place, rate in before.items())
        return False

    return not all(is_torch_class(cls) for cls in entry.classes) and _run_isolated(run_probe)


def _run_isolated(function: Callable[[], T]) -> T:
    """What `function` finds, without a trace: a class can keep state in its module, and draw random numbers.

    A process that uses a GPU cannot be forked: there it is tried in this one.
    """

    def run_quietly() -> T:
        with determinism.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
            return function()

    def run_single_threaded() -> T:
        torch.set_num_threads(1)  # a child has none of the threads that share out the work
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
        optimizer, parameters = _make_toy_optimizer(entry, values, context)
        drivers.append(OptimizerDriver([optimizer], [[]], create_graph, protocol, lambda: [scope]))
        weights.append(parameters)
    _run_steps(drivers[0], weights[0])
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
        _run_steps(driver, own)
        driver.eval()
    return all(torch.equal(own, other) for own, other in zip(*weights, strict=True))


def _run_steps(driver: OptimizerDriver, parameters: list[nn.Parameter]) -> None:
    for _ in range(_STEP_COUNT):
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


def _make_toy_optimizer(entry: ResolvedOptimizer, values: dict[str, Any], context: TrainingContext,
          groups: int = 1) -> tuple[Optimizer, list[nn.Parameter]]:  # fmt: skip
    """The optimizer over two small matrices, in one group or in one each."""
    parameters = [nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), nn.Parameter(torch.ones(2, 2))]
    own = context.replace_parameters(*parameters)
    named = dict(own.model.named_parameters())
    parts = [named] if groups == 1 else [{name: value} for name, value in named.items()]
    param_groups = [ParamGroup("", values, part) for part in parts]
    return instantiate(entry.cls, entry.spec, entry.base, param_groups, own), parameters
