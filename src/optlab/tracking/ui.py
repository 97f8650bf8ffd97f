"""MLflow's pages in a browser: a server for the repository's own database, or the address of the team's."""

import importlib.metadata
import os
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path
from typing import Any

from optlab.system import processes
from optlab.system.errors import TrackingError
from optlab.tracking import comparison_view, mlflow_store, sync_state, webapp

HOST = "127.0.0.1"
_STARTUP_TIMEOUT_S = 120.0  # a busy machine takes 30 s to load MLflow
_POLL_INTERVAL_S = 0.1
_APP_NAME = "optlab"
_LOG_FILE = Path(".optlab") / "ui.log"

# Of MLflow's own defaults, four workers and the runners of jobs triple the time until it answers.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_WORKERS": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def open_pages(folder: Path, port: int, browse: bool) -> None:
    """Print the addresses of a pipeline's comparison, and open the first one; a local server runs until Ctrl-C.

    Args:
        folder: of the pipeline.
        port: where the local server listens.
        browse: whether to open a browser, where there is a display.

    Raises:
        TrackingError: the port is in use, or MLflow cannot be reached or started.
    """
    is_remote = mlflow_store.get_tracking_uri().startswith("http")
    if not is_remote:
        _check_startable(port)
        print(f"starting MLflow on http://{HOST}:{port} …", flush=True)
    try:
        client = mlflow_store.connect()
        if is_remote:
            urls = comparison_view.find_page_urls(
                client, sync_state.get_experiment_name(folder), mlflow_store.get_ui_url(), preconfigured=False
            )
        else:
            urls = comparison_view.find_page_urls(
                client, sync_state.get_experiment_name(folder), f"http://{HOST}:{port}", preconfigured=True
            )
    except Exception as error:  # whatever MLflow raises
        raise TrackingError(
            f"MLflow at {mlflow_store.get_redacted_uri()} was not reached ({mlflow_store.describe_error(error)})"
        ) from None
    if is_remote:
        _print_urls(urls, mlflow_store.get_ui_url(), browse)
    else:
        _run_server(port, urls, browse)


def _run_server(port: int, urls: dict[str, str], browse: bool) -> None:
    """Run MLflow's server to its end."""
    url = f"http://{HOST}:{port}"
    environment = (
        _ENVIRONMENT_DEFAULTS | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": mlflow_store.get_tracking_uri()}
    )  # it may hold a password
    if urls:
        environment[webapp.START_PAGE_VARIABLE] = next(iter(urls.values())).removeprefix(f"{url}/")
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", _APP_NAME, "--host", HOST, "--port", str(port)]
    options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with (
        processes.interrupt_on_sigterm(), _LOG_FILE.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=log, start_new_session=True, **options) as child,
    ):  # fmt: skip
        try:
            _wait_until_ready(child, url)
            _print_urls(urls, url, browse)
            print("Ctrl-C ends it", flush=True)
            status = child.wait()
        except BaseException:
            processes.stop([child])
            raise
    raise TrackingError(f"MLflow's server has ended with exit status {status}: what it said is in {_LOG_FILE}")


def _check_startable(port: int) -> None:
    """See whether the server can start.

    Raises:
        TrackingError: something listens there already, or this installation does not know the app.
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


def _print_urls(urls: dict[str, str], url: str, browse: bool) -> None:
    if urls:
        print(f"{url} shows\n{comparison_view.format_page_urls(urls)}", flush=True)
    else:
        print(
            f"{url} has no comparison of this pipeline yet: `optlab show` fills in the recorded one, `optlab repro` "
            f"trains one",
            flush=True,
        )
    if browse and _has_display():
        webbrowser.open(next(iter(urls.values()), url))


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
