"""Types of a class's hyperparameters by its signature: Python silently takes the text `off` for true."""

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
from optlab.system.text import format_value, suggest_similar, suggest_spelling

_SEQUENCE_TYPES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
# Types that a YAML file cannot hold.
_NON_YAML_TYPES: Any = (
    torch.dtype,
    Tensor,
    nn.Module,
    dict,
    set,
    type,
    collections.abc.Callable,
    collections.abc.Mapping,
)
_TYPE_LABELS = {bool: "true or false", float: "a number", int: "a whole number", str: "text", list: "a list of numbers"}


@dataclass
class ArgumentType:
    """Values that an argument accepts.

    Attributes:
        unrestricted: the signature does not tell.
        kinds: of bool, int, float (includes whole numbers), str and list.
        lengths: of lists, if the signature has a single one.
        literals: valid texts, if the signature names them.
    """

    unrestricted: bool = False
    kinds: set[type] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)
    literals: list[str] = field(default_factory=list)
    nullable: bool = False

    def is_valid(self, value: Any) -> bool:
        """Return whether a value of params.yaml is accepted."""
        if value is None:
            return self.nullable
        if isinstance(value, bool):
            return bool in self.kinds
        if isinstance(value, str):
            return str in self.kinds or value in self.literals
        if isinstance(value, list):
            return list in self.kinds and (len(self.lengths) != 1 or len(value) in self.lengths)
        return float in self.kinds or (int in self.kinds and isinstance(value, int))

    def __str__(self) -> str:
        kinds = self.kinds - ({int} if float in self.kinds else set())
        names = [name for kind, name in _TYPE_LABELS.items() if kind in kinds]
        if list in kinds and len(self.lengths) == 1:
            names[-1] = f"a list of {min(self.lengths)} numbers"
        return " or ".join([*names, *self.literals, *(["null"] if self.nullable and (names or self.literals) else [])])


def check(where: str, cls: type[Optimizer], values: dict[str, Any]) -> None:
    """Check the types of hyperparameters by the annotations and defaults of the class's signature.

    Args:
        values: hyperparameters by name; the signature need not have all of them.

    Raises:
        ConfigError: a value has another type; the message says how to write it.
    """
    arguments = get_annotated_arguments(cls)
    for key, value in values.items():
        accepted = infer_argument_type(arguments[key]) if key in arguments else ArgumentType(unrestricted=True)
        suggestion = suggest_spelling(value, {bool, float} if accepted.unrestricted else accepted.kinds)
        if accepted.is_valid(value) or (accepted.unrestricted and not (isinstance(value, str) and suggestion)):
            continue
        prefix = f"params.yaml: {where}.{key}: {cls.__name__} takes"
        if not (str(accepted) or accepted.unrestricted):
            raise ConfigError(f"{prefix} an object that no params.yaml can hold, not {format_value(value)}: remove it")
        expected = accepted if str(accepted) else "no such text"
        raise ConfigError(f"{prefix} {expected}, not {format_value(value)}{_suggest_fix(value, accepted, suggestion)}")


def _suggest_fix(value: Any, accepted: ArgumentType, suggestion: str | None) -> str:
    if value is None:
        return ": remove it for the class's default"
    if isinstance(value, float) and int in accepted.kinds:
        return (
            f": {f'write {suggestion}; ' if suggestion else ''}a range of whole numbers is such as {{linear: [1, 8]}}"
        )
    if suggestion:
        return f": write {suggestion}"
    return suggest_similar(value, accepted.literals) if isinstance(value, str) else ""


def get_annotated_arguments(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """Return the named arguments, with evaluated annotations if possible."""
    try:
        found = inspect.signature(cls, eval_str=True)
    except Exception:  # a name that only type checkers know
        found = inspect.signature(cls)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each for name, each in found.parameters.items() if each.kind not in variadic}


def infer_argument_type(argument: inspect.Parameter) -> ArgumentType:
    """Return the type of an argument by its annotation; its default is always accepted."""
    argument_type = ArgumentType()
    annotated = argument.annotation is not argument.empty and not isinstance(argument.annotation, str)
    if annotated:
        _add_annotation(argument_type, argument.annotation)
    if argument.default is not argument.empty:
        _add_default(argument_type, argument.default, annotated)
    elif not annotated:
        argument_type.unrestricted = True
    return argument_type


def _add_annotation(argument_type: ArgumentType, annotation: Any) -> None:
    annotation = getattr(annotation, "__value__", annotation)  # of a `type` statement
    origin = typing.get_origin(annotation) or annotation
    members = typing.get_args(annotation)
    if origin is typing.Annotated:
        _add_annotation(argument_type, members[0])
    elif origin in (typing.Union, types.UnionType):
        for member in members:
            _add_annotation(argument_type, member)
    elif annotation in (None, type(None)):
        argument_type.nullable = True
    elif origin is typing.Literal:
        for member in members:
            _add_literal(argument_type, member)
    elif origin in _SEQUENCE_TYPES:
        argument_type.kinds.add(list)
        fixed = origin is tuple and members and members[-1] is not Ellipsis
        argument_type.lengths |= {len(members)} if fixed else {0, 1}  # several: any
    elif inspect.isclass(origin) and issubclass(origin, (bool, str, int)):
        argument_type.kinds.add(next(kind for kind in (bool, str, int) if issubclass(origin, kind)))
    elif origin in (float, complex) or (inspect.isclass(origin) and issubclass(origin, numbers.Number)):
        argument_type.kinds.add(float)
    elif not (inspect.isclass(origin) and issubclass(origin, _NON_YAML_TYPES)):
        argument_type.unrestricted = True


def _add_literal(argument_type: ArgumentType, value: Any) -> None:
    if value is None:
        argument_type.nullable = True
    elif isinstance(value, str):
        argument_type.literals.append(value)
    else:
        argument_type.kinds.add(type(value))


def _add_default(argument_type: ArgumentType, value: Any, annotated: bool) -> None:
    """Accept a default; without an annotation, 0 means any number, and null a switched-off feature."""
    if value is None:
        argument_type.nullable = True
        argument_type.unrestricted = argument_type.unrestricted or not annotated
    elif isinstance(value, bool):
        argument_type.kinds.add(bool)
    elif isinstance(value, int | float):
        argument_type.kinds.add(int if isinstance(value, int) and annotated else float)
    elif isinstance(value, str) and value not in argument_type.literals:
        argument_type.kinds.add(str)
    elif isinstance(value, tuple | list):
        argument_type.kinds.add(list)
        argument_type.lengths |= {len(value)} if annotated else {0, 1}
    elif not isinstance(value, str):
        argument_type.unrestricted = argument_type.unrestricted or not annotated
    argument_type.nullable = argument_type.nullable or not annotated
