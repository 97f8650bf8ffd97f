"""Errors in a training that say nothing of what is trained: the machine has not got what it takes.

Errors of optimizers' classes, put into words: which hyperparameter of an entry is to blame.
"""

import errno
import re
from collections.abc import Callable
from typing import Any

import torch

from optlab.schema.optimizer import OptimizerSpec
from optlab.system import processes
from optlab.system.errors import DISK_ERRORS, ConfigError, ResourceError, summarize_error
from optlab.system.text import find_culprit, format_value
from optlab.training.optimizer_driver import BASE_PREFIX, FALLBACK_PREFIX

_RESOURCE_ERRNOS = (*DISK_ERRORS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# cuBLAS, cuDNN and their like: of a GPU that is full, or gone; torch raises them as a RuntimeError.
_GPU_ERROR = re.compile(r"CU\w+_STATUS_(ALLOC_FAILED|NOT_INITIALIZED|INTERNAL_ERROR)|CUDA (error|driver)")


def describe_resource_error(error: BaseException) -> str | None:
    """What an error says of the machine, as the end of a sentence about who has raised it; None if nothing."""
    if isinstance(error, Exception) and (message := processes.describe_memory_error(error)):
        return message
    is_os_error = isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS
    is_gpu_error = isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or _GPU_ERROR.search(str(error))
    return f"fails: {type(error).__name__}: {summarize_error(error)}" if is_os_error or is_gpu_error else None


def call_with_attribution(
    where: str, spec: OptimizerSpec, function: Callable[[OptimizerSpec], Any], first_step: bool = False
) -> Any:
    """What `function` makes of the entry.

    Raises:
        ConfigError: it fails; the hyperparameter is named where one is to blame.
        LackError: it wants more memory than there is, or the machine fails otherwise.
    """

    def get_error_message(values: dict[str, Any]) -> str | None:
        try:
            function(_replace_hyperparameters(spec, values))
        except Exception as error:
            return summarize_error(error)
        return None

    try:
        return function(spec)
    except (ConfigError, ResourceError):
        raise
    except Exception as error:  # classes check their values with errors of their own
        resource_error = describe_resource_error(error)
        if resource_error:
            raise ResourceError(f"params.yaml: {where}: {spec.class_} {resource_error}") from None
        reason = f"{type(error).__name__}: {summarize_error(error)}" if first_step else summarize_error(error)
        values = _flatten_hyperparameters(spec)
        key = find_culprit(summarize_error(error), values, get_error_message)
    when, complaint = (" in its first step", "fails") if first_step else ("", "refuses its hyperparameters")
    if key is None:
        raise ConfigError(f"params.yaml: {where}: {spec.class_} {complaint}{when}: {reason}")
    class_name = _find_owner(spec, key).class_
    raise ConfigError(f"params.yaml: {where}.{key}: {class_name} refuses {format_value(values[key])}{when} ({reason})")


def _find_owner(spec: OptimizerSpec, key: str) -> OptimizerSpec:
    """Whose hyperparameter that is, named as in `_flatten_hyperparameters`."""
    for prefix, part in _list_nested_specs(spec):
        if key.startswith(prefix):
            return _find_owner(part, key.removeprefix(prefix))
    return spec


def _list_nested_specs(spec: OptimizerSpec) -> list[tuple[str, OptimizerSpec]]:
    return [(prefix, part) for prefix, part in ((FALLBACK_PREFIX, spec.fallback), (BASE_PREFIX, spec.base)) if part]


def _flatten_hyperparameters(spec: OptimizerSpec) -> dict[str, Any]:
    """The hyperparameters, with those of the fallback as `fallback.lr` and so on, those of the base as `base.lr`."""
    flat = dict(spec.hyperparameters)
    for prefix, part in _list_nested_specs(spec):
        flat |= {f"{prefix}{key}": value for key, value in _flatten_hyperparameters(part).items()}
    return flat


def _replace_hyperparameters(spec: OptimizerSpec, values: dict[str, Any]) -> OptimizerSpec:
    """The entry with these hyperparameters, named as in `_flatten_hyperparameters`, and no others."""
    parts, own = {}, dict(values)
    for prefix, part in _list_nested_specs(spec):
        nested = {key: own.pop(key) for key in list(own) if key.startswith(prefix)}
        parts[prefix] = _replace_hyperparameters(
            part, {key.removeprefix(prefix): value for key, value in nested.items()}
        )
    unchanged = {
        "class": spec.class_,
        "groups": spec.groups,
        "create_graph": spec.create_graph,
        "schedule": spec.schedule,
    }
    return OptimizerSpec.model_validate(
        {**unchanged, "fallback": parts.get(FALLBACK_PREFIX), "base": parts.get(BASE_PREFIX), **own}
    )  # fmt: skip
