"""Attribution of a class's error to the hyperparameter of the entry that causes it."""

from collections.abc import Callable
from typing import Any, TypeVar

from optlab.schema.optimizer import OptimizerSpec
from optlab.system.errors import ConfigError, ResourceError, summarize_error
from optlab.system.text import find_culprit, format_value
from optlab.training import guards
from optlab.training.optimizer_driver import BASE_PREFIX, FALLBACK_PREFIX
from optlab.training.optimizers import InstantiationError

T = TypeVar("T")


def run_first_step(where: str, spec: OptimizerSpec, take_step: Callable[[OptimizerSpec], T]) -> T:
    """Call `take_step`, which builds an optimizer and takes a step.

    Raises:
        ConfigError: it fails; the message names the hyperparameter that causes it, if there is one.
        ResourceError: the machine lacks memory, or fails otherwise.
    """
    try:
        with guards.guard_resources(f"params.yaml: {where}: {spec.class_}"):
            return take_step(spec)
    except InstantiationError as error:
        raise attribute(error) from None
    except (ConfigError, ResourceError):
        raise
    except Exception as error:  # classes check their values with errors of their own
        summary = summarize_error(error)
        reason = f"{type(error).__name__}: {summary}"
        key = _find_key(spec, summary, take_step)
    if key is None:
        raise ConfigError(f"params.yaml: {where}: {spec.class_} fails in its first step: {reason}")
    raise ConfigError(_format_refusal(where, spec, key, " in its first step", reason))


def attribute(error: ConfigError) -> ConfigError:
    """Return an error that names the hyperparameter that a class refuses; other errors are returned unchanged."""
    if not isinstance(error, InstantiationError):
        return error
    key = _find_key(error.spec, error.reason, error.make)
    return ConfigError(_format_refusal(error.where, error.spec, key, "", error.reason) if key else str(error))


def _format_refusal(where: str, spec: OptimizerSpec, key: str, when: str, reason: str) -> str:
    value = format_value(_flatten_hyperparameters(spec)[key])
    return f"params.yaml: {where}.{key}: {_find_owner(spec, key).class_} refuses {value}{when} ({reason})"


def _find_key(spec: OptimizerSpec, error_message: str, function: Callable[[OptimizerSpec], Any]) -> str | None:
    """Return the hyperparameter without which `function` does not raise this error; None if there is not just one."""

    def get_error_message(values: dict[str, Any]) -> str | None:
        try:
            function(_replace_hyperparameters(spec, values))
        except InstantiationError as error:
            return error.reason
        except Exception as error:
            return summarize_error(error)
        return None

    return find_culprit(error_message, _flatten_hyperparameters(spec), get_error_message)


def _find_owner(spec: OptimizerSpec, key: str) -> OptimizerSpec:
    """Return the part of the entry whose hyperparameter that is, named as in `_flatten_hyperparameters`."""
    for prefix, part in _list_nested_specs(spec):
        if key.startswith(prefix):
            return _find_owner(part, key.removeprefix(prefix))
    return spec


def _list_nested_specs(spec: OptimizerSpec) -> list[tuple[str, OptimizerSpec]]:
    return [(prefix, part) for prefix, part in ((FALLBACK_PREFIX, spec.fallback), (BASE_PREFIX, spec.base)) if part]


def _flatten_hyperparameters(spec: OptimizerSpec) -> dict[str, Any]:
    """Return the hyperparameters, those of the fallback as `fallback.lr`, those of the base as `base.lr`."""
    flat = dict(spec.hyperparameters)
    for prefix, part in _list_nested_specs(spec):
        flat |= {f"{prefix}{key}": value for key, value in _flatten_hyperparameters(part).items()}
    return flat


def _replace_hyperparameters(spec: OptimizerSpec, values: dict[str, Any]) -> OptimizerSpec:
    """Return the entry with these hyperparameters, named as in `_flatten_hyperparameters`, and no others."""
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
