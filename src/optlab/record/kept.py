"""The conditions of earlier trainings, by the weights that came out under them.

DVC's run cache brings an earlier training's outputs back. Its conditions are none of them: those of the training in
between have taken their place.
"""

from pathlib import Path

from optlab.record.contents import Conditions, Trained
from optlab.record.runs import RunFiles
from optlab.system import files, repository

_KEPT = Path(".optlab") / "conditions"


def keep(run: RunFiles) -> None:
    """Keep a run's conditions, before others take their place.

    Raises:
        RecordError: they are damaged.
        StorageError: they cannot be kept.
    """
    digest = Conditions.read(run.conditions).weights_sha256 if run.conditions.exists() else None
    if digest:
        files.write(_place(digest), run.conditions.read_bytes())


def restore(run: RunFiles) -> None:
    """Put the conditions of a run's weights back, if others are there and these were kept; else keep them.

    Raises:
        RecordError: a file of its record is missing or damaged.
        StorageError: a file cannot be written.
    """
    digest = Trained.read(run.training).weights_sha256
    if Conditions.of_weights(run.conditions, digest):
        keep(run)
    elif _place(digest).is_file():
        files.write(run.conditions, _place(digest).read_bytes())


def _place(digest: str) -> Path:
    return repository.home() / _KEPT / f"{digest}.json"
