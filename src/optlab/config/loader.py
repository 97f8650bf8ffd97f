"""params.yaml: read as YAML 1.2, as DVC does, checked by the models of `schema`, with errors in one line.

An error says where (file, line, key), what, and what was probably meant.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from optlab.schema.optimizer import SCHEDULE_NAMES, ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule
from optlab.schema.parameters import (
    PARAMS_FILE,
    Config,
    DataConfig,
    SensitivityConfig,
    TrainingConfig,
    TuningConfig,
    VerdictConfig,
    format_run_id,
)
from optlab.system.errors import ConfigError, RevisionError, summarize_error
from optlab.system.git import Revision
from optlab.system.text import find_conflict_marker, format_value, parse_yaml, suggest_similar, suggest_spelling

_SCHEDULES: dict[str, type[BaseModel]] = dict(
    zip(SCHEDULE_NAMES, (ConstantSchedule, CosineSchedule, OneCycleSchedule, StepSchedule), strict=True)
)
_MODELS: dict[tuple[Any, ...], type[BaseModel]] = {
    (): Config, ("data",): DataConfig, ("training",): TrainingConfig, ("tuning",): TuningConfig,
    ("tuning", "sensitivity"): SensitivityConfig, ("verdict",): VerdictConfig,
}  # fmt: skip
_CONFLICT = "conflict markers of a git merge: keep what you want of each side, and delete the markers"
_EXPECTED_TYPES: dict[str, set[type]] = {"bool_type": {bool}, "int_type": {int}, "float_type": {int, float}}


def load(path: Path = PARAMS_FILE) -> Config:
    """Read and check params.yaml.

    Raises:
        ConfigError: one line with the file, the line, the key and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file here: run from the folder that holds it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return parse(text, path)


def load_for_stages(folder: Path) -> Config:
    """Read and check the params.yaml of a pipeline before its stages are run.

    Raises:
        ConfigError: as in `load`; or a section that dvc.yaml names is missing, which DVC requires even if all of its
            keys have defaults.
    """
    config = load(folder / PARAMS_FILE)
    if not (folder / "dvc.yaml").is_file():
        return config
    present = parse_yaml((folder / PARAMS_FILE).read_text(encoding="utf-8"))
    named = _list_named_parameters(folder / "dvc.yaml")
    missing = next((each for each in named if each.partition(".")[0] not in present), None)
    if missing:
        raise ConfigError(
            f"{folder / PARAMS_FILE}: no section `{missing}`, which dvc.yaml names: add `{missing}: {{}}`"
        )
    return config


def _list_named_parameters(path: Path) -> list[str]:
    """List what the stages of a dvc.yaml depend on of params.yaml, without templates.

    Raises:
        ConfigError: it is no dvc.yaml.
    """
    try:
        text = path.read_text(encoding="utf-8")
        marker_line = find_conflict_marker(text)
        if marker_line:
            raise ConfigError(f"{path}:{marker_line}: {_CONFLICT}")
        named = [each for stage in parse_yaml(text)["stages"].values() for each in stage.get("params") or ()]
    except (OSError, YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: no stages of a DVC pipeline: {summarize_error(error)}") from None
    return [each for each in named if isinstance(each, str) and "${" not in each]


def load_at_revision(revision: Revision, folder: Path = Path()) -> Config:
    """Read and check the params.yaml that a revision has in a folder.

    Raises:
        RevisionError: it has none.
        ConfigError: this version cannot use it.
    """
    path = folder / PARAMS_FILE
    text = revision.read(path)
    if text is None:
        raise RevisionError(f"{revision.name}: has no {path}")
    return parse(text.decode(errors="replace"), Path(f"{revision.name}:{path}"))


def list_run_ids(revision: Revision, folder: Path, locked_ids: list[str]) -> list[str]:
    """List the ids of the runs in a revision's params.yaml, even of one that this version cannot use.

    Args:
        locked_ids: the ids in its dvc.lock, from which DVC never removes an entry; returned if the file names no runs.
    """
    text = revision.read(folder / PARAMS_FILE) or b""
    try:
        values = parse_yaml(text.decode())
        return [format_run_id(name, seed) for name in values["optimizers"] for seed in values["seeds"]]
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return locked_ids


def parse(text: str, path: Path) -> Config:
    """Check the text of a params.yaml; errors as in `load`, which name the file `path`."""
    marker_line = find_conflict_marker(text)
    if marker_line:
        raise ConfigError(f"{path}:{marker_line}: {_CONFLICT}")
    try:
        values = parse_yaml(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = (error.problem or str(error)).splitlines()[0]
        hint = ": indent with spaces, not with a tab" if "\\t" in problem else ""
        raise ConfigError(f"{where}: not valid YAML: {problem}{hint}") from None
    except Exception as error:  # a value that does not fit its tag, as in `!!int ""`, raises whatever Python raises
        raise ConfigError(f"{path}: not valid YAML: {type(error).__name__}: {summarize_error(error)}") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty: restore it with `git checkout {path}`")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe_error(path, text, values, error)) from None


def _describe_error(path: Path, text: str, values: Any, error: ValidationError) -> str:
    """Describe the first error as `params.yaml:LINE: key: problem`, with the number of others."""
    # A misspelt key is both unknown and missing: the first says more.
    errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    first = errors[0]
    location = _find_key_path(first["loc"], values)
    key, problem = ".".join(str(part) for part in location), _describe_problem(first, location)
    # The message of a check over several keys begins with the key that it concerns, which may have a line.
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
    message = str(error["ctx"]["error"]) if kind == "value_error" else error["msg"]
    message = message[0].lower() + message[1:]
    suggestion = suggest_spelling(value, _EXPECTED_TYPES.get(kind, set()))
    remedy = f": write {suggestion}" if suggestion else ""
    return message if kind == "value_error" else f"{message}, not {format_value(value)}{remedy}"


def _list_known_keys(location: Sequence[Any]) -> list[str]:
    return list((_MODELS.get(tuple(location)) or _SCHEDULES[location[-1]]).model_fields)


def _find_key_path(location: Sequence[Any], values: Any) -> list[Any]:
    """Return the file's keys in pydantic's location, which also names members of unions and checks of keys."""
    key_path: list[Any] = []
    for part in location:
        is_key = isinstance(values, dict) and part in values
        if not is_key and (
            part in SCHEDULE_NAMES or part == "[key]" or (key_path and not isinstance(values, dict | list))
        ):
            continue
        key_path.append(part)
        is_inside = is_key or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        values = values[part] if is_inside else None
    return key_path[: _measure_entry_depth(key_path)] if key_path[:1] == ["optimizers"] else key_path


def _measure_entry_depth(location: list[Any]) -> int:
    """Return how many parts of an entry's location are keys: the members of a hyperparameter's union follow."""
    depth = 3
    while location[depth - 1 : depth] in (["fallback"], ["base"]):
        depth += 1
    if location[depth - 1 : depth] == ["schedule"]:
        return depth + 1
    return depth + 2 if location[depth - 1 : depth] == ["groups"] else depth


def _find_line(text: str, location: Sequence[Any]) -> int | None:
    """Return the line, from 1, of the deepest part of `location` in the file; None if it is nested too deep."""
    try:
        node: Any = YAML(typ="rt", pure=True).load(text)
    except RecursionError:  # the round-trip reader needs more calls per level than the safe one
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
