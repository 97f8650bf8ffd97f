"""What is wrong in a params.yaml, in one line: where, what, and what was probably meant."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from optlab.schema.optimizer import SCHEDULE_NAMES, ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule
from optlab.schema.parameters import Config, DataConfig, SensitivityConfig, TrainingConfig, TuningConfig, VerdictConfig
from optlab.system.text import format_value, suggest_similar, suggest_spelling

_EXPECTED_TYPES: dict[str, set[type]] = {"bool_type": {bool}, "int_type": {int}, "float_type": {int, float}}


def describe_error(path: Path, text: str, values: Any, error: ValidationError) -> str:
    """The first error as `params.yaml:LINE: key: what is wrong`, with a count of the others."""
    # A misspelt key is both unknown and missing: the first says more.
    errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    first = errors[0]
    location = _find_key_path(first["loc"], values)
    key, problem = ".".join(str(part) for part in location), _describe_problem(first, location)
    # A check over several keys says first which one it is about; that one may have a line of its own.
    line = _find_line(text, [*location, *problem.split()[0].split(".")])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and first["type"] != "bool_type" else ""
    return f"{path}{f':{line}' if line else ''}: {key + ': ' if key else ''}{problem}{more}"


def _describe_problem(error: Any, location: Sequence[Any]) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key{suggest_similar(str(location[-1]), _list_known_keys(error['loc'][:-1]))}"
    if kind == "missing":
        return "missing: add this key"
    if kind == "string_pattern_mismatch" or error["loc"][-1:] == ("[key]",):
        return "a name here is a lower-case letter, then up to 99 lower-case letters, digits or underscores: rename it"
    if location == ["optimizers"] and value is None:
        return "empty: give it at least one optimizer, such as `adam: {class: Adam, lr: 0.001}`"
    if location[:1] == ["optimizers"] and len(location) == 2 and value is None:
        return "has no body: give it one, such as {class: Adam, lr: 0.001}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"must be a mapping of keys to values, not {format_value(value)}"
    if kind == "too_short":
        return "empty: give it at least one entry"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"name must be one of {', '.join(SCHEDULE_NAMES)}"
    if kind == "bool_type" and len(location) > 2 and location[-1] != "create_graph":
        return f"must be a number, true, false, text, a list of numbers or a range, not {format_value(value)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    suggestion = suggest_spelling(value, _EXPECTED_TYPES.get(kind, set()))
    remedy = f": write {suggestion}" if suggestion else ""
    return message if kind == "value_error" else f"{message}, not {format_value(value)}{remedy}"


def _find_key_path(location: Sequence[Any], values: Any) -> list[Any]:
    """The keys of the file in pydantic's location, which also names members of unions and checks of keys."""
    key_path: list[Any] = []
    for part in location:
        inside = isinstance(values, dict) and part in values
        if not inside and (
            part in SCHEDULE_NAMES or part == "[key]" or (key_path and not isinstance(values, dict | list))
        ):
            continue
        key_path.append(part)
        within = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        values = values[part] if within else None
    return key_path[: _measure_entry_depth(key_path)] if key_path[:1] == ["optimizers"] else key_path


def _measure_entry_depth(location: list[Any]) -> int:
    """How far the place of an error in an entry goes: below it are the members of a hyperparameter's union."""
    depth = 3
    while location[depth - 1 : depth] in (["fallback"], ["base"]):
        depth += 1
    if location[depth - 1 : depth] == ["schedule"]:
        return depth + 1
    return depth + 2 if location[depth - 1 : depth] == ["groups"] else depth


def _list_known_keys(location: Sequence[Any]) -> list[str]:
    """The keys that are known at a place of params.yaml."""
    schedules: tuple[type[BaseModel], ...] = (ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule)
    models: dict[tuple[Any, ...], type[BaseModel]] = {
        (): Config, ("data",): DataConfig, ("training",): TrainingConfig, ("tuning",): TuningConfig,
        ("tuning", "sensitivity"): SensitivityConfig, ("verdict",): VerdictConfig,
    }  # fmt: skip
    by_name = dict(zip(SCHEDULE_NAMES, schedules, strict=True))
    return list((models.get(tuple(location)) or by_name[location[-1]]).model_fields)


def _find_line(text: str, location: Sequence[Any]) -> int | None:
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
