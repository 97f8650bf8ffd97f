"""What is wrong in a params.yaml, in one line: where, what, and what was probably meant."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from optlab.config.entries import (
    SCHEDULES,
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    StepSchedule,
)
from optlab.config.parameters import Config, Data, Sensitivity, Training, Tuning, Verdict
from optlab.system.spelling import rewritten
from optlab.system.wording import did_you_mean, shown

_KINDS: dict[str, set[type]] = {"bool_type": {bool}, "int_type": {int}, "float_type": {int, float}}


def describe(path: Path, text: str, values: Any, error: ValidationError) -> str:
    """The first error as `params.yaml:LINE: key: what is wrong`, with a count of the others."""
    # A misspelt key is both unknown and missing: the first says more.
    errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    first = errors[0]
    location = _own_location(first["loc"], values)
    key, problem = ".".join(str(part) for part in location), _problem(first, location)
    # A check over several keys says first which one it is about; that one may have a line of its own.
    line = _line(text, [*location, *problem.split()[0].split(".")])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and first["type"] != "bool_type" else ""
    return f"{path}{f':{line}' if line else ''}: {key + ': ' if key else ''}{problem}{more}"


def _problem(error: Any, location: Sequence[Any]) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(location[-1]), _fields(error['loc'][:-1]))}"
    if kind == "missing":
        return "missing: add this key"
    if kind == "string_pattern_mismatch" or error["loc"][-1:] == ("[key]",):
        return "a name here is a lower-case letter, then up to 99 lower-case letters, digits or underscores: rename it"
    if location == ["optimizers"] and value is None:
        return "empty: give it at least one optimizer, such as `adam: {class: Adam, lr: 0.001}`"
    if location[:1] == ["optimizers"] and len(location) == 2 and value is None:
        return "has no body: give it one, such as {class: Adam, lr: 0.001}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"must be a mapping of keys to values, not {shown(value)}"
    if kind == "too_short":
        return "empty: give it at least one entry"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"name must be one of {', '.join(SCHEDULES)}"
    if kind == "bool_type" and len(location) > 2 and location[-1] != "create_graph":
        return f"must be a number, true, false, text, a list of numbers or a range, not {shown(value)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    better = rewritten(value, _KINDS.get(kind, set()))
    remedy = f": write {better}" if better else ""
    return message if kind == "value_error" else f"{message}, not {shown(value)}{remedy}"


def _own_location(location: Sequence[Any], values: Any) -> list[Any]:
    """The keys of the file in pydantic's location, which also names members of unions and checks of keys."""
    own: list[Any] = []
    for part in location:
        inside = isinstance(values, dict) and part in values
        if not inside and (part in SCHEDULES or part == "[key]" or (own and not isinstance(values, dict | list))):
            continue
        own.append(part)
        within = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        values = values[part] if within else None
    return own[: _depth(own)] if own[:1] == ["optimizers"] else own


def _depth(location: list[Any]) -> int:
    """How far the place of an error in an entry goes: below it are the members of a hyperparameter's union."""
    depth = 3
    while location[depth - 1 : depth] in (["fallback"], ["base"]):
        depth += 1
    if location[depth - 1 : depth] == ["schedule"]:
        return depth + 1
    return depth + 2 if location[depth - 1 : depth] == ["groups"] else depth


def _fields(location: Sequence[Any]) -> list[str]:
    """The keys that are known at a place of params.yaml."""
    schedules: tuple[type[BaseModel], ...] = (ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule)
    models: dict[tuple[Any, ...], type[BaseModel]] = {
        (): Config, ("data",): Data, ("training",): Training, ("tuning",): Tuning,
        ("tuning", "sensitivity"): Sensitivity, ("verdict",): Verdict,
    }  # fmt: skip
    by_name = dict(zip(SCHEDULES, schedules, strict=True))
    return list((models.get(tuple(location)) or by_name[location[-1]]).model_fields)


def _line(text: str, location: Sequence[Any]) -> int | None:
    """The line, from 1, of the deepest part of `location` that the file has; None where it is nested too deep."""
    try:
        node: Any = YAML(typ="rt", pure=True).load(text)
    except RecursionError:  # this reader takes more calls a level than the one that has read the values
        return None
    line = None
    for part in location:
        if isinstance(node, CommentedMap):
            key = next((each for each in node if str(each) == str(part)), None)  # a key can be a number
            if key is None or key not in (node.lc.data or {}):  # of a mapping that is merged into this one
                break
            line, node = node.lc.key(key)[0] + 1, node[key]
        elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line, node = node.lc.item(part)[0] + 1, node[part]
        else:
            break
    return line
