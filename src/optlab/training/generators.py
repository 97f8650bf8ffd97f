"""The global random generators that models and optimizers may draw from: Python's, NumPy's and torch's.

What the batches and the points of a tuning are drawn by is none of them.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Begin all of them anew, at a number from 0 to 2³² - 1."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def state() -> dict[str, Any]:
    """Where all of them are, as tensors, numbers and texts."""
    kind, key, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(key, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore(state: dict[str, Any]) -> None:
    """Bring all of them to where they were."""
    kind, key, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What is done within draws no number of the training's."""
    before = state()
    try:
        yield
    finally:
        restore(before)
