"""Upload of event logs to MLflow, while a run goes or afterwards, with the same result."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from optlab.system.errors import StorageError, print_stderr
from optlab.tracking import mlflow_store, mlflow_writer
from optlab.tracking.event_log import EventLog, LogSummary, SyncState, list_logs, parse_events
from optlab.tracking.mlflow_writer import log_event
from optlab.tracking.uploader_client import MLFLOW_TIMEOUT_S, UPLOAD_LATER_HINT

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_NAMED = 3  # refused parts that one warning names


class LogUploader:
    """Uploader of one event log; `push` can be called any number of times.

    What a push does depends on the sync state beside the log:

        its store is the present one, and its summary has the log's size   nothing; the log is not opened
        its store is the present one                send the lines after those counted; count each one once it is there
        its store is another one, or there is none  send everything, which changes nothing that the store has already
        the store refuses an event, or a part of it, for its content   warn, and count it: it would be refused again
        any other error                             raise it; the next push connects anew, and continues

    A push holds the lock in the log's folder. Stages leave it to the daemon, which waits 30 s after an error and gives
    up when they have ended; `optlab sync` pushes itself.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._client: MlflowClient | None = None
        self._connected_address = ""

    def push(self) -> bool:
        """Send the events that MLflow does not have yet, and return whether there were any.

        Raises:
            Exception: whatever MLflow raises if it cannot be reached; the next call continues from there.
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
        refused: mlflow_writer.RefusedItems = []
        try:
            state.run_id = log_event(client, self._log, state.run_id, event, refused)
        except Exception as error:
            self._client = None  # connect anew next time: the server may be another by then
            mlflow_store.invalidate_store_id()
            if not mlflow_writer.is_permanent(error):
                raise
            refused.append((f"the {event['event']}", mlflow_store.describe_error(error)))
        if refused:
            more = f" and {len(refused) - _MAX_NAMED} more" if len(refused) > _MAX_NAMED else ""
            named = ", ".join(part for part, _ in refused[:_MAX_NAMED])
            _warn(f"refuses {named}{more} of {self._log.folder.name} ({refused[0][1]})")
            state.refused = (state.refused or 0) + len(refused)
        state.events += 1

    def _load_state(self, experiment: str, lines: int) -> SyncState:
        """Return the log's sync state with the present store; the log now has so many lines."""
        store_id, state = mlflow_store.get_store_id(experiment), SyncState.read(self._log.folder)
        if not store_id or state.store != store_id or state.events > lines:
            return SyncState(store=store_id, refused=0)
        return state.model_copy(update={"summary": None})

    def _connect(self) -> "MlflowClient":
        """Return one client for all pushes to a store: creating one costs more than a push."""
        if self._client is None or self._connected_address != mlflow_store.get_store_address():
            self._client = mlflow_store.connect()
            self._connected_address = mlflow_store.get_store_address()
        return self._client


def get_uploaded_summary(
    log: EventLog, get_store_id: Callable[[str], str] = mlflow_store.get_store_id
) -> LogSummary | None:
    """Return a log's summary, without opening the log, if MLflow has all of it; None otherwise.

    Raises:
        Exception: whatever MLflow raises if it cannot be reached.
    """
    state = SyncState.read(log.folder)
    summary = state.summary
    if summary is None or summary.size != log.get_size() or not state.store:
        return None
    return summary if state.store == get_store_id(summary.experiment) else None


def is_all_in_local_store() -> bool:
    """Return whether the repository's own database has every event log, and every run has ended; False of a server."""
    if not mlflow_store.is_local():
        return False
    get_store_id = functools.cache(mlflow_store.get_store_id)
    summaries = (get_uploaded_summary(log, get_store_id) for log in list_logs())
    return all(summary and summary.status for summary in summaries)


def list_refused_logs() -> list[str]:
    """Return the names of the logs of which the store has refused a part."""
    return [each.folder.name for each in list_logs() if SyncState.read(each.folder).refused]


def push_pending() -> bool:
    """Push every log, and return whether MLflow has everything that it takes; warn of an error or a timeout."""
    results: list[bool] = []

    def push() -> None:
        try:
            list(push_all())
        except Exception as error:
            _warn(f"does not take the runs now ({mlflow_store.describe_error(error)}): {UPLOAD_LATER_HINT}")
            results.append(False)
        else:
            results.append(True)

    thread = threading.Thread(target=push, name="mlflow", daemon=True)
    thread.start()
    thread.join(MLFLOW_TIMEOUT_S)
    if not results:
        _warn(f"is too slow: given up after {MLFLOW_TIMEOUT_S:g} s; {UPLOAD_LATER_HINT}")
    return results == [True]


def push_all(done_sizes: dict[str, int] | None = None) -> Iterator[str]:
    """Push every log, and yield the name of each that had something to send; end the runs of dead processes.

    Args:
        done_sizes: name → size of each log that has ended and was sent; kept up to date for the next call.

    Raises:
        Exception: whatever MLflow raises if it cannot be reached; the rest is still to be sent.
    """
    first_error: Exception | None = None
    storage_error: StorageError | None = None
    get_store_id = functools.cache(mlflow_store.get_store_id)  # asked once for each experiment, not for each log
    done_sizes = {} if done_sizes is None else done_sizes
    for log in list_logs():
        if log.get_size() == done_sizes.get(log.folder.name):
            continue
        summary = get_uploaded_summary(log, get_store_id)
        if summary and summary.status:
            done_sizes[log.folder.name] = summary.size
            continue
        try:
            log.close_if_dead()
            if LogUploader(log).push():
                yield log.folder.name
        except StorageError as error:  # its files or its lock belong to another user
            storage_error = storage_error or error
        except ConnectionError:
            raise
        except Exception as error:
            if first_error is not None and not _is_specific_to_log(error):
                raise
            first_error = first_error or error  # a log that the server fails on must not hold up the others
    if last_error := first_error or storage_error:
        raise last_error


def _is_specific_to_log(error: Exception) -> bool:
    """Return whether other logs may be taken: a request was too large for the server, or not permitted there."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    is_forbidden = isinstance(error, PermissionError) or getattr(error, "error_code", "") == "PERMISSION_DENIED"
    return is_forbidden or (400 <= status < 500 and status not in (401, 408, 429))


def _warn(text: str) -> None:
    print_stderr(f"warning: MLflow at {mlflow_store.get_redacted_uri()} {text}")
