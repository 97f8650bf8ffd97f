"""What is said of a store's address and errors, and stores that cannot be used."""

import contextlib
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from events import begun

from optlab.tracking import replay, server


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:sesame@host:5000", "http://host:5000"),
        ("https://ann:p@sesame@host/a@b", "https://host/a@b"),
        ("https://mlflow.example.org/a@b", "https://mlflow.example.org/a@b"),
        ("http://ann:x/sesame@host:5000/a", "http://host:5000/a"),
        ("http://host/a?token=sesame", "http://host/a"),
        ("http://[::1]:5000/a", "http://[::1]:5000/a"),
        ("postgresql://ann:sesame@db:5432/runs", "postgresql://db:5432/runs"),
        ("postgresql+psycopg://ann:sesame@db/runs", "postgresql+psycopg://db/runs"),
        ("mysql+pymysql://ann:p@sesame@db", "mysql+pymysql://db"),
        ("mysql+pymysql://ann:7/sesame?#@db", "mysql+pymysql://db"),
        ("postgresql:///runs?user=ann&password=sesame", "postgresql:///runs"),
        ("sqlite:////home/a@b/runs.db", "sqlite:////home/a@b/runs.db"),
        ("databricks", "databricks"),
    ],
)
def test_a_password_is_not_shown(monkeypatch, address, shown):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert server.shown() == shown
    assert not address.startswith("http") or server.ui_url() == shown
    assert server.describe(ValueError(f"API request to {address} failed")) == f"API request to {shown} failed"
    assert server.describe(ValueError("no such store: x+y://a:sesame@b")) == "no such store: x+y://b"


def test_what_a_client_takes_for_a_host_is_not_shown_either(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:p@sesame/x@db")
    assert server.describe(OSError("cannot resolve 'sesame'")) == "cannot resolve '***'"


@contextlib.contextmanager
def hanging():
    """A server that takes connections, and says nothing; its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql", "postgresql+psycopg"])
def test_a_store_that_does_not_answer_is_given_up_in_time(top, monkeypatch, scheme):
    begun()
    monkeypatch.setattr(server, "KNOCK_S", 0.5)
    with hanging() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:sesame@127.0.0.1:{port}/runs")
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"no answer.*(within 0.5 s|timed out)"):
            list(replay.push_all())
        assert time.monotonic() - began < 10  # SQLAlchemy and the driver are imported as well


def test_a_database_that_refuses_is_given_up_at_once(top, monkeypatch, capsys):
    begun()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://ann:se@same@127.0.0.1:9/runs")
    assert not replay.push_pending()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow at postgresql+psycopg://127.0.0.1:9/runs does not take the runs now (")
    assert "same" not in line and line.endswith("`optlab sync` sends it")


def test_a_database_that_is_none_is_named_with_a_remedy_that_works(top, capsys):
    begun()
    Path("mlflow.db").write_bytes(b"not a database " * 1000)
    assert not replay.push_pending()
    assert "mlflow.db: file is not a database: move it away, and a new one is made" in capsys.readouterr().err
    Path("mlflow.db").rename("away")
    assert replay.push_pending()
    Path("mlflow.db").unlink()
    Path("mlflow.db").mkdir()
    with pytest.raises(ConnectionError, match=r"mlflow.db: unable to open database file: see whether it is a file"):
        server.connect()


def test_a_database_of_another_version_is_said_whole(top, capsys):
    begun()
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
        database.commit()
    assert not replay.push_pending()
    said = capsys.readouterr().err
    assert f"copy it, then run `mlflow db upgrade sqlite:///{top}/mlflow.db`)" in said, said


def test_a_repository_whose_path_is_no_uri(top, monkeypatch):
    """SQLAlchemy ends a path at `?`, alembic fills in what follows a `%`."""
    odd = top.with_name("50%d of?it#all")
    top.rename(odd)
    monkeypatch.chdir(odd)
    Path("mlflow.db").unlink()
    Path("kept").touch()
    log = begun()
    log.artifact(Path("kept"))
    log.append("end", status="completed", time=2000)
    assert replay.push_pending()
    client = server.connect()
    (run,) = client.search_runs([server.experiment(client, "optlab")])
    assert run.info.status == "FINISHED" and [each.path for each in client.list_artifacts(run.info.run_id)] == ["kept"]
    assert list(odd.parent.iterdir()) == [odd]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{odd}/mlflow.db")  # named by a shell, it is the same one
    assert server.is_local() and server.shown() == f"sqlite:///{odd}/mlflow.db" and replay.push_pending()
