"""Guards around foreign code: torch's process-wide settings, which decide bits, and errors of the machine."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from optlab.system import processes
from optlab.system.errors import DISK_ERRORS, ConfigError, OptlabError, ResourceError, summarize_error

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

_RESOURCE_ERRNOS = (*DISK_ERRORS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# Errors of cuBLAS, cuDNN and the driver when a GPU is full or gone; torch raises them as a RuntimeError.
_GPU_ERROR = re.compile(r"CU\w+_STATUS_(ALLOC_FAILED|NOT_INITIALIZED|INTERNAL_ERROR)|CUDA (error|driver)")


def read_torch_settings() -> dict[str, Any]:
    """Return torch's process-wide settings by name."""
    return {name: read() for name, (read, _) in _TORCH_SETTINGS.items()}


def restore_torch_settings(before: dict[str, Any]) -> str | None:
    """Restore torch's settings; return the changes as a verb phrase for an error message, or None."""
    changed = {name: value for name, value in read_torch_settings().items() if value != before[name]}
    for name in changed:
        _TORCH_SETTINGS[name][1](before[name])
    changes = [f"torch's {name} from {before[name]} to {value}" for name, value in changed.items()]
    return f"changes {' and '.join(changes)}, for the whole process: remove that" if changes else None


@contextlib.contextmanager
def guard_torch_settings(where: str) -> Iterator[None]:
    """Restore torch's settings at the end, and refuse code that changed one.

    Args:
        where: subject of the error message.

    Raises:
        ConfigError: a setting was changed.
    """
    before = read_torch_settings()
    try:
        yield
    finally:
        changes = restore_torch_settings(before)
    if changes:
        raise ConfigError(f"params.yaml: {where} {changes}")


@contextlib.contextmanager
def guard_resources(where: str) -> Iterator[None]:
    """Turn errors of the machine into a `ResourceError`, so that no model or optimizer is blamed for them.

    A trial that raises one is repeated later; any other error is recorded as a failure of its optimizer.

    Args:
        where: subject of the error message.

    Raises:
        ResourceError: memory, disk or GPU failed.
    """
    try:
        yield
    except OptlabError:
        raise
    except Exception as error:
        if message := _describe_resource_error(error):
            raise ResourceError(f"{where} {message}") from error
        raise


def _describe_resource_error(error: Exception) -> str | None:
    if message := processes.describe_memory_error(error):
        return message
    is_os_error = isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS
    is_gpu_error = isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or _GPU_ERROR.search(str(error))
    return f"fails: {type(error).__name__}: {summarize_error(error)}" if is_os_error or is_gpu_error else None
