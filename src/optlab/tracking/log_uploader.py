"""MLflow, filled from journals: as a training goes, or afterwards, with the same result."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from optlab.system.errors import print_stderr
from optlab.tracking import mlflow_store, mlflow_writer
from optlab.tracking.event_log import EventLog, list_logs
from optlab.tracking.mlflow_writer import log_event
from optlab.tracking.sync_state import LogSummary, SyncState, parse_events
from optlab.tracking.uploader_client import MLFLOW_TIMEOUT_S, UPLOAD_LATER_HINT

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_NAMED = 3  # refusals that one warning names


class LogUploader:
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

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._client: MlflowClient | None = None
        self._connected_address = ""

    def push(self) -> bool:
        """Send the events that MLflow does not have yet; returns whether there were any.

        Raises:
            Exception: whatever MLflow raises when it cannot be reached; the next call goes on from there.
        """
        if not self._log.get_size() or get_uploaded_summary(self._log):
            return False
        with FileLock(self._log.folder / "lock", timeout=MLFLOW_TIMEOUT_S):
            client = self._connect()
            lines = self._log.read_lines()
            self._log.fsync()  # what is counted as sent must not be lost here
            summary = LogSummary.from_lines(lines)
            state = self._load_state(summary.experiment, len(lines))
            unsent = lines[state.events :]
            for event in parse_events(unsent):
                self._upload_event(client, state, event)
                if event["event"] == "start":  # it has created the experiment, where there was none
                    state.store = mlflow_store.get_store_id(summary.experiment)
                state.write(self._log.folder)
            state.summary = summary
            state.write(self._log.folder)
            return bool(unsent)

    def _upload_event(self, client: "MlflowClient", state: SyncState, event: dict[str, Any]) -> None:
        refused_items: mlflow_writer.RefusedItems = []
        try:
            state.run_id = log_event(client, self._log, state.run_id, event, refused_items)
        except Exception as error:
            self._client = None  # connect anew next time: the server may be another by then
            mlflow_store.invalidate_store_id()
            if not mlflow_writer.is_permanent(error):
                raise
            refused_items.append((f"the {event['event']}", mlflow_store.describe_error(error)))
        if refused_items:
            more = f" and {len(refused_items) - _MAX_NAMED} more" if len(refused_items) > _MAX_NAMED else ""
            named = ", ".join(what for what, _ in refused_items[:_MAX_NAMED])
            _warn(f"refuses {named}{more} of {self._log.folder.name} ({refused_items[0][1]})")
            state.refused = (state.refused or 0) + len(refused_items)
        state.events += 1

    def _load_state(self, experiment: str, lines: int) -> SyncState:
        """How far this store has the journal, which now has so many lines."""
        store_id, state = mlflow_store.get_store_id(experiment), SyncState.read(self._log.folder)
        if not store_id or state.store != store_id or state.events > lines:
            return SyncState(store=store_id, refused=0)
        return state.model_copy(update={"summary": None})

    def _connect(self) -> "MlflowClient":
        """One client for all pushes, as long as the store is the same: making one costs more than a push."""
        if self._client is None or self._connected_address != mlflow_store.get_store_address():
            self._client = mlflow_store.connect()
            self._connected_address = mlflow_store.get_store_address()
        return self._client


def get_uploaded_summary(
    log: EventLog, get_store_id: Callable[[str], str] = mlflow_store.get_store_id
) -> LogSummary | None:
    """What a journal says, if MLflow has all that it says now; None otherwise. It is not opened for that.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached.
    """
    state = SyncState.read(log.folder)
    summary = state.summary
    if summary is None or summary.size != log.get_size() or not state.store:
        return None
    return summary if state.store == get_store_id(summary.experiment) else None


def list_refused_logs() -> list[str]:
    """The names of the journals of which the store has refused a part."""
    return [each.folder.name for each in list_logs() if SyncState.read(each.folder).refused]


def push_pending() -> bool:
    """Push every journal; True if MLflow now has everything it takes. Gives up when that takes too long."""
    answer: list[bool] = []
    thread = threading.Thread(target=lambda: answer.append(_push_quietly()), name="mlflow", daemon=True)
    thread.start()
    thread.join(MLFLOW_TIMEOUT_S)
    if not answer:
        _warn(f"is too slow: given up after {MLFLOW_TIMEOUT_S:g} s; {UPLOAD_LATER_HINT}")
    return answer == [True]


def _push_quietly() -> bool:
    try:
        for _ in push_all():
            pass
    except Exception as error:
        _warn(f"does not take the runs now ({mlflow_store.describe_error(error)}): {UPLOAD_LATER_HINT}")
        return False
    return True


def push_all(done_sizes: dict[str, int] | None = None) -> Iterator[str]:
    """Push every journal; yields the name of each that had something to send. Ends the runs of dead processes.

    Args:
        done_sizes: by name, the size of each journal that needs no further look; kept up to date for the next call.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached; the rest is still to be sent.
    """
    first_error = None
    get_store_id = functools.cache(mlflow_store.get_store_id)  # asked once for each experiment, not for each journal
    done_sizes = {} if done_sizes is None else done_sizes
    for log in list_logs():
        if log.get_size() == done_sizes.get(log.folder.name):
            continue
        summary = get_uploaded_summary(log, get_store_id)
        if summary and summary.status:
            done_sizes[log.folder.name] = summary.size
            continue
        log.close_if_dead()
        try:
            if LogUploader(log).push():
                yield log.folder.name
        except ConnectionError:
            raise
        except Exception as error:
            if first_error is not None and not _is_specific_to_log(error):
                raise
            first_error = first_error or error  # a journal that the server fails on must not hold up the others
    if first_error is not None:
        raise first_error


def _is_specific_to_log(error: Exception) -> bool:
    """Whether it need not be so of other journals: a request was too large for the server, or not permitted there."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    own = isinstance(error, PermissionError) or getattr(error, "error_code", "") == "PERMISSION_DENIED"
    return own or (400 <= status < 500 and status not in (401, 408, 429))


def _warn(text: str) -> None:
    print_stderr(f"warning: MLflow at {mlflow_store.get_redacted_uri()} {text}")
