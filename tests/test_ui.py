"""`optlab ui` where there is nothing to see yet, or something is in its way; the pages are in test_browser.py."""

import shutil
import socket
import webbrowser
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from optlab.system.errors import TrackingError
from optlab.tracking import comparison_view, mlflow_store, webapp

PAGES = {"the curve of every run": "http://mlflow.example/#/experiments/1/runs?compareRunsMode=CHART"}


@pytest.fixture
def opened_urls(monkeypatch):
    """The addresses that a browser was told to open; there is a display."""
    found = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", found.append)
    return found


@pytest.fixture
def remote(top, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@mlflow.example")
    monkeypatch.setattr(mlflow_store, "connect", lambda: None)
    monkeypatch.setattr(comparison_view, "find_page_urls", lambda *arguments, **options: dict(PAGES))
    return monkeypatch


def test_ui_opens_remote_server_pages(remote, opened_urls, capsys):
    webapp.open_pages(Path(), 5000, browse=True)
    assert opened_urls == list(PAGES.values())
    assert PAGES["the curve of every run"] in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"browse": False}, {"display": ""}])
def test_ui_opens_no_browser_without_display_or_request(remote, opened_urls, change):
    remote.setenv("DISPLAY", change.get("display", ":0"))
    remote.delenv("WAYLAND_DISPLAY", raising=False)
    remote.setattr(webapp.sys, "platform", "linux")
    webapp.open_pages(Path(), 5000, browse=change.get("browse", True))
    assert opened_urls == []


def test_ui_without_comparison_names_next_commands(remote, capsys):
    remote.setattr(comparison_view, "find_page_urls", lambda *arguments, **options: {})
    webapp.open_pages(Path(), 5000, browse=False)
    said = capsys.readouterr().out
    assert "http://mlflow.example has no comparison" in said and "`optlab repro`" in said and "secret" not in said


def test_used_port_error_suggests_another_port(top):
    with socket.create_server((webapp.HOST, 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"port {port} cannot be used .*`optlab ui --port {port + 1}`"):
            webapp.open_pages(Path(), port, browse=False)


def test_server_starts_in_fresh_clone_with_another_database(top, monkeypatch):
    """Only MLflow's own database here would have made the folder of the server's log."""
    shutil.rmtree(".optlab", ignore_errors=True)

    def start(*_, **__):
        raise RuntimeError("started")

    monkeypatch.setattr(webapp.subprocess, "Popen", start)
    with pytest.raises(RuntimeError, match="started"):
        webapp._run_server(5000, {}, browse=False)
    assert Path(".optlab/ui.log").exists()


def test_missing_app_entry_point_asks_for_reinstall(top, monkeypatch):
    monkeypatch.setattr(webapp.importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(TrackingError, match="pip install -e"):
        webapp.open_pages(Path(), _free(), browse=False)


def test_ui_distinguishes_database_version_mismatch(top, monkeypatch):
    def refuse():
        raise MlflowException("Detected out-of-date database schema (found version f, but expected d). Take a backup")

    monkeypatch.setattr(webapp, "_check_startable", lambda port: None)
    monkeypatch.setattr(mlflow_store, "connect", refuse)
    with pytest.raises(
        TrackingError, match=r"database is of another version than .*`optlab sync` and `optlab show` fill"
    ):
        webapp.open_pages(Path(), _free(), browse=False)


def _free():
    with socket.socket() as free:
        free.bind((webapp.HOST, 0))
        return free.getsockname()[1]


def test_start_page_script_escapes_comparison_views(top, monkeypatch):
    client = mlflow_store.connect()
    for name in ("optlab", "optlab-empty"):
        mlflow_store.get_or_create_experiment(client, name)
    client.set_experiment_tag(
        "1", comparison_view.VIEW_TAG, comparison_view.encode_view_tag('{"searchFilter": "</script>"}')
    )
    monkeypatch.setenv(webapp.START_PAGE_VARIABLE, "#/experiments/1/runs")
    script = webapp._build_script()
    assert script.count("</script>") == 1
    assert webapp._load_view_states() == {"1": '{"searchFilter": "</script>"}'}
    assert 'location.replace("#/experiments/1/runs")' in script
