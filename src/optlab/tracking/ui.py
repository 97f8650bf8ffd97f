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
from optlab.tracking import notes, server, shown, webapp

HOST = "127.0.0.1"
_START_S = 120.0  # a busy machine takes 30 s to load MLflow
_LOOK_S = 0.1
_APP = "optlab"
_LOG = Path(".optlab") / "ui.log"

# Of MLflow's own defaults, four workers and the runners of jobs triple the time until it answers.
_DEFAULTS = {
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
    is_remote = server.uri().startswith("http")
    if not is_remote:
        _check(port)
        print(f"starting MLflow on http://{HOST}:{port} …", flush=True)
    try:
        client = server.connect()
        if is_remote:
            found = shown.addresses(client, notes.experiment(folder), server.ui_url(), prepared=False)
        else:
            found = shown.addresses(client, notes.experiment(folder), f"http://{HOST}:{port}", prepared=True)
    except Exception as error:  # whatever MLflow raises
        raise TrackingError(f"MLflow at {server.shown()} was not reached ({server.describe(error)})") from None
    if is_remote:
        _tell(found, server.ui_url(), browse)
    else:
        _serve(port, found, browse)


def _serve(port: int, found: dict[str, str], browse: bool) -> None:
    """Run MLflow's server to its end."""
    url = f"http://{HOST}:{port}"
    environment = _DEFAULTS | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": server.uri()}  # it may hold a password
    if found:
        environment[webapp.START_VARIABLE] = next(iter(found.values())).removeprefix(f"{url}/")
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", _APP, "--host", HOST, "--port", str(port)]
    options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with (
        processes.terminable(), _LOG.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=log, start_new_session=True, **options) as child,
    ):  # fmt: skip
        try:
            _wait(child, url)
            _tell(found, url, browse)
            print("Ctrl-C ends it", flush=True)
            status = child.wait()
        except BaseException:
            processes.stop([child])
            raise
    raise TrackingError(f"MLflow's server has ended with exit status {status}: what it said is in {_LOG}")


def _check(port: int) -> None:
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
    if _APP not in {each.name for each in importlib.metadata.entry_points(group="mlflow.app")}:
        raise TrackingError("the installed optlab is older than this one: run `pip install -e .` once more")


def _wait(child: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + _START_S
    while child.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_LOOK_S * 10):  # noqa: S310 - an address of this file
                return
        except OSError:
            time.sleep(_LOOK_S)
    why = "has not answered in time" if child.poll() is None else f"ended with exit status {child.returncode}"
    raise TrackingError(f"MLflow's server {why}: what it said is in {_LOG}")


def _tell(found: dict[str, str], url: str, browse: bool) -> None:
    if found:
        print(f"{url} shows\n{shown.listed(found)}", flush=True)
    else:
        print(
            f"{url} has no comparison of this pipeline yet: `optlab show` fills in the recorded one, `optlab repro` "
            f"trains one",
            flush=True,
        )
    if browse and _has_display():
        webbrowser.open(next(iter(found.values()), url))


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
