"""Errors of optimizers' classes, put into words: which hyperparameter of an entry is to blame."""

from collections.abc import Callable
from typing import Any

from optlab.config.entries import OptimizerSpec
from optlab.system.errors import ConfigError, LackError, one_line
from optlab.system.wording import shown, to_blame
from optlab.training import faults
from optlab.training.stepping import BASE, FALLBACK


def attempt(where: str, spec: OptimizerSpec, work: Callable[[OptimizerSpec], Any], first_step: bool = False) -> Any:
    """What `work` makes of the entry.

    Raises:
        ConfigError: it fails; the hyperparameter is named where one is to blame.
        LackError: it wants more memory than there is, or the machine fails otherwise.
    """

    def said_of(values: dict[str, Any]) -> str | None:
        try:
            work(_with(spec, values))
        except Exception as error:
            return one_line(error)
        return None

    try:
        return work(spec)
    except (ConfigError, LackError):
        raise
    except Exception as error:  # classes check their values with errors of their own
        lack = faults.lack(error)
        if lack:
            raise LackError(f"params.yaml: {where}: {spec.class_} {lack}") from None
        reason = f"{type(error).__name__}: {one_line(error)}" if first_step else one_line(error)
        values = _flat(spec)
        key = to_blame(one_line(error), values, said_of)
    when, whole = (" in its first step", "fails") if first_step else ("", "refuses its hyperparameters")
    if key is None:
        raise ConfigError(f"params.yaml: {where}: {spec.class_} {whole}{when}: {reason}")
    refusing = _owner(spec, key).class_
    raise ConfigError(f"params.yaml: {where}.{key}: {refusing} refuses {shown(values[key])}{when} ({reason})")


def _owner(spec: OptimizerSpec, key: str) -> OptimizerSpec:
    """Whose hyperparameter that is, named as in `_flat`."""
    for prefix, part in _parts(spec):
        if key.startswith(prefix):
            return _owner(part, key.removeprefix(prefix))
    return spec


def _parts(spec: OptimizerSpec) -> list[tuple[str, OptimizerSpec]]:
    return [(prefix, part) for prefix, part in ((FALLBACK, spec.fallback), (BASE, spec.base)) if part]


def _flat(spec: OptimizerSpec) -> dict[str, Any]:
    """The hyperparameters, with those of the fallback as `fallback.lr` and so on, those of the base as `base.lr`."""
    found = dict(spec.hyperparameters)
    for prefix, part in _parts(spec):
        found |= {f"{prefix}{key}": value for key, value in _flat(part).items()}
    return found


def _with(spec: OptimizerSpec, values: dict[str, Any]) -> OptimizerSpec:
    """The entry with these hyperparameters, named as in `_flat`, and no others."""
    parts, own = {}, dict(values)
    for prefix, part in _parts(spec):
        taken = {key: own.pop(key) for key in list(own) if key.startswith(prefix)}
        parts[prefix] = _with(part, {key.removeprefix(prefix): value for key, value in taken.items()})
    kept = {"class": spec.class_, "groups": spec.groups, "create_graph": spec.create_graph, "schedule": spec.schedule}
    return OptimizerSpec.model_validate(
        {**kept, "fallback": parts.get(FALLBACK), "base": parts.get(BASE), **own}
    )  # fmt: skip
