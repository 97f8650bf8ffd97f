"""What is said of a store's address and errors, and stores that cannot be used."""

import contextlib
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from events import begun

from optlab.tracking import mlflow_store, uploader


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
def test_password_is_redacted_from_uri(monkeypatch, address, shown):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert mlflow_store.get_redacted_uri() == shown
    assert not address.startswith("http") or mlflow_store.get_ui_url() == shown
    assert (
        mlflow_store.describe_error(ValueError(f"API request to {address} failed")) == f"API request to {shown} failed"
    )
    assert mlflow_store.describe_error(ValueError("no such store: x+y://a:sesame@b")) == "no such store: x+y://b"


def test_password_misparsed_as_host_is_redacted(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:p@sesame/x@db")
    assert mlflow_store.describe_error(OSError("cannot resolve 'sesame'")) == "cannot resolve '***'"


@contextlib.contextmanager
def hanging_server():
    """A server that takes connections, and says nothing; its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql", "postgresql+psycopg"])
def test_unresponsive_store_times_out(top, monkeypatch, scheme):
    begun()
    monkeypatch.setattr(mlflow_store, "PING_TIMEOUT_S", 0.5)
    with hanging_server() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:sesame@127.0.0.1:{port}/runs")
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"no answer.*(within 0.5 s|timed out)"):
            list(uploader.push_all())
        assert time.monotonic() - began < 10  # SQLAlchemy and the driver are imported as well


def test_refused_database_connection_gives_one_warning(top, monkeypatch, capsys):
    begun()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://ann:se@same@127.0.0.1:9/runs")
    assert not uploader.push_pending()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow at postgresql+psycopg://127.0.0.1:9/runs does not take the runs now (")
    assert "same" not in line and line.endswith("`optlab sync` sends it")


def test_invalid_database_file_is_reported_with_remedy(top, capsys):
    begun()
    Path("mlflow.db").write_bytes(b"not a database " * 1000)
    assert not uploader.push_pending()
    assert "mlflow.db: file is not a database: move it away, and a new one is made" in capsys.readouterr().err
    Path("mlflow.db").rename("away")
    assert uploader.push_pending()
    Path("mlflow.db").unlink()
    Path("mlflow.db").mkdir()
    with pytest.raises(ConnectionError, match=r"mlflow.db: unable to open database file: see whether it is a file"):
        mlflow_store.connect()


def test_database_schema_mismatch_names_upgrade_command(top, capsys):
    begun()
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
        database.commit()
    assert not uploader.push_pending()
    said = capsys.readouterr().err
    assert f"copy it, then run `mlflow db upgrade sqlite:///{top}/mlflow.db`)" in said, said


def test_store_works_with_uri_characters_in_path(top, monkeypatch):
    """SQLAlchemy ends a path at `?`, alembic fills in what follows a `%`."""
    odd = top.with_name("50%d of?it#all")
    top.rename(odd)
    monkeypatch.chdir(odd)
    Path("mlflow.db").unlink()
    Path("kept").touch()
    log = begun()
    log.log_artifact(Path("kept"))
    log.append("end", status="completed", time=2000)
    assert uploader.push_pending()
    client = mlflow_store.connect()
    (run,) = client.search_runs([mlflow_store.get_or_create_experiment(client, "optlab")])
    assert run.info.status == "FINISHED" and [each.path for each in client.list_artifacts(run.info.run_id)] == ["kept"]
    assert list(odd.parent.iterdir()) == [odd]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{odd}/mlflow.db")  # named by a shell, it is the same one
    assert (
        mlflow_store.is_local()
        and mlflow_store.get_redacted_uri() == f"sqlite:///{odd}/mlflow.db"
        and uploader.push_pending()
    )
