"""Steps: one optimizer, or several that share a model's parameters, driven as one."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.training.rates import Place, Rates, copy

Closure = Callable[[], Tensor]
Protocol = Literal["gradient", "closure", "gradient, then closure", "two steps"]  # what a step is given
FALLBACK, BASE = "fallback.", "base."  # begin the names of their hyperparameters
_GRAPH = "{}: its gradients are kept for second derivatives, which takes several times the memory and the time"


@dataclass(frozen=True)
class Share:
    """The parameters of one group of one optimizer.

    Attributes:
        which: what they have in common, as params.yaml has it; empty for those that no group has.
        values: the hyperparameters that differ from the optimizer's own.
        parameters: by name.
    """

    which: str
    values: dict[str, Any]
    parameters: dict[str, nn.Parameter]

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return sum(value.numel() for value in self.parameters.values())

    def as_group(self) -> dict[str, Any]:
        """As torch's optimizers take it."""
        return {"params": list(self.parameters.values()), **self.values}


class Stepper:
    """One optimizer, or one with a fallback for the parameters that it refuses.

    Attributes:
        optimizers: the configured class first, then its fallback if any parameter went there.
        shares: of each of `optimizers`, its groups in the order that it has them.
        create_graph: whether the closure is to compute gradients that can be differentiated once more.
        gradients: how many were computed in the last step.
        protocol: how the first of `optimizers` wants the gradient.
        rates: the learning rates, as a schedule has them.
        known: parameters that may stand in the groups.
        mode: where the weights are: `train` or `eval`, or nothing where they have not been put anywhere.
    """

    def __init__(self, optimizers: list[Optimizer], shares: list[list[Share]], create_graph: bool, protocol: Protocol,
                 kept: Callable[[], Sequence[str]]) -> None:  # fmt: skip
        """`kept` finds out `probing.kept` of each optimizer, where it is asked for."""
        self.optimizers, self.shares, self.create_graph, self.gradients = optimizers, shares, create_graph, 0
        self.rates = Rates({place: group["lr"] for place, group in self._groups() if group.get("lr") is not None})
        self.protocol, self._kept = protocol, kept
        self.known = self.parameters
        self.mode = ""

    @functools.cached_property
    def stateful(self) -> list[Optimizer] | None:
        """Those whose states a checkpoint holds; None if they would not be enough to go on from."""
        kept = self._kept()
        if "nothing" in kept:
            return None
        each_own = zip(self.optimizers, kept, strict=True)
        return [part for each, which in each_own for part in (with_wrapped(each) if which == "all" else [each])]

    def step(self, closure: Closure) -> Tensor:
        """Run `closure` (zero_grad, forward, backward; returns the loss) and update; returns the first loss.

        LBFGS and its like call the closure several times, and so do those that climb before they descend; the others
        once.
        """
        losses: list[Tensor] = []

        def counted() -> Tensor:
            losses.append(closure())
            return losses[-1]

        first: Any = self.optimizers[0]
        if self.protocol == "closure":
            first.step(counted)
        elif self.protocol == "gradient, then closure":
            counted()
            first.step(counted)
        elif self.protocol == "two steps":
            counted()
            first.first_step()
            counted()
            first.second_step()
        else:
            counted()
            first.step()
        for optimizer in self.optimizers[1:]:
            optimizer.step()
        self.gradients = len(losses)
        if not losses:
            raise RuntimeError("its step has not called the closure that it was given")
        own = {id(each) for each in self.known}
        if any(id(each) not in own for each in self.parameters):
            raise RuntimeError("its step has put other parameters than the model's into its groups")
        return losses[0].detach()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to `factor` times its configured value; what a class has set itself, in proportion.

        Where the factor is what it was, as under a constant schedule, no rate is touched.
        """
        if factor == self.rates.factor:
            return
        groups = [(place, group) for place, group in self._groups() if group.get("lr") is not None]
        changed = [self.rates.scaled(place, group["lr"], factor) for place, group in groups]
        for (_, group), rate in zip(groups, changed, strict=True):  # afterwards, for one group can have two places
            group["lr"] = rate
        self.rates.factor = factor

    def _groups(self) -> list[tuple[Place, dict[str, Any]]]:
        """All of them by their places; some at two: a wrapper can share its base's, until both have loaded theirs."""
        everything = [each for optimizer in self.optimizers for each in with_wrapped(optimizer)]
        return [
            ((number, each), group)
            for number, optimizer in enumerate(everything)
            for each, group in enumerate(optimizer.param_groups)
        ]

    def rate_state(self) -> list[Any]:
        """What the learning rates go on from: not every class restores those of what it wraps."""
        return [self.rates.factor, self.rates.configured, self.rates.given, self.rates_in_force()]

    def rates_in_force(self) -> dict[Place, Any]:
        """Of every group that has one, or None."""
        return {place: copy(group["lr"]) for place, group in self._groups() if "lr" in group}

    def restore_rates(self, state: list[Any]) -> None:
        """Bring the learning rates to where they were."""
        factor, configured, given, in_force = state
        self.rates = Rates(configured, factor, given)
        for place, group in self._groups():
            if place in in_force:
                group["lr"] = copy(in_force[place])

    @property
    def lr(self) -> float | None:
        """The learning rate in force, of the first group; None where it has none."""
        rate = self.optimizers[0].param_groups[0].get("lr")
        return None if rate is None else float(rate)

    @property
    def parameters(self) -> list[Tensor]:
        """What the groups hold now."""
        return [value for _, group in self._groups() for value in group["params"]]

    @property
    def swaps_weights(self) -> bool:
        """Whether a class puts its weights elsewhere to be evaluated."""
        everything = (each for optimizer in self.optimizers for each in with_wrapped(optimizer))
        return any(callable(getattr(each, "eval", None)) for each in everything)

    def train(self) -> None:
        """Put the weights where they are trained (Schedule-Free keeps two sets of them)."""
        self._call("train")

    def eval(self) -> None:
        """Put the weights where they are evaluated."""
        self._call("eval")

    def _call(self, name: str) -> None:
        """Once: a class that moves its weights there need not know that they are there already."""
        if name == self.mode:
            return
        self.mode = name
        for optimizer in self.optimizers:
            methods = [getattr(each, name, None) for each in with_wrapped(optimizer)]
            found = next((method for method in methods if callable(method)), None)
            if found:
                found()

    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters in force, the classes' defaults as well.

        A fallback's begin with `fallback.`, a group's with `groups.0.` and so on. Where there are several groups, or
        classes, each has its number of trainable numbers as `parameters`.
        """
        found: dict[str, Any] = {}
        shared = sum(len(own) for own in self.shares) > 1
        for optimizer, own, prefix in zip(self.optimizers, self.shares, ("", FALLBACK), strict=False):
            values = _in_force(optimizer)
            for base in with_wrapped(optimizer)[1:]:
                values |= {f"{BASE}{key}": value for key, value in _in_force(base).items()}
            if self.create_graph and not prefix:
                values["create_graph"] = True
            for number, share in enumerate(each for each in own if each.which):
                named = {"match": share.which, **share.values, "parameters": share.size}
                values |= {f"groups.{number}.{key}": value for key, value in named.items()}
            if shared:
                values["parameters"] = sum(share.size for share in own if not share.which)
            found |= {f"{prefix}{key}": value for key, value in values.items()}
        return found

    def described(self) -> list[str]:
        """A sentence for each share, where there is more than one, and about what the gradients cost."""
        said = [_GRAPH.format(type(self.optimizers[0]).__name__)] if self.create_graph else []
        if sum(len(own) for own in self.shares) < 2:
            return said
        total = sum(share.size for own in self.shares for share in own)
        return said + [
            f"{type(optimizer).__name__}{f', {share.which}' if share.which else ''}: {share.size:,} numbers "
            f"({share.size / total:.1%}): {', '.join(share.parameters)}"
            for optimizer, own in zip(self.optimizers, self.shares, strict=True)
            for share in own
        ]


def with_wrapped(optimizer: Optimizer) -> list[Optimizer]:
    """It, and the optimizers that it holds and hands its work to."""
    return [optimizer, *(value for value in vars(optimizer).values() if isinstance(value, Optimizer))]


def _in_force(optimizer: Optimizer) -> dict[str, Any]:
    defaults = getattr(optimizer, "defaults", {})
    plain = {key: _without_address(value) for key, value in defaults.items() if not isinstance(value, Tensor)}
    return {"class": type(optimizer).__name__} | plain


def _without_address(value: Any) -> Any:
    """What Python names by its place in memory, which another process has elsewhere, without that."""
    text = str(value)
    shown = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return value if shown == text else shown


def protocol_of(optimizer: Optimizer, parameter: nn.Parameter, closure: Closure) -> Protocol:
    """How its step wants the gradient, found out by one step.

    Some take a closure and leave it alone. Some call it where they were, before they move; and some (Foret et al. 2021,
    "Sharpness-Aware Minimization") need the gradient first, move, and call it there.

    Args:
        parameter: one of its own; it is changed.
        closure: computes the gradients of all that it has.
    """
    if "closure" not in inspect.signature(optimizer.step).parameters:
        has_both = all(callable(getattr(optimizer, name, None)) for name in ("first_step", "second_step"))
        return "two steps" if has_both else "gradient"
    closure()
    before, unmoved = parameter.detach().clone(), []

    def counted() -> Tensor:
        unmoved.append(torch.equal(parameter, before))
        if len(unmoved) > 1:
            raise _CalledError
        return closure()

    with contextlib.suppress(Exception):  # the first step of the whole, in `check`, says what is wrong
        optimizer.step(counted)  # type: ignore[arg-type]
    if not unmoved:
        return "gradient"
    return "closure" if unmoved[0] else "gradient, then closure"


class _CalledError(Exception):
    """Two calls are enough to know."""
