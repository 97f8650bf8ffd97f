"""MLflow, filled from journals: as a training goes, or afterwards, with the same result."""

import hashlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from optlab import store
from optlab.errors import one_line
from optlab.journal import Journal, all_journals

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # MLflow's limit for the metrics of one call
_ROOM = 50_000_000  # bytes of free disk below which no error is an event's own fault
_RETRY_S = 30.0
_PATIENCE_S = 120.0
_REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
)
_LATER = "all is in .optlab/journal, and the next stage or `optlab sync` sends it"
_STATUS = {"completed": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Replay:
    """Brings one run in MLflow to what its journal says; `push` can be called any number of times.

    How far it got is kept beside the journal, for the store that it was last sent to. An event that the store refuses
    for what it says is reported and passed over: it would be refused for ever.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._state_path = journal.folder / "synced.json"
        self._client: MlflowClient | None = None
        self._connected_to = ""

    def push(self) -> None:
        """Send the events that MLflow does not have yet.

        Raises:
            Exception: whatever MLflow raises when it cannot be reached; the next call goes on from there.
        """
        with FileLock(self._journal.folder / "lock", timeout=_PATIENCE_S):
            if not self.pending():
                return
            client = self._connect()
            state = self._state()  # once there is a database: a new one has nothing yet
            for event in self._journal.events(state["events"]):
                try:
                    state["run_id"] = _send(client, self._journal, state["run_id"], event)
                except Exception as error:
                    if not _is_final(error):
                        self._client = None  # connect anew next time: the server may be another by then
                        raise
                    _warn(f"refuses the {event['event']} of {self._journal.folder.name} ({one_line(error)[:200]})")
                state["events"] += 1
                self._save(state)

    def _connect(self) -> "MlflowClient":
        """One client for all pushes, as long as the store is the same: making one costs more than a push."""
        if self._client is None or self._connected_to != store.identity():
            self._client = store.connect()
            self._connected_to = store.identity()
        return self._client

    def pending(self) -> bool:
        """Whether there are events that MLflow does not have yet."""
        return any(True for _ in self._journal.events(self._state()["events"]))

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state_path.read_text())
        except (OSError, ValueError):
            state = {}
        here = store.identity()
        return state if here and state.get("store") == here else {"store": here, "run_id": None, "events": 0}

    def _save(self, state: dict[str, Any]) -> None:
        temporary = self._state_path.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        temporary.replace(self._state_path)


class Live:
    """Pushes a journal from a thread while the run goes on; trouble is one warning, and never the run's."""

    def __init__(self, journal: Journal) -> None:
        self._replay = Replay(journal)
        self._wake, self._ending = threading.Event(), threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int:
        """The thread that does it, for those who want to know what it costs."""
        assert self._thread.ident is not None
        return self._thread.ident

    def wake(self) -> None:
        """Say that the journal has grown."""
        self._wake.set()

    def finish(self) -> None:
        """Push the rest; give up when it takes too long, or at the first trouble."""
        self._ending.set()
        self._wake.set()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            _warn(f"is too slow: given up after {_PATIENCE_S:g} s; {_LATER}")

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending.is_set()
            try:
                self._replay.push()
            except Exception as error:
                if not self._warned:
                    _warn(f"does not take the run now ({one_line(error)[:200]}): {_LATER}")
                    self._warned = True
                if not ending:
                    self._ending.wait(_RETRY_S)
            if ending:
                return


def push_pending() -> bool:
    """Push every journal; True if MLflow now has everything it takes. Gives up when that takes too long."""
    answer: list[bool] = []
    thread = threading.Thread(target=lambda: answer.append(_push_quietly()), name="mlflow", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if not answer:
        _warn(f"is too slow: given up after {_PATIENCE_S:g} s; {_LATER}")
    return answer == [True]


def _push_quietly() -> bool:
    try:
        for _ in push_all():
            pass
    except Exception as error:
        _warn(f"does not take the runs now ({one_line(error)[:200]}): {_LATER}")
        return False
    return True


def push_all() -> Iterator[str]:
    """Push every journal; yields the name of each that had something to send. Ends the runs of dead processes.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached; the rest is still to be sent.
    """
    trouble = None
    for journal in all_journals():
        journal.close_if_dead()
        replay = Replay(journal)
        if not replay.pending():
            continue
        try:
            replay.push()
        except ConnectionError:
            raise
        except Exception as error:
            if trouble is not None:
                raise
            trouble = error  # one journal that the server fails on must not hold up the others
            continue
        yield journal.folder.name
    if trouble is not None:
        raise trouble


def _is_final(error: Exception) -> bool:
    """Whether the same event would be refused again: not if the store was away, overloaded, or failed inside."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    if shutil.disk_usage(".").free < _ROOM:  # libraries raise whatever they like then
        return False
    # What the store's clients raise on a bad connection is an OSError, or a database's own error.
    return isinstance(error, FileNotFoundError | LookupError | TypeError | ValueError | ImportError | RuntimeError)


def _warn(text: str) -> None:
    print(f"warning: MLflow at {store.uri()} {text}", file=sys.stderr, flush=True)


def _send(client: "MlflowClient", journal: Journal, run_id: str | None, event: dict[str, Any]) -> str | None:
    kind = event["event"]
    if kind == "start":
        return _start(client, journal, event)
    if run_id is None:  # it was stopped before its start: there is nothing to show
        return None
    if kind == "resume":
        _resume(client, run_id, event)
    elif kind == "metrics":
        _metrics(client, run_id, event["points"])
    elif kind == "artifact":
        _check(event)
        client.log_artifact(run_id, event["path"], event["folder"] or None)
    elif kind == "model":
        _model(client, run_id, event)
    elif kind == "tags":
        _tags(client, run_id, event["tags"])
    elif kind == "end":
        client.set_tag(run_id, "status", event["status"])
        client.set_terminated(run_id, _STATUS[event["status"]], event["time"])
    return run_id


def _start(client: "MlflowClient", journal: Journal, event: dict[str, Any]) -> str:
    """Find the journal's run by its tag, or create it with its original time."""
    from mlflow.entities import Param

    experiment = store.experiment(client, event["experiment"])
    key = journal.folder.name
    found = client.search_runs([experiment], f"tags.`optlab.journal` = '{key}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = event["tags"] | {"optlab.journal": key}
        run = client.create_run(experiment, event["time"], tags, run_name=event["name"])
        run_id = str(run.info.run_id)
    params = [Param(name, str(value)[:6000]) for name, value in event["params"].items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    if event["dataset"]:
        _dataset(client, run_id, event["dataset"])
    return run_id


def _resume(client: "MlflowClient", run_id: str, event: dict[str, Any]) -> None:
    """The run is at work again, and says when it was interrupted."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(event["time"] / 1000))
    told = f"{event['after']}; at {when} it went on after step {event['step']}"
    _tags(client, run_id, {
        "status": "running", "interruptions": event["number"], f"interruption.{event['number']}": told
    })  # fmt: skip
    client.update_run(run_id, status="RUNNING")


def _check(event: dict[str, Any]) -> None:
    """Refuse a file that is no longer what was kept for the run."""
    digest = hashlib.sha256(Path(event["path"]).read_bytes()).hexdigest()
    if event.get("sha256") not in (None, digest):  # journals of older versions have none
        raise ValueError(f"{event['path']} was altered since it was written: SHA-256 differs")


def _dataset(client: "MlflowClient", run_id: str, described: dict[str, str]) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    dataset: Any = MetaDataset(  # type: ignore[abstract]
        HTTPDatasetSource(described["source"]), name=described["name"], digest=described["digest"]
    )
    tag = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def _metrics(client: "MlflowClient", run_id: str, points: list[Any]) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, when, step) for key, value, when, step in points]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def _tags(client: "MlflowClient", run_id: str, tags: dict[str, Any]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])


def _model(client: "MlflowClient", run_id: str, event: dict[str, Any]) -> None:
    """Log the weights as a model that MLflow can load and serve; it is stored as a program, without pickle."""
    import mlflow
    import numpy as np
    from mlflow.entities import LoggedModelOutput

    from optlab import conditions, weights

    if logged_model(client, run_id):
        return
    network, _ = weights.read(Path(event["path"]), event["model"], event.get("sha256"))
    experiment = client.get_run(run_id).info.experiment_id
    for unfinished in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(unfinished.model_id)  # a kill or an error cut it short
    logged = mlflow.initialize_logged_model(
        name=event["name"], experiment_id=experiment, source_run_id=run_id, model_type="classifier"
    )
    try:
        mlflow.pytorch.log_model(
            network,
            name=event["name"],
            model_id=logged.model_id,
            # Two images: the export of a batch of one would take batches of one only.
            input_example=np.zeros((2, 3, 32, 32), np.float32),
            pip_requirements=[f"{name}=={conditions.public_version(name)}" for name in ("torch", "mlflow")],
        )
    except Exception:
        mlflow.finalize_logged_model(logged.model_id, "FAILED")
        raise
    mlflow.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def logged_model(client: "MlflowClient", run_id: str) -> str | None:
    """The id of the model that a run has logged, if any."""
    outputs = client.get_run(run_id).outputs
    return str(outputs.model_outputs[0].model_id) if outputs and outputs.model_outputs else None


def find_run(experiment: str, run: str, weights: str) -> str | None:
    """The id of the newest MLflow run of that id with weights of that SHA-256 in the experiment of that name, or None.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached.
    """
    client = store.connect()
    found = next(find_runs(client, store.experiment(client, experiment), [(run, weights)]))
    return str(found.info.run_id) if found else None


def find_runs(client: "MlflowClient", experiment: str, runs: list[tuple[str, str]]) -> Iterator[Any]:
    """For each (id of a run, digest of its weights), the newest MLflow run with both, or None."""
    for name, digest in runs:
        wanted = f"tags.`optlab.run` = '{name}' AND tags.`weights.sha256` = '{digest}'"
        found = client.search_runs([experiment], wanted, max_results=1, order_by=["start_time DESC"])
        yield found[0] if found else None
