"""The points that are tried: a pure function of (seed, study, index), the same in the unit cube for every optimizer."""

import functools
import hashlib
from collections.abc import Collection
from typing import Any

from optlab.config.entries import MOST_RANGES
from optlab.config.ranges import Interval, Range

# Always as many: scrambling gives other first coordinates for another number. Each range takes one, by its place.
DIMENSIONS = MOST_RANGES


@functools.cache
def point(seed: int, study: int, index: int) -> tuple[float, ...]:
    """A place in the unit cube: of Sobol's sequence, scrambled (Owen 1998), which fills it more evenly than chance."""
    from scipy.stats import qmc  # it takes a second

    sequence = qmc.Sobol(DIMENSIONS, scramble=True, rng=_number("points", seed, study))
    if index:
        sequence.fast_forward(index)
    return tuple(sequence.random(1)[0].tolist())


def values(ranges: dict[str, Range], place: tuple[float, ...], beyond: dict[str, int] | None = None) -> dict[str, Any]:
    """The value of each range at a place of the unit cube.

    Args:
        beyond: the ranges whose value is drawn next to an edge instead, -1 for the lower one and 1 for the upper one.
    """
    edges = beyond or {}
    found = {}
    for (key, each), coordinate in zip(ranges.items(), place, strict=False):
        within = each.decade_beyond(edges[key]) if key in edges and isinstance(each, Interval) else each
        found[key] = within.at(coordinate)
    return found


def training_seed(purpose: str, seed: int, study: int, index: int, taken: Collection[int]) -> int:
    """That of a trial's training: none of those that confirm what is chosen.

    Args:
        purpose: other seeds for another one.
        index: of the trial; -1 for the default's.
        taken: the seeds of the runs.
    """
    for attempt in range(len(taken) + 1):
        found = _number(purpose, seed, study, index, attempt) % 2**32
        if found not in taken:
            return found
    raise AssertionError("as many different numbers as attempts")


def _number(purpose: str, *parts: int) -> int:
    """64 bits of the SHA-256 of a purpose and numbers."""
    text = " ".join(["optlab", purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
