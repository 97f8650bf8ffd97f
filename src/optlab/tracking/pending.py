"""Comparisons that MLflow is to show, kept until it does: a store can be away, full, or replaced by another one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from optlab.system import files, repository
from optlab.system.errors import StorageError
from optlab.tracking import server, shown
from optlab.tracking.shown import Shown

COMPARISONS = Path(".optlab") / "comparisons"


class Pending(BaseModel):
    """The comparison of a pipeline that was published last.

    Attributes:
        store: the identity of the store that shows it; empty while none does.
    """

    shown: Shown
    store: str = ""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the one in that file; None for a damaged one, which the next comparison replaces."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None

    def write(self) -> None:
        """Put it in place; on a full disk, `optlab show` still shows the comparison."""
        path = repository.home() / COMPARISONS / f"{self.shown.experiment}.json"
        with contextlib.suppress(StorageError):
            files.write(path, self.model_dump_json().encode())


def show(comparison: Shown) -> str:
    """Show a comparison whose runs MLflow has, and note where; returns where to look.

    Raises:
        Exception: whatever MLflow raises.
    """
    told = shown.show(comparison)
    Pending(shown=comparison, store=server.identity(comparison.experiment)).write()
    return told


def show_all() -> Iterator[str]:
    """Show each comparison that today's store does not; yields the names of their experiments.

    Raises:
        Exception: whatever MLflow raises.
    """
    for path in sorted((repository.home() / COMPARISONS).glob("*.json")):
        kept = Pending.read(path)
        if kept and (not kept.store or kept.store != server.identity(kept.shown.experiment)):
            show(kept.shown)
            yield kept.shown.experiment
