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

from optlab.system import forked
from optlab.system.errors import ConfigError, one_line
from optlab.training import generators
from optlab.training.classes import Entry, asks_for_graph, flag_of, is_of_torch
from optlab.training.construction import Context, construct
from optlab.training.stepping import Protocol, Share, Stepper, protocol_of

_STEPS = 12  # before and after a restoration: some do something else in every tenth step

Kept = Literal["own", "all", "nothing"]
T = TypeVar("T")


def check_flag(entry: Entry, context: Context) -> None:
    """Refuse an entry without groups where the class wants a flag of each.

    Raises:
        ConfigError: it does; the message says what to add.
    """
    flag = None
    for count in (1, 2):
        try:
            with generators.apart(), contextlib.redirect_stdout(io.StringIO()):
                _made(entry, {}, context, groups=count)
        except Exception as error:  # whatever it is, it is said in full where each parameter is tried
            flag = flag_of(entry.cls, one_line(error))
        else:
            return
    if flag:
        raise ConfigError(
            f"params.yaml: {entry.where}: {entry.spec.class_} wants `{flag}` of each group: add "
            f'`groups: [{{ndim: 2, {flag}: true}}, {{match: "*", {flag}: false}}]`'
        )


def protocol(entry: Entry, values: dict[str, Any], context: Context) -> Protocol:
    """How its step wants the gradient.

    Args:
        values: of a group that it takes.
    """

    def tried() -> Protocol | None:
        with contextlib.suppress(Exception):  # some take no such parameters
            optimizer, parameters = _made(entry, values, context)
            return protocol_of(optimizer, parameters[0], _closure(parameters, asks_for_graph(entry.cls)))
        return None

    found = None if is_of_torch(entry.cls) else _apart(tried)
    return found or ("closure" if "closure" in inspect.signature(entry.cls.step).parameters else "gradient")


def kept(entry: Entry, values: dict[str, Any], context: Context, asked: Protocol, create_graph: bool) -> Kept:
    """Whose states a checkpoint has to hold: the class's own, those of what it wraps, too; or it would not be enough.

    It is restored from them after some steps, and takes the same ones as if nothing had happened, or not.
    """

    def tried() -> Kept:
        try:
            for which in ("own", "all"):
                if _goes_on(entry, values, context, asked, create_graph, which):
                    return which
        except Exception:  # it takes no such parameters, or fails in a later step: that is said where it happens
            return "own"
        return "nothing"

    return "own" if is_of_torch(entry.cls) else _apart(tried)


def moves_rate(entry: Entry, values: dict[str, Any], context: Context, asked: Protocol, create_graph: bool) -> bool:
    """Whether its steps set its own learning rate."""

    def tried() -> bool:
        with contextlib.suppress(Exception):  # as for `kept`
            optimizer, parameters = _made(entry, values, context)
            stepper = Stepper([optimizer], [[]], create_graph, asked, lambda: [])
            before = stepper.rates_in_force()
            _steps(stepper, parameters)
            after = stepper.rates_in_force()
            return any(after.get(place) != rate for place, rate in before.items())
        return False

    return not all(is_of_torch(cls) for cls in entry.classes) and _apart(tried)


def _apart(work: Callable[[], T]) -> T:
    """What `work` finds, without a trace: a class can keep state in its module, and draw random numbers.

    A process that uses a GPU cannot be forked: there it is tried in this one.
    """

    def quietly() -> T:
        with generators.apart(), contextlib.redirect_stdout(io.StringIO()):
            return work()

    def alone() -> T:
        torch.set_num_threads(1)  # a child has none of the threads that share out the work
        return quietly()

    return quietly() if torch.cuda.is_initialized() else cast(T, forked.call(alone))


def _goes_on(entry: Entry, values: dict[str, Any], context: Context, asked: Protocol, create_graph: bool,
             which: Kept) -> bool:  # fmt: skip
    steppers, weights = [], []
    for _ in range(2):
        optimizer, parameters = _made(entry, values, context)
        steppers.append(Stepper([optimizer], [[]], create_graph, asked, lambda: [which]))
        weights.append(parameters)
    _steps(steppers[0], weights[0])
    assert steppers[0].stateful is not None and steppers[1].stateful is not None
    with torch.no_grad():
        for own, other in zip(*weights, strict=True):
            other.copy_(own)
    for one, other in zip(steppers[0].stateful, steppers[1].stateful, strict=True):
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    steppers[1].mode = steppers[0].mode
    drawn = generators.state()
    for stepper, own in zip(steppers, weights, strict=True):
        generators.restore(drawn)
        _steps(stepper, own)
        stepper.eval()
    return all(torch.equal(own, other) for own, other in zip(*weights, strict=True))


def _steps(stepper: Stepper, parameters: list[nn.Parameter]) -> None:
    for _ in range(_STEPS):
        stepper.train()
        stepper.step(_closure(parameters, stepper.create_graph))


def _closure(parameters: list[nn.Parameter], create_graph: bool) -> Any:
    @torch.enable_grad()
    def closure() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = torch.stack([(parameter - 0.3).square().sum() for parameter in parameters]).sum()
        loss.backward(create_graph=create_graph)
        return loss

    return closure


def _made(entry: Entry, values: dict[str, Any], context: Context,
          groups: int = 1) -> tuple[Optimizer, list[nn.Parameter]]:  # fmt: skip
    """The optimizer over two small matrices, in one group or in one each."""
    parameters = [nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), nn.Parameter(torch.ones(2, 2))]
    own = context.around(*parameters)
    named = dict(own.model.named_parameters())
    parts = [named] if groups == 1 else [{name: value} for name, value in named.items()]
    shares = [Share("", values, part) for part in parts]
    return construct(entry.cls, entry.spec, entry.base, shares, own), parameters
