"""The values that an entry's default has in place of its ranges."""

from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.search_space import NumericRange
from optlab.system.errors import ConfigError
from optlab.training.optimizer_factory import get_arguments, resolve_optimizer


def find_default_values(spec: OptimizerSpec) -> dict[str, float]:
    """Range → value, of the ranges between two numbers whose value is known."""
    found = {key: find_default_value(spec, key) for key, own in spec.ranges.items() if isinstance(own, NumericRange)}
    return {key: value for key, value in found.items() if value is not None}


def find_default_value(spec: OptimizerSpec, key: str) -> float | None:
    """The value that the entry's default has in place of a range, or the class's own; None if that is not known.

    Args:
        key: of the range: `lr`, `base.lr`, `fallback.lr`; of a group's, nothing is known.
    """
    where, _, name = key.rpartition(".")
    part = {"": spec, "base": spec.base, "fallback": spec.fallback}.get(where)
    if part is None:
        return None
    if name in part.default:
        given = part.default[name]
        return float(given) if isinstance(given, int | float) else None
    try:
        cls = resolve_optimizer("", part.replace_ranges({})).cls
    except ConfigError:  # its package is not installed here
        return None
    found = get_arguments(cls)[name].default if name in get_arguments(cls) else None
    return float(found) if isinstance(found, int | float) else None
