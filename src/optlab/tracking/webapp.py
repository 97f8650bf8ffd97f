"""MLflow's pages in a browser, opened on the trainings: `optlab ui`, and the app that its server runs.

The server is `mlflow server --app-name optlab` for the repository's own database; a team's server has its address
printed. A browser that does not know MLflow yet opens its pages in the mode for language models, where the runs of a
training cannot be found, and shows a table without metrics. MLflow keeps the mode, and each table's columns, in the
browser's local storage, and has no setting for their defaults. The app writes them there, and keeps the user's choices.
The keys are those of MLflow's sources, not documented: where MLflow renames them, its pages open as without the app.
"""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from optlab.system import browser, processes
from optlab.system.errors import TrackingError
from optlab.tracking import comparison_view, event_log, mlflow_store

HOST = "127.0.0.1"
START_PAGE_VARIABLE = "OPTLAB_UI_START_PAGE"  # page that the bare address leads to

_STARTUP_TIMEOUT_S = 120.0  # a busy machine takes 30 s to load MLflow
_POLL_INTERVAL_S = 0.1
_APP_NAME = "optlab"
_LOG_FILE = Path(".optlab") / "ui.log"

# With MLflow's own defaults, four workers and the runners of jobs, the server takes three times as long to start.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_WORKERS": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_LOCAL_STORAGE_DEFAULTS = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,  # the panel of the assistant takes a third of the window
    "mlflow.telemetry.info.alert.dismissed_v1": True,  # `optlab ui` switches the telemetry off
}
_SCRIPT = """<script>
for (const [key, value] of Object.entries(%(defaults)s))
  if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
for (const [id, state] of Object.entries(%(states)s)) {
  const shown = `optlab.view-${id}`;
  if (localStorage.getItem(shown) !== state) {
    localStorage.setItem(`MLflowLocalStorage-1.1-ExperimentPage-["${id}"]-ReactComponentState`, state);
    localStorage.setItem(shown, state);
  }
}
if (location.hash.length < 3) location.replace(%(start)s);
</script>"""


def create_app() -> Any:
    """Return MLflow's app with a start page that has the script."""
    from flask import Response, request
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    start = Path(str(pages.static_folder), "index.html").read_text("utf-8")

    @pages.before_request
    def show_start() -> Response | None:
        if request.path != "/":
            return None
        return Response(start.replace("<head>", f"<head>{_build_script()}", 1), headers={"Cache-Control": "no-store"})

    return app


def _build_script() -> str:
    values = {
        "defaults": _LOCAL_STORAGE_DEFAULTS,
        "states": _load_view_states(),
        "start": os.environ.get(START_PAGE_VARIABLE, "#/experiments"),
    }
    # No text of a tag can end the script.
    return _SCRIPT % {key: json.dumps(value).replace("<", "\\u003c") for key, value in values.items()}


def _load_view_states() -> dict[str, str]:
    """Return experiment id → state of its page of runs, for experiments that show a comparison."""
    from mlflow import MlflowClient

    experiments = MlflowClient(mlflow_store.get_tracking_uri()).search_experiments(
        filter_string=f"name LIKE '{event_log.EXPERIMENT_PREFIX}%'"
    )
    return {
        each.experiment_id: comparison_view.decode_view_tag(each.tags[comparison_view.VIEW_TAG])
        for each in experiments
        if comparison_view.VIEW_TAG in each.tags
    }


def open_pages(folder: Path, port: int, browse: bool) -> None:
    """Print the addresses of a pipeline's comparison, and open the first one; run a local server until Ctrl-C.

    Args:
        folder: of the pipeline.
        port: of the local server.
        browse: whether to open a browser, where there is a display.

    Raises:
        TrackingError: the port is in use, or MLflow cannot be reached or started.
    """
    is_remote = mlflow_store.get_tracking_uri().startswith("http")
    if not is_remote:
        _check_startable(port)
        print(f"starting MLflow on http://{HOST}:{port} …", flush=True)
    url = mlflow_store.get_ui_url() if is_remote else f"http://{HOST}:{port}"
    try:
        client = mlflow_store.connect()
        experiment = event_log.get_experiment_name(folder)
        page_urls = comparison_view.find_page_urls(client, experiment, url, preconfigured=not is_remote)
    except Exception as error:  # whatever MLflow raises
        raise TrackingError(
            f"MLflow at {mlflow_store.get_redacted_uri()} was not reached ({mlflow_store.describe_error(error)})"
        ) from None
    if is_remote:
        _print_urls(page_urls, url, browse)
    else:
        _run_server(port, page_urls, browse)


def _run_server(port: int, page_urls: dict[str, str], browse: bool) -> None:
    """Run MLflow's server to its end."""
    url = f"http://{HOST}:{port}"
    database = {"MLFLOW_BACKEND_STORE_URI": mlflow_store.get_tracking_uri()}  # it may hold a password
    environment = _ENVIRONMENT_DEFAULTS | dict(os.environ) | database
    if page_urls:
        environment[START_PAGE_VARIABLE] = next(iter(page_urls.values())).removeprefix(f"{url}/")
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", _APP_NAME, "--host", HOST, "--port", str(port)]
    options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    _LOG_FILE.parent.mkdir(exist_ok=True)
    with (
        processes.interrupt_on_sigterm(), _LOG_FILE.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=log, start_new_session=True, **options) as child,
    ):  # fmt: skip
        try:
            _wait_until_ready(child, url)
            _print_urls(page_urls, url, browse)
            print("Ctrl-C ends it", flush=True)
            status = child.wait()
        except BaseException:
            processes.stop([child])
            raise
    raise TrackingError(f"MLflow's server has ended with exit status {status}: what it said is in {_LOG_FILE}")


def _check_startable(port: int) -> None:
    """Check that the server can start.

    Raises:
        TrackingError: the port is in use, or this installation does not know the app.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} cannot be used ({error.strerror}): end what listens there, or name another one with "
                f"`optlab ui --port {port + 1}`"
            ) from None
    if _APP_NAME not in {each.name for each in importlib.metadata.entry_points(group="mlflow.app")}:
        raise TrackingError("the installed optlab is older than this one: run `pip install -e .` once more")


def _wait_until_ready(child: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    while child.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_POLL_INTERVAL_S * 10):  # noqa: S310 - an address of this file
                return
        except OSError:
            time.sleep(_POLL_INTERVAL_S)
    failure = "has not answered in time" if child.poll() is None else f"ended with exit status {child.returncode}"
    raise TrackingError(f"MLflow's server {failure}: what it said is in {_LOG_FILE}")


def _print_urls(page_urls: dict[str, str], url: str, browse: bool) -> None:
    if page_urls:
        print(f"{url} shows\n{comparison_view.format_page_urls(page_urls)}", flush=True)
    else:
        print(
            f"{url} has no comparison of this pipeline yet: `optlab show` fills in the recorded one, `optlab repro` "
            f"trains one",
            flush=True,
        )
    if browse:
        browser.open_page(next(iter(page_urls.values()), url))
