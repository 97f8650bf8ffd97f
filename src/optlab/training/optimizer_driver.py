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

from optlab.training.schedules import GroupIndex, LearningRates, copy_lr

Closure = Callable[[], Tensor]
StepProtocol = Literal["gradient", "closure", "gradient, then closure", "two steps"]  # what a step is given
FALLBACK_PREFIX, BASE_PREFIX = "fallback.", "base."  # begin the names of their hyperparameters
_CREATE_GRAPH_NOTE = (
    "{}: its gradients are kept for second derivatives, which takes several times the memory and the time"
)


@dataclass(frozen=True)
class ParamGroup:
    """The parameters of one group of one optimizer.

    Attributes:
        selector: what they have in common, as params.yaml has it; empty for those that no group has.
        values: the hyperparameters that differ from the optimizer's own.
        parameters: by name.
    """

    selector: str
    values: dict[str, Any]
    parameters: dict[str, nn.Parameter]

    @property
    def numel(self) -> int:
        """How many numbers they are."""
        return sum(value.numel() for value in self.parameters.values())

    def convert_to_dict(self) -> dict[str, Any]:
        """As torch's optimizers take it."""
        return {"params": list(self.parameters.values()), **self.values}


class OptimizerDriver:
    """One optimizer, or one with a fallback for the parameters that it refuses.

    Attributes:
        optimizers: the configured class first, then its fallback if any parameter went there.
        param_groups: of each of `optimizers`, its groups in the order that it has them.
        create_graph: whether the closure is to compute gradients that can be differentiated once more.
        gradients: how many were computed in the last step.
        protocol: how the first of `optimizers` wants the gradient.
        learning_rates: the learning rates, as a schedule has them.
        allowed_parameters: parameters that may stand in the groups.
        mode: where the weights are: `train` or `eval`, or nothing where they have not been put anywhere.
    """

    def __init__(
        self,
        optimizers: list[Optimizer],
        param_groups: list[list[ParamGroup]],
        create_graph: bool,
        protocol: StepProtocol,
        probe_state_scopes: Callable[[], Sequence[str]],
    ) -> None:
        """`probe_state_scopes` calls `optimizer_probe.probe_state_scope` for each optimizer, on demand."""
        self.optimizers, self.param_groups, self.create_graph, self.gradients = (
            optimizers,
            param_groups,
            create_graph,
            0,
        )
        self.learning_rates = LearningRates(
            {place: group["lr"] for place, group in self._list_groups() if group.get("lr") is not None}
        )
        self.protocol, self._probe_state_scopes = protocol, probe_state_scopes
        self.allowed_parameters = self.parameters
        self.mode = ""

    @functools.cached_property
    def checkpointed_optimizers(self) -> list[Optimizer] | None:
        """Those whose states a checkpoint holds; None if they would not be enough to go on from."""
        scopes = self._probe_state_scopes()
        if "nothing" in scopes:
            return None
        each_own = zip(self.optimizers, scopes, strict=True)
        return [part for each, which in each_own for part in (flatten_wrappers(each) if which == "all" else [each])]

    def step(self, closure: Closure) -> Tensor:
        """Run `closure` (zero_grad, forward, backward; returns the loss) and update; returns the first loss.

        LBFGS and its like call the closure several times, and so do those that climb before they descend; the others
        once.
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
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to `factor` times its configured value; what a class has set itself, in proportion.

        Where the factor is what it was, as under a constant schedule, no rate is touched.
        """
        if factor == self.learning_rates.factor:
            return
        groups = [(place, group) for place, group in self._list_groups() if group.get("lr") is not None]
        changed = [self.learning_rates.scale(place, group["lr"], factor) for place, group in groups]
        for (_, group), rate in zip(groups, changed, strict=True):  # afterwards, for one group can have two places
            group["lr"] = rate
        self.learning_rates.factor = factor

    def _list_groups(self) -> list[tuple[GroupIndex, dict[str, Any]]]:
        """All of them by their places; some at two: a wrapper can share its base's, until both have loaded theirs."""
        everything = [each for optimizer in self.optimizers for each in flatten_wrappers(optimizer)]
        return [
            ((number, each), group)
            for number, optimizer in enumerate(everything)
            for each, group in enumerate(optimizer.param_groups)
        ]

    def get_lr_state(self) -> list[Any]:
        """What the learning rates go on from: not every class restores those of what it wraps."""
        return [
            self.learning_rates.factor,
            self.learning_rates.base_lrs,
            self.learning_rates.last_lrs,
            self.get_current_lrs(),
        ]

    def get_current_lrs(self) -> dict[GroupIndex, Any]:
        """Of every group that has one, or None."""
        return {place: copy_lr(group["lr"]) for place, group in self._list_groups() if "lr" in group}

    def load_lr_state(self, state: list[Any]) -> None:
        """Bring the learning rates to where they were."""
        factor, base_lrs, last_lrs, current_lrs = state
        self.learning_rates = LearningRates(base_lrs, factor, last_lrs)
        for place, group in self._list_groups():
            if place in current_lrs:
                group["lr"] = copy_lr(current_lrs[place])

    @property
    def lr(self) -> float | None:
        """The learning rate in force, of the first group; None where it has none."""
        rate = self.optimizers[0].param_groups[0].get("lr")
        return None if rate is None else float(rate)

    @property
    def parameters(self) -> list[Tensor]:
        """What the groups hold now."""
        return [value for _, group in self._list_groups() for value in group["params"]]

    @property
    def swaps_weights(self) -> bool:
        """Whether a class puts its weights elsewhere to be evaluated."""
        everything = (each for optimizer in self.optimizers for each in flatten_wrappers(optimizer))
        return any(callable(getattr(each, "eval", None)) for each in everything)

    def train(self) -> None:
        """Put the weights where they are trained (Schedule-Free keeps two sets of them)."""
        self._call_once("train")

    def eval(self) -> None:
        """Put the weights where they are evaluated."""
        self._call_once("eval")

    def _call_once(self, name: str) -> None:
        """Once: a class that moves its weights there need not know that they are there already."""
        if name == self.mode:
            return
        self.mode = name
        for optimizer in self.optimizers:
            methods = [getattr(each, name, None) for each in flatten_wrappers(optimizer)]
            found = next((method for method in methods if callable(method)), None)
            if found:
                found()

    def get_hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters in force, the classes' defaults as well.

        A fallback's begin with `fallback.`, a group's with `groups.0.` and so on. Where there are several groups, or
        classes, each has its number of trainable numbers as `parameters`.
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
        """A sentence for each share, where there is more than one, and about what the gradients cost."""
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
    """It, and the optimizers that it holds and hands its work to."""
    return [optimizer, *(value for value in vars(optimizer).values() if isinstance(value, Optimizer))]


def _get_defaults(optimizer: Optimizer) -> dict[str, Any]:
    defaults = getattr(optimizer, "defaults", {})
    settings = {key: _strip_address(value) for key, value in defaults.items() if not isinstance(value, Tensor)}
    return {"class": type(optimizer).__name__} | settings


def _strip_address(value: Any) -> Any:
    """What Python names by its place in memory, which another process has elsewhere, without that."""
    text = str(value)
    stripped = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return value if stripped == text else stripped


def detect_protocol(optimizer: Optimizer, parameter: nn.Parameter, closure: Closure) -> StepProtocol:
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
    before, unmoved_flags = parameter.detach().clone(), []

    def count_call() -> Tensor:
        unmoved_flags.append(torch.equal(parameter, before))
        if len(unmoved_flags) > 1:
            raise _ProbeFinishedError
        return closure()

    with contextlib.suppress(Exception):  # the first step of the whole, in `check`, says what is wrong
        optimizer.step(count_call)  # type: ignore[arg-type]
    if not unmoved_flags:
        return "gradient"
    return "closure" if unmoved_flags[0] else "gradient, then closure"


class _ProbeFinishedError(Exception):
    """Two calls are enough to know."""
