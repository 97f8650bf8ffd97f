"""MLflow, filled from journals: as a training goes, or afterwards, with the same result."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from optlab.system.errors import say
from optlab.tracking import refusals, server
from optlab.tracking.journal import Journal, all_journals
from optlab.tracking.link import LATER, PATIENCE_S
from optlab.tracking.notes import Note, Summary, events
from optlab.tracking.sending import send

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NAMED = 3  # refusals that one warning names


class Replay:
    """Brings one run in MLflow to what its journal says; `push` can be called any number of times.

    A journal is growing (a process holds its run's lock), ended, or dead: it has no end, and nobody holds that lock, so
    that `push_all` ends it. Beside it lies a note of how far a store has it. What a push does:

        the note's store is today's, and its summary has the file's size   nothing; the journal is not opened
        the note's store is today's     send the lines after those noted, one by one, each noted when it is there
        it is another, or there is none send everything; what the store has already is not changed by that
        an event, or a part of one, is refused for what it says  warn, count it, go on: it would be refused for ever
        any other error                 raise it; the next push connects anew, and goes on from the note

    One push at a time: it holds the lock in the journal's folder. Stages leave it to the process of `sender`, which
    waits 30 s after an error and gives up when they have ended; `optlab` itself pushes by `push_all`.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._client: MlflowClient | None = None
        self._connected_to = ""

    def push(self) -> bool:
        """Send the events that MLflow does not have yet; returns whether there were any.

        Raises:
            Exception: whatever MLflow raises when it cannot be reached; the next call goes on from there.
        """
        if not self._journal.size() or sent(self._journal):
            return False
        with FileLock(self._journal.folder / "lock", timeout=PATIENCE_S):
            client = self._connect()
            lines = self._journal.lines()
            self._journal.sync()  # what is counted as sent must not be lost here
            said = Summary.of(lines)
            note = self._note(said.experiment, len(lines))
            waiting = lines[note.events :]
            for event in events(waiting):
                self._send(client, note, event)
                if event["event"] == "start":  # it has created the experiment, where there was none
                    note.store = server.identity(said.experiment)
                note.write(self._journal.folder)
            note.summary = said
            note.write(self._journal.folder)
            return bool(waiting)

    def _send(self, client: "MlflowClient", note: Note, event: dict[str, Any]) -> None:
        parts: refusals.Refused = []
        try:
            note.run_id = send(client, self._journal, note.run_id, event, parts)
        except Exception as error:
            self._client = None  # connect anew next time: the server may be another by then
            server.forget()
            if not refusals.is_final(error):
                raise
            parts.append((f"the {event['event']}", server.describe(error)))
        if parts:
            more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
            named = ", ".join(what for what, _ in parts[:_NAMED])
            _warn(f"refuses {named}{more} of {self._journal.folder.name} ({parts[0][1]})")
            note.refused = (note.refused or 0) + len(parts)
        note.events += 1

    def _note(self, experiment: str, lines: int) -> Note:
        """How far this store has the journal, which now has so many lines."""
        here, note = server.identity(experiment), Note.read(self._journal.folder)
        if not here or note.store != here or note.events > lines:
            return Note(store=here, refused=0)
        return note.model_copy(update={"summary": None})

    def _connect(self) -> "MlflowClient":
        """One client for all pushes, as long as the store is the same: making one costs more than a push."""
        if self._client is None or self._connected_to != server.address():
            self._client = server.connect()
            self._connected_to = server.address()
        return self._client


def sent(journal: Journal, identity: Callable[[str], str] = server.identity) -> Summary | None:
    """What a journal says, if MLflow has all that it says now; None otherwise. It is not opened for that.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached.
    """
    note = Note.read(journal.folder)
    said = note.summary
    if said is None or said.size != journal.size() or not note.store:
        return None
    return said if note.store == identity(said.experiment) else None


def refused() -> list[str]:
    """The names of the journals of which the store has refused a part."""
    return [each.folder.name for each in all_journals() if Note.read(each.folder).refused]


def push_pending() -> bool:
    """Push every journal; True if MLflow now has everything it takes. Gives up when that takes too long."""
    answer: list[bool] = []
    thread = threading.Thread(target=lambda: answer.append(_push_quietly()), name="mlflow", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if not answer:
        _warn(f"is too slow: given up after {PATIENCE_S:g} s; {LATER}")
    return answer == [True]


def _push_quietly() -> bool:
    try:
        for _ in push_all():
            pass
    except Exception as error:
        _warn(f"does not take the runs now ({server.describe(error)}): {LATER}")
        return False
    return True


def push_all(settled: dict[str, int] | None = None) -> Iterator[str]:
    """Push every journal; yields the name of each that had something to send. Ends the runs of dead processes.

    Args:
        settled: by name, the size of each journal that needs no further look; kept up to date for the next call.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached; the rest is still to be sent.
    """
    trouble = None
    identity = functools.cache(server.identity)  # asked once for each experiment, not for each journal
    settled = {} if settled is None else settled
    for journal in all_journals():
        if journal.size() == settled.get(journal.folder.name):
            continue
        said = sent(journal, identity)
        if said and said.status:
            settled[journal.folder.name] = said.size
            continue
        journal.close_if_dead()
        try:
            if Replay(journal).push():
                yield journal.folder.name
        except ConnectionError:
            raise
        except Exception as error:
            if trouble is not None and not _is_alone(error):
                raise
            trouble = trouble or error  # a journal that the server fails on must not hold up the others
    if trouble is not None:
        raise trouble


def _is_alone(error: Exception) -> bool:
    """Whether it need not be so of other journals: a request was too large for the server, or not permitted there."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    own = isinstance(error, PermissionError) or getattr(error, "error_code", "") == "PERMISSION_DENIED"
    return own or (400 <= status < 500 and status not in (401, 408, 429))


def _warn(text: str) -> None:
    say(f"warning: MLflow at {server.shown()} {text}")
