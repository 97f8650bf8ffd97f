"""torch's settings of the whole process that decide bits: no record has what a foreign module changes of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from optlab.system.errors import ConfigError

# Name → how it is read, and set.
_TORCH_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "choice of algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "recording of gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "use of oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "flushing of tiny numbers": (lambda: float(torch.tensor(1e-310, dtype=torch.float64) * 1) == 0,
                                 torch.set_flush_denormal),
}  # fmt: skip


def read_torch_settings() -> dict[str, Any]:
    """Those in force, by name."""
    return {name: read() for name, (read, _) in _TORCH_SETTINGS.items()}


def restore_torch_settings(before: dict[str, Any]) -> str | None:
    """Bring all of them to where they were; returns what differed, as the end of a sentence about who did that."""
    changed = {name: value for name, value in read_torch_settings().items() if value != before[name]}
    for name in changed:
        _TORCH_SETTINGS[name][1](before[name])
    changes = [f"torch's {name} from {before[name]} to {value}" for name, value in changed.items()]
    return f"changes {' and '.join(changes)}, for the whole process: remove that" if changes else None


@contextlib.contextmanager
def guard_torch_settings(where: str) -> Iterator[None]:
    """Refuse what changes one within.

    Args:
        where: who that would be.

    Raises:
        ConfigError: it does.
    """
    before = read_torch_settings()
    try:
        yield
    finally:
        changes = restore_torch_settings(before)
    if changes:
        raise ConfigError(f"params.yaml: {where} {changes}")
