"""`optlab ui` where there is nothing to see yet, or something is in its way; the pages are in test_browser.py."""

import socket
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from optlab.system.errors import TrackingError
from optlab.tracking import server, shown, ui, view, webapp

PAGES = {"the curve of every run": "http://mlflow.example/#/experiments/1/runs?compareRunsMode=CHART"}


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser was told to open; there is a display."""
    found = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ui.webbrowser, "open", found.append)
    return found


@pytest.fixture
def remote(top, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@mlflow.example")
    monkeypatch.setattr(server, "connect", lambda: None)
    monkeypatch.setattr(shown, "addresses", lambda *arguments, **options: dict(PAGES))
    return monkeypatch


def test_a_team_s_server_is_shown_and_opened(remote, opened, capsys):
    ui.open_pages(Path(), 5000, browse=True)
    assert opened == list(PAGES.values())
    assert PAGES["the curve of every run"] in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"browse": False}, {"display": ""}])
def test_no_browser_is_opened_without_a_display_or_where_none_is_wanted(remote, opened, change):
    remote.setenv("DISPLAY", change.get("display", ":0"))
    remote.delenv("WAYLAND_DISPLAY", raising=False)
    remote.setattr(ui.sys, "platform", "linux")
    ui.open_pages(Path(), 5000, browse=change.get("browse", True))
    assert opened == []


def test_where_nothing_has_been_compared_the_commands_that_do_it_are_named(remote, capsys):
    remote.setattr(shown, "addresses", lambda *arguments, **options: {})
    ui.open_pages(Path(), 5000, browse=False)
    said = capsys.readouterr().out
    assert "http://mlflow.example has no comparison" in said and "`optlab repro`" in said and "secret" not in said


def test_a_port_in_use_is_named_with_another_one(top):
    with socket.create_server((ui.HOST, 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"port {port} cannot be used .*`optlab ui --port {port + 1}`"):
            ui.open_pages(Path(), port, browse=False)


def test_an_installation_without_the_app_is_told_to_be_renewed(top, monkeypatch):
    monkeypatch.setattr(ui.importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(TrackingError, match="pip install -e"):
        ui.open_pages(Path(), _free(), browse=False)


def test_a_database_of_a_newer_mlflow_is_told_from_one_that_is_away(top, monkeypatch):
    def refuse():
        raise MlflowException("Detected out-of-date database schema (found version f, but expected d). Take a backup")

    monkeypatch.setattr(ui, "_check", lambda port: None)
    monkeypatch.setattr(server, "connect", refuse)
    with pytest.raises(
        TrackingError, match=r"database is of another version than .*`optlab sync` and `optlab show` fill"
    ):
        ui.open_pages(Path(), _free(), browse=False)


def _free():
    with socket.socket() as free:
        free.bind((ui.HOST, 0))
        return free.getsockname()[1]


def test_the_script_of_the_start_page_has_every_comparison_s_view_and_cannot_be_ended_by_one(top, monkeypatch):
    client = server.connect()
    for name in ("optlab", "optlab-empty"):
        server.experiment(client, name)
    client.set_experiment_tag("1", view.TAG, view.saved('{"searchFilter": "</script>"}'))
    monkeypatch.setenv(webapp.START_VARIABLE, "#/experiments/1/runs")
    script = webapp._script()
    assert script.count("</script>") == 1
    assert webapp._states() == {"1": '{"searchFilter": "</script>"}'}
    assert 'location.replace("#/experiments/1/runs")' in script
