"""Where MLflow keeps things: `mlflow.db` and `mlruns/` here, or the server in MLFLOW_TRACKING_URI."""

import http.client
import logging
import os
import sqlite3
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from optlab.system import repository
from optlab.system.errors import one_line
from optlab.tracking import databases, redaction
from optlab.tracking.notes import PROJECT, WEIGHTS_TAG
from optlab.tracking.redaction import redact_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

DATABASE = Path("mlflow.db")
_LOCK = Path(".optlab") / "store.lock"
KNOCK_S = 5.0  # to wait for an answer
_MISREAD = set("%?#")  # MLflow, alembic and SQLAlchemy take each for something else than a part of a path
_LOCAL_UI = "http://127.0.0.1:5000"
_births: dict[str, dict[str, int | None]] = {}  # tracking URI → experiment → when it was created, ms since 1970

# MLflow's own defaults let one call to a dead server block for minutes.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def uri() -> str:
    """The tracking URI: the environment's, or the database at the top of the repository."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return _own_uri() if named in (None, "", _path_uri()) else named


def shown() -> str:
    """The tracking URI as it may be shown and noted: without a user's name and password."""
    return _path_uri() if is_local() else redact_uri(uri())


def describe(error: BaseException) -> str:
    """Return what to show of an error of MLflow's: one line, without passwords, with the remedy where it is known."""
    if "out-of-date database schema" in str(error):  # said of a newer one as well
        refill = "or move it away, and `optlab sync` and `optlab show` fill a new one; " if is_local() else ""
        return (
            f"its database is of another version than the installed MLflow {version('mlflow')}: install that version; "
            f"{refill}or, if the database is older, copy it, then run `mlflow db upgrade {shown()}`"
        )
    return redaction.describe(error, uri())


def is_local() -> bool:
    """Whether runs go to the repository's own database."""
    return uri() == _own_uri()


def address() -> str:
    """The tracking URI; here, the database's time of birth: one that was deleted and made again is another store."""
    if not is_local():
        return uri()
    try:
        with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as database:
            (born,) = database.execute("SELECT min(creation_time) FROM experiments").fetchone()
    except sqlite3.Error:
        return ""
    return f"{DATABASE}#{born}"  # not where it lies: the repository can be moved


def identity(experiment: str) -> str:
    """What tells the store that has this experiment from one that was emptied, or put in its place, behind its address.

    A server does not say when its database was made, but when each experiment was. The first call asks for all of the
    project's, those that the user may read; later ones, up to `forget`, ask nothing.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached; ConnectionError if a server does not answer.
    """
    if is_local():
        return address()
    births = _births.get(uri())
    if births is None:
        births = _births[uri()] = _ask_births(connect())
    return f"{shown()}#{births.get(experiment, '')}"


def _ask_births(client: "MlflowClient") -> dict[str, int | None]:
    from mlflow.entities import ViewType

    def page(token: str | None) -> Any:
        wanted = f"name LIKE '{PROJECT}%'"
        return client.search_experiments(ViewType.ALL, filter_string=wanted, page_token=token)

    return {each.name: each.creation_time for each in _all_pages(page)}


def forget() -> None:
    """Ask again at the next call of `identity`: after an error, the store may be another one."""
    _births.pop(uri(), None)


def _path_uri() -> str:
    return f"sqlite:///{repository.root() / DATABASE}"


def _own_uri() -> str:
    """The database's absolute path; relative to the top, the working directory, where that would be misread."""
    return f"sqlite:///{DATABASE}" if _MISREAD & set(_path_uri()) else _path_uri()


def ui_url() -> str:
    """The address that a browser opens: the server's, or that of a local `mlflow ui`."""
    return shown().rstrip("/") if uri().startswith("http") else _LOCAL_UI


def connect() -> "MlflowClient":
    """A client, with the database created if there is none. The working directory must be the top.

    Raises:
        ConnectionError: a server does not answer.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    _knock()
    import mlflow

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs an error's traceback, and raises the error too
    # Said by torch's export for every small tensor, about a case that is not ours.
    warnings.filterwarnings("ignore", "No complete tensor found in the group")
    if is_local():
        with _locked():
            _create_database()
    mlflow.set_tracking_uri(uri())
    return mlflow.MlflowClient(uri())


def _knock() -> None:
    """See whether a server answers at all: MLflow's client takes minutes to find out that one hangs."""
    if uri().startswith("http"):
        _knock_web()
    elif uri().partition("://")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        databases.knock(uri(), KNOCK_S)


def _knock_web() -> None:
    try:
        with urllib.request.urlopen(f"{shown().rstrip('/')}/health", timeout=KNOCK_S):  # noqa: S310 - http only, see above
            pass
    except urllib.error.HTTPError:
        return  # an answer, though perhaps not a good one: MLflow's client has the words for it
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return  # it answers; MLFLOW_TRACKING_INSECURE_TLS is the client's to judge
        raise ConnectionError(f"no answer: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"no answer: {one_line(error)}") from None


def experiment(client: "MlflowClient", name: str) -> str:
    """The id of an experiment, created if there is none."""
    with _locked():
        found = client.get_experiment_by_name(name)
        if found is None:
            found = _create(client, name)
        elif found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
    if uri() in _births:  # where nobody has asked, one alone would pass for all there are
        _births[uri()][name] = found.creation_time
    return str(found.experiment_id)


def _create(client: "MlflowClient", name: str) -> "Experiment":
    """In the repository's own database its artifacts get a path relative to the repository.

    Moving the repository moves them too, then. MLflow has no call for that: it makes every path absolute.
    """
    from mlflow.exceptions import MlflowException

    try:
        created = client.create_experiment(name)
    except MlflowException as error:
        found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None:
            raise
        return found  # another machine has, at the same time
    if is_local():
        with sqlite3.connect(DATABASE, timeout=20) as database:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (f"mlruns/{created}", int(created)),
            )
        database.close()
    return client.get_experiment(created)


def _locked() -> FileLock:
    _LOCK.parent.mkdir(exist_ok=True)
    return FileLock(_LOCK)


def _create_database() -> None:
    """Under another name first: two processes that create one database at a time break it."""
    if DATABASE.exists():
        return
    import mlflow

    fresh = Path(f".mlflow.db.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        mlflow.MlflowClient(f"{_own_uri().removesuffix(DATABASE.name)}{fresh.name}").search_experiments()
        fresh.replace(DATABASE)
    finally:
        for left in Path().glob(f"{fresh}*"):  # a full disk is not to be filled further
            left.unlink()


def find_run_ids(name: str, runs: list[tuple[str, str]]) -> list[str | None]:
    """Return the MLflow id of each (id of a run, digest of its weights) in the experiment of that name, or None.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached.
    """
    client = connect()
    found = find_runs(client, experiment(client, name), runs)
    return [str(each.info.run_id) if each else None for each in found]


def missing_runs(name: str, runs: list[tuple[str, str]]) -> list[str]:
    """The ids of those runs, each with the SHA-256 of its weights, that the experiment of that name does not have.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached.
    """
    client = connect()
    found = find_runs(client, experiment(client, name), runs)
    return [run for (run, _), each in zip(runs, found, strict=True) if each is None]


def search_runs(client: "MlflowClient", experiment: str, wanted: str, order_by: list[str] | None = None) -> list[Any]:
    """All runs of an experiment that a filter finds, also beyond the first page."""
    return _all_pages(lambda token: client.search_runs([experiment], wanted, order_by=order_by, page_token=token))


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """What a search finds, as one list: what is done with a page may change what the next one would hold."""
    found, token = [], None
    while True:
        page = search(token)
        found += page
        token = page.token
        if not token:
            return found


def find_runs(client: "MlflowClient", experiment: str, runs: list[tuple[str, str]]) -> Iterator[Any]:
    """For each (id of a run, digest of its weights), the newest MLflow run with both, or None."""
    for run, digest in runs:
        wanted = f"tags.`optlab.run` = '{run}' AND tags.`{WEIGHTS_TAG}` = '{digest}'"
        found = client.search_runs([experiment], wanted, max_results=1, order_by=["start_time DESC"])
        yield found[0] if found else None
