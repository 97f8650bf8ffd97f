"""Driver of an optimizer and its fallback: step protocols, learning rates, train and eval modes."""

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

from optlab.training.schedules import GroupIndex, LearningRates, copy_lr

Closure = Callable[[], Tensor]
StepProtocol = Literal["gradient", "closure", "gradient, then closure", "two steps"]  # what a step is given
FALLBACK_PREFIX, BASE_PREFIX = "fallback.", "base."  # begin the names of their hyperparameters
_CREATE_GRAPH_NOTE = (
    "{}: its gradients are kept for second derivatives, which takes several times the memory and the time"
)


@dataclass(frozen=True)
class ParamGroup:
    """One group of parameters of one optimizer.

    Attributes:
        selector: of the group in params.yaml; empty for the parameters that match none.
        values: hyperparameters that differ from the optimizer's own.
        parameters: by name.
    """

    selector: str
    values: dict[str, Any]
    parameters: dict[str, nn.Parameter]

    @property
    def numel(self) -> int:
        """Number of scalars in the parameters."""
        return sum(value.numel() for value in self.parameters.values())

    def convert_to_dict(self) -> dict[str, Any]:
        """Return the group in the form that torch's optimizers take."""
        return {"params": list(self.parameters.values()), **self.values}


class OptimizerDriver:
    """One optimizer, or one with a fallback for the parameters that it refuses.

    Attributes:
        optimizers: the configured class first, then its fallback if it has any parameter.
        param_groups: the groups of each of `optimizers`, in order.
        create_graph: whether the closure computes gradients that can be differentiated again.
        gradients: number of gradients computed in the last step.
        protocol: how the first of `optimizers` takes the gradient.
        learning_rates: those that a schedule has set.
        allowed_parameters: parameters that the groups may hold.
        mode: `train` or `eval`, as the weights are; empty before the first call of either.
    """

    def __init__(
        self,
        optimizers: list[Optimizer],
        param_groups: list[list[ParamGroup]],
        create_graph: bool,
        protocol: StepProtocol,
        probe_state_scopes: Callable[[], Sequence[str]],
    ) -> None:
        """`probe_state_scopes` returns the `optimizers.StateScope` of each optimizer, on demand."""
        self.optimizers, self.param_groups, self.create_graph = optimizers, param_groups, create_graph
        self.gradients = 0
        self.learning_rates = LearningRates(
            {place: group["lr"] for place, group in self._list_groups() if group.get("lr") is not None}
        )
        self.protocol, self._probe_state_scopes = protocol, probe_state_scopes
        self.allowed_parameters = self.parameters
        self.mode = ""

    @functools.cached_property
    def checkpointed_optimizers(self) -> list[Optimizer] | None:
        """Optimizers whose states a checkpoint holds; None if these would not suffice to resume."""
        scopes = self._probe_state_scopes()
        if "nothing" in scopes:
            return None
        each_own = zip(self.optimizers, scopes, strict=True)
        return [part for each, which in each_own for part in (flatten_wrappers(each) if which == "all" else [each])]

    def step(self, closure: Closure) -> Tensor:
        """Update the weights, and return the loss before the update.

        Args:
            closure: computes loss and gradients. LBFGS and sharpness-aware classes call it several times.
        """
        losses: list[Tensor] = []

        def count_call() -> Tensor:
            losses.append(closure())
            return losses[-1]

        first: Any = self.optimizers[0]
        if self.protocol == "closure":
            first.step(count_call)
        elif self.protocol == "gradient, then closure":
            count_call()
            first.step(count_call)
        elif self.protocol == "two steps":
            count_call()
            first.first_step()
            count_call()
            first.second_step()
        else:
            count_call()
            first.step()
        for optimizer in self.optimizers[1:]:
            optimizer.step()
        self.gradients = len(losses)
        if not losses:
            raise RuntimeError("its step has not called the closure that it was given")
        own = {id(each) for each in self.allowed_parameters}
        if any(id(each) not in own for each in self.parameters):
            raise RuntimeError("its step has put other parameters than the model's into its groups")
        return losses[0].detach()

    def zero_grad(self) -> None:
        """Reset the gradients of all optimizers."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to `factor` times its configured value, or its value that the class has set.

        Nothing is changed while the factor stays the same, as with a constant schedule.
        """
        if factor == self.learning_rates.factor:
            return
        groups = [(place, group) for place, group in self._list_groups() if group.get("lr") is not None]
        changed = [self.learning_rates.scale(place, group["lr"], factor) for place, group in groups]
        for (_, group), rate in zip(groups, changed, strict=True):  # afterwards, for one group can have two places
            group["lr"] = rate
        self.learning_rates.factor = factor

    def _list_groups(self) -> list[tuple[GroupIndex, dict[str, Any]]]:
        """Return all groups by index; a wrapper may share its base's groups, which then have two indices."""
        everything = [each for optimizer in self.optimizers for each in flatten_wrappers(optimizer)]
        return [
            ((number, each), group)
            for number, optimizer in enumerate(everything)
            for each, group in enumerate(optimizer.param_groups)
        ]

    def get_lr_state(self) -> list[Any]:
        """Return the state of the learning rates for a checkpoint: not every wrapper restores those of its base."""
        rates = self.learning_rates
        return [rates.factor, rates.base_lrs, rates.last_lrs, self.get_current_lrs()]

    def get_current_lrs(self) -> dict[GroupIndex, Any]:
        """Return the learning rate of every group that has the key `lr`."""
        return {place: copy_lr(group["lr"]) for place, group in self._list_groups() if "lr" in group}

    def load_lr_state(self, state: list[Any]) -> None:
        """Restore the learning rates from `get_lr_state`."""
        factor, base_lrs, last_lrs, current_lrs = state
        self.learning_rates = LearningRates(base_lrs, factor, last_lrs)
        for place, group in self._list_groups():
            if place in current_lrs:
                group["lr"] = copy_lr(current_lrs[place])

    @property
    def lr(self) -> float | None:
        """Current learning rate of the first group; None without one."""
        rate = self.optimizers[0].param_groups[0].get("lr")
        return None if rate is None else float(rate)

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters of all groups."""
        return [value for _, group in self._list_groups() for value in group["params"]]

    @property
    def swaps_weights(self) -> bool:
        """True if a class is evaluated with other weights than it trains."""
        everything = (each for optimizer in self.optimizers for each in flatten_wrappers(optimizer))
        return any(callable(getattr(each, "eval", None)) for each in everything)

    def train(self) -> None:
        """Switch to the weights that are trained; Schedule-Free, for one, keeps two sets."""
        self._call_once("train")

    def eval(self) -> None:
        """Switch to the weights that are evaluated."""
        self._call_once("eval")

    def _call_once(self, name: str) -> None:
        """Call `train` or `eval` of each optimizer, unless it was the last one called."""
        if name == self.mode:
            return
        self.mode = name
        for optimizer in self.optimizers:
            methods = [getattr(each, name, None) for each in flatten_wrappers(optimizer)]
            found = next((method for method in methods if callable(method)), None)
            if found:
                found()

    def get_hyperparameters(self) -> dict[str, Any]:
        """Return all hyperparameters by name, with the classes' defaults.

        Names of a fallback begin with `fallback.`, of a base with `base.`, of a group with `groups.0.`. With several
        groups or classes, each has its number of trainable scalars as `parameters`.
        """
        all_values: dict[str, Any] = {}
        has_several_groups = sum(len(own) for own in self.param_groups) > 1
        for optimizer, own, prefix in zip(self.optimizers, self.param_groups, ("", FALLBACK_PREFIX), strict=False):
            values = _get_defaults(optimizer)
            for base in flatten_wrappers(optimizer)[1:]:
                values |= {f"{BASE_PREFIX}{key}": value for key, value in _get_defaults(base).items()}
            if self.create_graph and not prefix:
                values["create_graph"] = True
            for number, param_group in enumerate(each for each in own if each.selector):
                named = {"match": param_group.selector, **param_group.values, "parameters": param_group.numel}
                values |= {f"groups.{number}.{key}": value for key, value in named.items()}
            if has_several_groups:
                values["parameters"] = sum(share.numel for share in own if not share.selector)
            all_values |= {f"{prefix}{key}": value for key, value in values.items()}
        return all_values

    def describe(self) -> list[str]:
        """Return a sentence for each group, if there are several, and one about second derivatives."""
        sentences = [_CREATE_GRAPH_NOTE.format(type(self.optimizers[0]).__name__)] if self.create_graph else []
        if sum(len(own) for own in self.param_groups) < 2:
            return sentences
        total = sum(share.numel for own in self.param_groups for share in own)
        return sentences + [
            f"{type(optimizer).__name__}{f', {share.selector}' if share.selector else ''}: {share.numel:,} numbers "
            f"({share.numel / total:.1%}): {', '.join(share.parameters)}"
            for optimizer, own in zip(self.optimizers, self.param_groups, strict=True)
            for share in own
        ]


def flatten_wrappers(optimizer: Optimizer) -> list[Optimizer]:
    """Return an optimizer and the optimizers that it wraps."""
    return [optimizer, *(value for value in vars(optimizer).values() if isinstance(value, Optimizer))]


def _get_defaults(optimizer: Optimizer) -> dict[str, Any]:
    defaults = getattr(optimizer, "defaults", {})
    settings = {key: _strip_address(value) for key, value in defaults.items() if not isinstance(value, Tensor)}
    return {"class": type(optimizer).__name__} | settings


def _strip_address(value: Any) -> Any:
    """Remove the memory address, which differs between processes, from an object's text."""
    text = str(value)
    stripped = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return value if stripped == text else stripped


def detect_protocol(optimizer: Optimizer, parameter: nn.Parameter, closure: Closure) -> StepProtocol:
    """Find out by one step how an optimizer takes the gradient.

    Some ignore a closure, some call it before they move, and some (Foret et al. 2021, "Sharpness-Aware Minimization")
    need the gradient first, move, and call it then.

    Args:
        parameter: one of the optimizer's; it is changed.
        closure: computes the gradients of all of the optimizer's parameters.
    """
    if "closure" not in inspect.signature(optimizer.step).parameters:
        has_both = all(callable(getattr(optimizer, name, None)) for name in ("first_step", "second_step"))
        return "two steps" if has_both else "gradient"
    closure()
    before, unmoved_flags = parameter.detach().clone(), []

    def count_call() -> Tensor:
        unmoved_flags.append(torch.equal(parameter, before))
        if len(unmoved_flags) > 1:
            raise _ProbeFinishedError
        return closure()

    with contextlib.suppress(Exception):  # the check of the entry reports it
        optimizer.step(count_call)  # type: ignore[arg-type]
    if not unmoved_flags:
        return "gradient"
    return "closure" if unmoved_flags[0] else "gradient, then closure"


class _ProbeFinishedError(Exception):
    """End of a probe after two calls of the closure."""
