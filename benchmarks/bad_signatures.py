"""Hyperparameters of a wrong or a right type, by the signatures of optimizers' classes, for `bad_input.py`."""

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from optlab.preflight import argument_types
from optlab.system.errors import ConfigError

TEXTS = ("off", "yes", "true", "0.5", "much", "")
# An annotation's text → what is right of it, and what is wrong; where it says more than this, its defaults are tried.
TYPES: dict[str, tuple[list[Any], list[Any]]] = {
    "<class 'bool'>": ([True, False], [*TEXTS, 0, 1, 0.5, [1], None]),
    "bool | None": ([True, False, None], [*TEXTS, 0, 1, 0.5, [1]]),
    "typing.Optional[bool]": ([True, False, None], [*TEXTS, 0, 1, 0.5, [1]]),
    "<class 'float'>": ([0, 1, 0.5], [*TEXTS, True, [0.5], None]),
    "float | torch.Tensor": ([0, 1, 0.5], [*TEXTS, True, [0.5], None]),
    "typing.Union[float, torch.Tensor]": ([0, 1, 0.5], [*TEXTS, True, [0.5], None]),
    "float | None": ([0, 1, 0.5, None], [*TEXTS, True, [0.5]]),
    "<class 'int'>": ([0, 1], [*TEXTS, True, 0.5, [1], None]),
    "int | None": ([0, 1, None], [*TEXTS, True, 0.5, [1]]),
    "<class 'str'>": (["a"], [True, 1, 0.5, [1], None]),
    "str | None": (["a", None], [True, 1, 0.5, [1]]),
    "tuple[float, float]": ([[0, 0.5]], [*TEXTS, True, 1, 0.5, [0.5], [0.1, 0.2, 0.3], None]),
    "typing.Tuple[float, float]": ([[0, 0.5]], [*TEXTS, True, 1, 0.5, [0.5], [0.1, 0.2, 0.3], None]),
    "tuple[float | torch.Tensor, float | torch.Tensor]": ([[0, 0.5]], [*TEXTS, True, 0.5, [0.5], [1, 2, 3], None]),
    "tuple[float, float] | tuple[float, float, float]": ([[0, 0.5], [0, 0.5, 0.9]], [*TEXTS, True, 0.5, None]),
}
GIVEN = ("params", "model", "base_optimizer", "optimizer")  # not by params.yaml


def defaults(cls: type[Optimizer]) -> dict[str, Any]:
    """The class's own values, as params.yaml would have them; without what it cannot hold."""
    found = {}
    for name, each in inspect.signature(cls).parameters.items():
        value = list(each.default) if isinstance(each.default, tuple) else each.default
        if value is None or isinstance(value, bool | int | float | str | list):
            found[name] = value
    return found


def cases(cls: type[Optimizer]) -> Iterator[tuple[type[Optimizer], str, Any, bool]]:
    """(class, hyperparameter, value, whether it is right) for every one whose annotation is plain."""
    own = defaults(cls)
    for name, each in inspect.signature(cls).parameters.items():
        if name in own:
            yield cls, name, own[name], True
        right, wrong = TYPES.get(str(each.annotation), ([], []))
        for value in right if name not in GIVEN else ():
            yield cls, name, value, True
        for value in wrong if name not in GIVEN else ():
            said_otherwise = each.default is not inspect.Parameter.empty and type(each.default) is type(value)
            if not said_otherwise:  # a default of another type than the annotation's counts as well
                yield cls, name, value, False


def classes(*modules: ModuleType) -> list[type[Optimizer]]:
    """Their optimizers' classes."""
    every = [cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)]
    return [cls for cls in every if issubclass(cls, Optimizer) and cls is not Optimizer]


def refusal(cls: type[Optimizer], name: str, value: Any) -> str | None:
    """What is said of one value; None where it is accepted."""
    try:
        argument_types.check("optimizers.mine", cls, {name: value})
    except ConfigError as error:
        return str(error)
    return None
