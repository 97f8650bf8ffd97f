"""The lines of a journal, and what is known of it without opening it: a note, by whoever sends it to MLflow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from optlab.system import repository

EXPERIMENT_PREFIX = "optlab"  # every experiment's name begins with it
WEIGHTS_TAG = "weights.sha256"  # in MLflow as well

_STATE_FILE = "synced.json"


def parse_event(line: bytes) -> dict[str, Any]:
    """The event of a line; a damaged one is an event `cut`."""
    try:
        event = json.loads(line.decode(errors="replace"))
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "event" in event else {"event": "cut"}


def parse_events(lines: list[bytes], skip: str = "") -> Iterator[dict[str, Any]]:
    """Those of the lines, but for the kind `skip`, of which there may be many: they are not parsed."""
    skipped = f'{{"event": "{skip}"'.encode()
    return (parse_event(line) for line in lines if not line.startswith(skipped))


def get_experiment_name(folder: Path) -> str:
    """The MLflow experiment of a pipeline: the project's name, with the folder's where it is not the top."""
    return EXPERIMENT_PREFIX if folder == Path() else f"{EXPERIMENT_PREFIX}-{folder.name}"


def get_lock_name(folder: Path, run: str) -> str:
    """What a process holds while it writes the outputs of a run of the pipeline in that folder."""
    return build_lock_name(get_experiment_name(folder), run)


def build_lock_name(experiment: str, run: str) -> str:
    """The lock that a process holds while it is at work on a run of an experiment; a copy's runs are others."""
    return repository.add_copy_suffix(_build_base_lock_name(experiment, run))


def _build_base_lock_name(experiment: str, run: str) -> str:
    return f"{experiment}-{run}"


class LogSummary(BaseModel):
    """What a journal says besides its figures.

    Attributes:
        size: how many bytes of it say so: its whole lines.
        experiment: that its run belongs to; none before its start.
        lock: that a process holds while it is at work on the run; none before its start.
        status: that it ended with; None while it has no end.
        weights: the SHA-256 of every file of weights that came out.
    """

    model_config = ConfigDict(frozen=True)

    size: int
    experiment: str = ""
    lock: str = ""
    status: str | None = None
    weights: tuple[str, ...] = ()

    @classmethod
    def from_lines(cls, lines: list[bytes]) -> Self:
        """That of a journal of these lines, without their ends."""
        fields: dict[str, Any] = {}
        weights = []
        for event in parse_events(lines, skip="metrics"):
            kind, tags = event["event"], event.get("tags")
            if kind == "start" and not fields.get("lock"):
                fields |= _parse_start(event)
            if kind in ("start", "resume", "end"):
                fields["status"] = str(event.get("status")) if kind == "end" else None
            if kind == "tags" and isinstance(tags, dict) and WEIGHTS_TAG in tags:
                weights.append(str(tags[WEIGHTS_TAG]))
        return cls(size=sum(len(line) + 1 for line in lines), weights=tuple(weights), **fields)

    def is_from_this_tree(self, run: str) -> bool:
        """Whether the run of that id is one of this working tree, and not of another copy of the repository."""
        return self.lock == build_lock_name(self.experiment, run)


def _parse_start(start: dict[str, Any]) -> dict[str, str]:
    try:
        run = start["tags"].get("optlab.run", start["name"])
        lock = start.get("lock") or _build_base_lock_name(
            start["experiment"], run
        )  # which versions before copies did not say
        return {"experiment": str(start["experiment"]), "lock": str(lock)}
    except (KeyError, AttributeError):  # damaged: the store will refuse it
        return {}


class SyncState(BaseModel):
    """How far MLflow has a journal.

    Attributes:
        store: the identity of the store that it was last sent to.
        run_id: of its run there; None before its start.
        events: how many of its lines were sent.
        refused: how many of these the store did not take; None where an earlier version has not counted them.
        summary: of the journal, once all of it was sent.
    """

    store: str = ""
    run_id: str | None = None
    events: int = 0
    refused: int | None = None
    summary: LogSummary | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The one in a journal's folder; an empty one where there is none, or a damaged one."""
        try:
            return cls.model_validate_json((folder / _STATE_FILE).read_bytes())
        except (OSError, ValueError):
            return cls()

    def write(self, folder: Path) -> None:
        """Put it there, in one step.

        On a full disk there is none: the next push sends again what MLflow has already, which changes nothing.
        """
        path = folder / _STATE_FILE
        temporary = path.with_suffix(".new")
        try:
            temporary.write_text(self.model_dump_json(), "utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
