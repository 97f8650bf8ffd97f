"""The types of a class's hyperparameters, by its signature: Python takes the text `off` for true, and says nothing."""

import collections.abc
import inspect
import numbers
import types
import typing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optlab.system.errors import ConfigError
from optlab.system.spelling import rewritten
from optlab.system.wording import did_you_mean, shown

_LISTS = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
# A YAML file has none of these: beside another type they add nothing.
_OBJECTS: Any = (torch.dtype, Tensor, nn.Module, dict, set, type, collections.abc.Callable, collections.abc.Mapping)
_NAMES = {bool: "true or false", float: "a number", int: "a whole number", str: "text", list: "a list of numbers"}


@dataclass
class Accepted:
    """The values that an argument is made for.

    Attributes:
        anything: the signature does not say.
        kinds: of bool, int, float (whole numbers as well), str and list.
        lengths: of lists, where the signature has a single one.
        words: the only texts, where the signature names them.
        none: whether null is one of the values.
    """

    anything: bool = False
    kinds: set[type] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)
    words: list[str] = field(default_factory=list)
    none: bool = False

    def takes(self, value: Any) -> bool:
        """Whether a value of params.yaml is one of them."""
        if value is None:
            return self.none
        if isinstance(value, bool):
            return bool in self.kinds
        if isinstance(value, str):
            return str in self.kinds or value in self.words
        if isinstance(value, list):
            return list in self.kinds and (len(self.lengths) != 1 or len(value) in self.lengths)
        return float in self.kinds or (int in self.kinds and isinstance(value, int))

    def __str__(self) -> str:
        kinds = self.kinds - ({int} if float in self.kinds else set())
        names = [name for kind, name in _NAMES.items() if kind in kinds]
        if list in kinds and len(self.lengths) == 1:
            names[-1] = f"a list of {min(self.lengths)} numbers"
        return " or ".join([*names, *self.words, *(["null"] if self.none and (names or self.words) else [])])


def check(where: str, cls: type[Optimizer], values: dict[str, Any]) -> None:
    """Refuse a value of another type than the class's signature has, by its annotation and its default.

    Args:
        values: hyperparameters by name; the signature need not have all of them.

    Raises:
        ConfigError: one is of another type; the message says how it is to be written.
    """
    known = signature(cls)
    for key, value in values.items():
        accepted = accepted_by(known[key]) if key in known else Accepted(anything=True)
        better = rewritten(value, {bool, float} if accepted.anything else accepted.kinds)
        if accepted.takes(value) or (accepted.anything and not (isinstance(value, str) and better)):
            continue
        said = f"params.yaml: {where}.{key}: {cls.__name__} takes"
        if not (str(accepted) or accepted.anything):
            raise ConfigError(f"{said} an object that no params.yaml can hold, not {shown(value)}: remove it")
        takes = accepted if str(accepted) else "no such text"
        raise ConfigError(f"{said} {takes}, not {shown(value)}{_remedy(value, accepted, better)}")


def _remedy(value: Any, accepted: Accepted, better: str | None) -> str:
    if value is None:
        return ": remove it for the class's default"
    if isinstance(value, float) and int in accepted.kinds:
        return f": {f'write {better}; ' if better else ''}a range of whole numbers is such as {{linear: [1, 8]}}"
    if better:
        return f": write {better}"
    return did_you_mean(value, accepted.words) if isinstance(value, str) else ""


def signature(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """The named arguments, their annotations evaluated where that is possible."""
    try:
        found = inspect.signature(cls, eval_str=True)
    except Exception:  # a name that only type checkers know
        found = inspect.signature(cls)
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each for name, each in found.parameters.items() if each.kind not in several}


def accepted_by(argument: inspect.Parameter) -> Accepted:
    """What an argument is made for; its default always counts, whatever the annotation says."""
    found = Accepted()
    says = argument.annotation is not argument.empty and not isinstance(argument.annotation, str)
    if says:
        _add_annotation(found, argument.annotation)
    if argument.default is not argument.empty:
        _add_default(found, argument.default, says)
    elif not says:
        found.anything = True
    return found


def _add_annotation(found: Accepted, annotation: Any) -> None:
    annotation = getattr(annotation, "__value__", annotation)  # of a `type` statement
    origin = typing.get_origin(annotation) or annotation
    members = typing.get_args(annotation)
    if origin is typing.Annotated:
        _add_annotation(found, members[0])
    elif origin in (typing.Union, types.UnionType):
        for member in members:
            _add_annotation(found, member)
    elif annotation in (None, type(None)):
        found.none = True
    elif origin is typing.Literal:
        for member in members:
            _add_literal(found, member)
    elif origin in _LISTS:
        found.kinds.add(list)
        fixed = origin is tuple and members and members[-1] is not Ellipsis
        found.lengths |= {len(members)} if fixed else {0, 1}  # several: any
    elif inspect.isclass(origin) and issubclass(origin, (bool, str, int)):
        found.kinds.add(next(kind for kind in (bool, str, int) if issubclass(origin, kind)))
    elif origin in (float, complex) or (inspect.isclass(origin) and issubclass(origin, numbers.Number)):
        found.kinds.add(float)
    elif not (inspect.isclass(origin) and issubclass(origin, _OBJECTS)):
        found.anything = True


def _add_literal(found: Accepted, value: Any) -> None:
    if value is None:
        found.none = True
    elif isinstance(value, str):
        found.words.append(value)
    else:
        found.kinds.add(type(value))


def _add_default(found: Accepted, value: Any, says: bool) -> None:
    """Without an annotation, zero stands for any number, and null for what is switched off."""
    if value is None:
        found.none = True
        found.anything = found.anything or not says
    elif isinstance(value, bool):
        found.kinds.add(bool)
    elif isinstance(value, int | float):
        found.kinds.add(int if isinstance(value, int) and says else float)
    elif isinstance(value, str) and value not in found.words:
        found.kinds.add(str)
    elif isinstance(value, tuple | list):
        found.kinds.add(list)
        found.lengths |= {len(value)} if says else {0, 1}
    elif not isinstance(value, str):
        found.anything = found.anything or not says
    found.none = found.none or not says
