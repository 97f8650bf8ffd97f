"""Databases that MLflow is given without a server of its own before them: whether one answers, and is one at all."""

import threading
from pathlib import Path
from typing import Any

from optlab.system.errors import one_line

_DAMAGE = ("SQLITE_NOTADB", "SQLITE_CORRUPT")


def knock(uri: str, timeout_s: float) -> None:
    """Connect once and look for a table: MLflow's own client repeats an attempt ten times, for minutes.

    Raises:
        ConnectionError: the database does not answer in time, refuses, or is none.
        Exception: whatever SQLAlchemy raises of a URI or driver that it does not know.
    """
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)  # which imports the driver
    if engine.dialect.name == "sqlite" and _is_absent(engine.url.database):
        return  # it is created
    ended: list[Exception | None] = []

    def look() -> None:
        try:
            with engine.connect() as connection:
                sqlalchemy.inspect(connection).has_table("alembic_version")
            ended.append(None)
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=look, name="knock", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not ended:
        raise ConnectionError(f"no answer within {timeout_s:g} s")
    error = ended[0]
    if isinstance(error, DBAPIError):
        raise ConnectionError(_explain(engine.url.database, error.orig)) from None
    if error is not None:
        raise error


def _is_absent(path: str | None) -> bool:
    return not path or path == ":memory:" or not Path(path).exists()


def _explain(path: str | None, error: Any) -> str:
    """Return what a database's driver says, with the remedy where it is a file."""
    name = getattr(error, "sqlite_errorname", "")
    if name in _DAMAGE:
        return f"{path}: {error}: move it away, and a new one is made and filled"
    if name.startswith("SQLITE_CANTOPEN"):
        return f"{path}: {error}: see whether it is a file, and who may read it"
    return f"no answer: {one_line(error)}"
