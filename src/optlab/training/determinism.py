"""Settings that make torch repeatable, and the state of the global random generators: Python's, NumPy's and torch's.

The order of the batches and the points of a search come from generators of their own.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from optlab.schema.parameters import TrainingConfig
from optlab.system import processes
from optlab.training import portable_kernels


def configure_torch(training: TrainingConfig) -> torch.device:
    """Set the threads, deterministic algorithms, float32 without TF32, and the memory limit; return the device."""
    torch.set_num_threads(training.threads)
    if training.numerics == "portable":
        portable_kernels.install()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # for a model that compiles itself
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms, which imports the compiler for that
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs speed
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # torch's default allows it in convolutions
    torch.set_float32_matmul_precision("highest")  # no TF32 in matrix products, which is torch's default
    if torch.cuda.is_available():
        return torch.device("cuda")
    processes.limit_memory()  # a GPU's driver reserves more than it uses
    return torch.device("cpu")


def seed_all(number: int) -> None:
    """Seed all generators with a number from 0 to 2³² - 1."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def get_rng_state() -> dict[str, Any]:
    """Return the state of all generators, as tensors, numbers and texts."""
    kind, key, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(key, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the state of all generators."""
    kind, key, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the state of all generators at the end of the context."""
    before = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
