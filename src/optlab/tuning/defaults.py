"""Values that the default trial of an entry has in place of its ranges, as they are recorded."""

from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.search_space import NumericRange
from optlab.system.errors import ConfigError
from optlab.training.optimizer_factory import get_arguments, resolve_optimizer


def find_default_values(spec: OptimizerSpec) -> dict[str, float]:
    """Return range → value, of the ranges between two numbers whose value is known."""
    values = {key: _find_default_value(spec, key) for key, own in spec.ranges.items() if isinstance(own, NumericRange)}
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def _find_default_value(spec: OptimizerSpec, key: str) -> object:
    """Return the entry's default for a range such as `lr` or `base.lr`, or else the class's; None if not known."""
    where, _, name = key.rpartition(".")
    part = {"": spec, "base": spec.base, "fallback": spec.fallback}.get(where)
    if part is None or name in part.default:
        return spec.get_default(key)
    try:
        cls = resolve_optimizer("", part.replace_ranges({})).cls
    except ConfigError:  # its package is not installed here
        return None
    return get_arguments(cls)[name].default if name in get_arguments(cls) else None
