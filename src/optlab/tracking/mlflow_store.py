"""MLflow's store: `mlflow.db` and `mlruns/` in the repository, or the server or database in MLFLOW_TRACKING_URI.

Its address and how messages show it without passwords, its identity, a client after a quick test whether it answers,
and the queries for experiments and runs.
"""

import http.client
import logging
import os
import re
import sqlite3
import ssl
import threading
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
from optlab.system.errors import summarize_error
from optlab.tracking.event_log import EXPERIMENT_PREFIX, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

DATABASE = Path("mlflow.db")
PING_TIMEOUT_S = 5.0

_STORE_LOCK = Path(".optlab") / "store.lock"
_LOCAL_UI = "http://127.0.0.1:5000"
_UNSAFE_PATH_CHARS = set("%?#")  # MLflow, alembic and SQLAlchemy take each for something else than a part of a path
_DAMAGE_CODES = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
_MAX_ERROR_CHARS = 400  # of an error that is shown
_MIN_SECRET_CHARS = 3  # of a password's part that is searched for in a text

# MLflow's own defaults let one call to a dead server block for minutes.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_creation_times: dict[str, dict[str, int | None]] = {}  # tracking URI → experiment → creation time, ms since 1970


def get_tracking_uri() -> str:
    """Return the tracking URI: MLFLOW_TRACKING_URI, or the database at the top of the repository."""
    configured_uri = os.environ.get("MLFLOW_TRACKING_URI")
    return _get_local_uri() if configured_uri in (None, "", _build_database_uri()) else configured_uri


def get_redacted_uri() -> str:
    """Return the tracking URI without a user's name and password, as it may be shown and stored."""
    return _build_database_uri() if is_local() else redact_uri(get_tracking_uri())


def is_local() -> bool:
    """Return whether runs go to the repository's own database."""
    return get_tracking_uri() == _get_local_uri()


def get_ui_url() -> str:
    """Return the address that a browser opens: the server's, or that of a local `mlflow ui`."""
    return get_redacted_uri().rstrip("/") if get_tracking_uri().startswith("http") else _LOCAL_UI


def _build_database_uri() -> str:
    return f"sqlite:///{repository.find_root() / DATABASE}"


def _get_local_uri() -> str:
    """Return the URI with the database's absolute path, or the relative one where the absolute would be misread."""
    return f"sqlite:///{DATABASE}" if _UNSAFE_PATH_CHARS & set(_build_database_uri()) else _build_database_uri()


_SCHEME = re.compile(r"^[\w+.-]+://")  # also dialect+driver, as SQLAlchemy has it
_URI = re.compile(r"[\w+.-]+://[^\s'\"<>]*")
_HOST = re.compile(r"(\[[^]]*\]|[^/?#:@]*)(:\d*)?([/?#]|$)")


def redact_uri(uri: str) -> str:
    """Return the URI without user, password and query, which may hold a password, too."""
    scheme, _, rest = _split_uri(uri)
    return uri if _is_file(scheme) else scheme + re.split(r"[?#]", rest)[0]


def redact(text: str, uri: str) -> str:
    """Return the text without the password of that URI, and without the logins of other URIs in it.

    Of a password that is not encoded, a client may have taken a part for the host's name.
    """
    text = _URI.sub(lambda match: redact_uri(match[0]), text.replace(uri, redact_uri(uri)))
    password = _split_uri(uri)[1].partition(":")[2]
    for part in (password, *re.split(r"[@/?#:]", password)):
        if len(part) >= _MIN_SECRET_CHARS:
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "***", text)
    return text


def redact_error(error: BaseException, uri: str) -> str:
    """Return the first line of an error, shortened and without passwords."""
    text = redact(summarize_error(error), uri)
    return text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS].rsplit(' ', 1)[0]} …"


def describe_error(error: BaseException) -> str:
    """Return one line about an error of MLflow, without passwords, with the remedy where it is known."""
    if "out-of-date database schema" in str(error):  # MLflow's message about a newer one as well
        refill = "or move it away, and `optlab sync` and `optlab show` fill a new one; " if is_local() else ""
        return (
            f"its database is of another version than the installed MLflow {version('mlflow')}: install that version; "
            f"{refill}or, if the database is older, copy it, then run `mlflow db upgrade {get_redacted_uri()}`"
        )
    return redact_error(error, get_tracking_uri())


def _is_file(scheme: str) -> bool:
    return scheme.startswith(("sqlite", "file")) or not scheme


def _split_uri(uri: str) -> tuple[str, str, str]:
    """Return scheme, login and rest.

    A password that is not encoded may hold any character, so the login ends at the last `@`, unless it is a web
    address whose host is plain: there, an `@` belongs to the path.
    """
    match = _SCHEME.match(uri)
    scheme, rest = (match[0], uri[match.end() :]) if match else ("", uri)
    if _is_file(scheme) or rest.startswith("/"):
        return scheme, "", rest
    end = rest.rfind("@") + 1
    if scheme.startswith("http"):
        if _HOST.match(rest):
            return scheme, "", rest
        standard = re.match(r"[^/?#]*@", rest)
        end = standard.end() if standard else end
    return scheme, rest[: max(end - 1, 0)], rest[end:]


def get_store_address() -> str:
    """Return the tracking URI; of the local database its creation time: one that was made again is another store."""
    if not is_local():
        return get_tracking_uri()
    try:
        with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as database:
            (creation_time,) = database.execute("SELECT min(creation_time) FROM experiments").fetchone()
    except sqlite3.Error:
        return ""
    return f"{DATABASE}#{creation_time}"  # without its folder: the repository can be moved


def get_store_id(experiment: str) -> str:
    """Return an id that differs between the store with this experiment and another one behind the same address.

    A server does not tell when its database was made, but when each experiment was. The first call asks for all of the
    project's that the user may read; later ones, up to `invalidate_store_id`, ask nothing.

    Raises:
        Exception: whatever MLflow raises if it cannot be reached; ConnectionError if a server does not answer.
    """
    if is_local():
        return get_store_address()
    creation_times = _creation_times.get(get_tracking_uri())
    if creation_times is None:
        creation_times = _creation_times[get_tracking_uri()] = _fetch_creation_times(connect())
    return f"{get_redacted_uri()}#{creation_times.get(experiment, '')}"


def is_at_current_address(store_id: str) -> bool:
    """Return whether a store with that id has the present address, though it may have been emptied since."""
    return store_id.startswith(f"{DATABASE if is_local() else get_redacted_uri()}#")


def invalidate_store_id() -> None:
    """Make the next call of `get_store_id` ask again: after an error, the store may be another one."""
    _creation_times.pop(get_tracking_uri(), None)


def _fetch_creation_times(client: "MlflowClient") -> dict[str, int | None]:
    from mlflow.entities import ViewType

    def fetch_page(token: str | None) -> Any:
        filter_string = f"name LIKE '{EXPERIMENT_PREFIX}%'"
        return client.search_experiments(ViewType.ALL, filter_string=filter_string, page_token=token)

    return {each.name: each.creation_time for each in _fetch_all_pages(fetch_page)}


def connect() -> "MlflowClient":
    """Return a client, after creating the local database if there is none. The working directory must be the top.

    Raises:
        ConnectionError: a server does not answer.
    """
    for name, value in _ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    _ping()
    import mlflow

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs an error's traceback, and raises the error too
    # torch's export warns so of every small tensor, about a case that does not occur here.
    warnings.filterwarnings("ignore", "No complete tensor found in the group")
    if is_local():
        with _lock_store():
            _create_database()
    mlflow.set_tracking_uri(get_tracking_uri())
    return mlflow.MlflowClient(get_tracking_uri())


def _ping() -> None:
    """Test whether the store answers at all: MLflow's client takes minutes to find out that a server hangs."""
    if get_tracking_uri().startswith("http"):
        _ping_server()
    elif get_tracking_uri().partition("://")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        ping_database(get_tracking_uri(), PING_TIMEOUT_S)


def _ping_server() -> None:
    try:
        with urllib.request.urlopen(f"{get_redacted_uri().rstrip('/')}/health", timeout=PING_TIMEOUT_S):  # noqa: S310 - http only, see above
            pass
    except urllib.error.HTTPError:
        return  # an answer, though perhaps not a good one: MLflow's client describes it
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return  # it answers; the client decides by MLFLOW_TRACKING_INSECURE_TLS
        raise ConnectionError(f"no answer: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"no answer: {summarize_error(error)}") from None


def ping_database(uri: str, timeout_s: float) -> None:
    """Connect once and look for a table: MLflow's own client repeats an attempt ten times, for minutes.

    Raises:
        ConnectionError: the database does not answer in time, refuses, or is none.
        Exception: whatever SQLAlchemy raises of a URI or driver that it does not know.
    """
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)  # which imports the driver
    path = engine.url.database
    if engine.dialect.name == "sqlite" and (not path or path == ":memory:" or not Path(path).exists()):
        return  # it is created
    outcomes: list[Exception | None] = []

    def try_connect() -> None:
        try:
            with engine.connect() as connection:
                sqlalchemy.inspect(connection).has_table("alembic_version")
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)

    thread = threading.Thread(target=try_connect, name="ping", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcomes:
        raise ConnectionError(f"no answer within {timeout_s:g} s")
    error = outcomes[0]
    if isinstance(error, DBAPIError):
        raise ConnectionError(_explain_driver_error(path, error.orig)) from None
    if error is not None:
        raise error


def _explain_driver_error(path: str | None, error: Any) -> str:
    """Return the message of a database's driver, with the remedy where the database is a file."""
    name = getattr(error, "sqlite_errorname", "")
    if name in _DAMAGE_CODES:
        return f"{path}: {error}: move it away, and a new one is made and filled"
    if name.startswith("SQLITE_CANTOPEN"):
        return f"{path}: {error}: see whether it is a file, and who may read it"
    return f"no answer: {summarize_error(error)}"


def _lock_store() -> FileLock:
    _STORE_LOCK.parent.mkdir(exist_ok=True)
    return FileLock(_STORE_LOCK)


def _create_database() -> None:
    """Create the database under another name first: two processes that create one database at a time break it."""
    if DATABASE.exists():
        return
    import mlflow

    fresh = Path(f".mlflow.db.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        mlflow.MlflowClient(f"{_get_local_uri().removesuffix(DATABASE.name)}{fresh.name}").search_experiments()
        fresh.replace(DATABASE)
    finally:
        for left in Path().glob(f"{fresh}*"):  # a full disk is not to be filled further
            left.unlink()


def get_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of the experiment of that name, after creating or restoring it."""
    with _lock_store():
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            experiment = _create_experiment(client, name)
        elif experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
    if get_tracking_uri() in _creation_times:  # otherwise, one alone would pass for all there are
        _creation_times[get_tracking_uri()][name] = experiment.creation_time
    return str(experiment.experiment_id)


def _create_experiment(client: "MlflowClient", name: str) -> "Experiment":
    """Create an experiment; in the local database with an artifact path relative to the repository.

    Moving the repository moves the artifacts too, then. MLflow has no call for that: it makes every path absolute.
    """
    from mlflow.exceptions import MlflowException

    try:
        experiment_id = client.create_experiment(name)
    except MlflowException as error:
        existing = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if existing is None:
            raise
        return existing  # another machine has created it at the same time
    if is_local():
        with closing(sqlite3.connect(DATABASE, timeout=20)) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (f"mlruns/{experiment_id}", int(experiment_id)),
            )
    return client.get_experiment(experiment_id)


def find_run_ids(experiment_name: str, runs: list[tuple[str, str]]) -> list[str | None]:
    """Return the MLflow id, or None, of each (id of a run, digest of its weights) in the experiment of that name.

    Raises:
        Exception: whatever MLflow raises if it cannot be reached.
    """
    client = connect()
    mlflow_runs = find_runs(client, get_or_create_experiment(client, experiment_name), runs)
    return [str(each.info.run_id) if each else None for each in mlflow_runs]


def find_missing_runs(experiment_name: str, runs: list[tuple[str, str]]) -> list[str]:
    """Return the ids of those of the runs, as for `find_run_ids`, that the experiment does not have.

    Raises:
        Exception: whatever MLflow raises if it cannot be reached.
    """
    run_ids = find_run_ids(experiment_name, runs)
    return [run for (run, _), run_id in zip(runs, run_ids, strict=True) if run_id is None]


def find_runs(client: "MlflowClient", experiment: str, runs: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield, for each (id of a run, digest of its weights), the newest MLflow run with both, or None."""
    for run, digest in runs:
        filter_string = f"tags.`optlab.run` = '{run}' AND tags.`{WEIGHTS_TAG}` = '{digest}'"
        page = client.search_runs([experiment], filter_string, max_results=1, order_by=["start_time DESC"])
        yield page[0] if page else None


def search_runs(
    client: "MlflowClient", experiment: str, filter_string: str, order_by: list[str] | None = None
) -> list[Any]:
    """Return all runs of an experiment that match a filter, also beyond the first page."""
    return _fetch_all_pages(
        lambda token: client.search_runs([experiment], filter_string, order_by=order_by, page_token=token)
    )


def _fetch_all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Return all results of a search as one list: changing those of a page may change the next page."""
    results, token = [], None
    while True:
        page = search(token)
        results += page
        token = page.token
        if not token:
            return results
