"""The schema's version, and bringing a database up to it."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, inspect, text

from ranksearch.data_folder import data_folder
from ranksearch.database.schema import SCHEMA_VERSION, VERSION_TABLE, VIEWS

__all__ = ["upgrade", "version_of"]

_LOCK_SECONDS = 60
_LOCK_NAME = "ranksearch migration"
_ALEMBIC = threading.Lock()  # its context is a global of the process


def version_of(connection: Connection) -> str | None:
    """The revision a database stands at; None where ranksearch has no tables in it."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608


def upgrade(connection: Connection) -> None:
    """Brings tables and views to this version, in the transaction of `connection`, one process at a time.

    The views are dropped before and made anew after: a migration may change what they read.
    """
    with _alone(connection):
        for view in reversed(VIEWS):
            connection.execute(text(f"DROP VIEW IF EXISTS {view}"))
        _run_migrations(connection)
        for view in VIEWS:
            connection.execute(text(view_sql(view)))


def view_sql(view: str) -> str:
    return (data_folder("storage") / "views" / f"{view}.sql").read_text(encoding="utf-8")


def _run_migrations(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = str(data_folder("storage") / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, SCHEMA_VERSION)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Keeps other processes from migrating. SQLite needs nothing: BEGIN IMMEDIATE has locked them out."""
    dialect = connection.dialect.name
    if dialect == "postgresql":  # released with the transaction
        number = int.from_bytes(hashlib.sha256(_LOCK_NAME.encode()).digest()[:8], "big", signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
    elif dialect in ("mysql", "mariadb"):
        connection.execute(text("SELECT GET_LOCK(:name, :s)"), {"name": _LOCK_NAME, "s": _LOCK_SECONDS})
    try:
        yield
    finally:
        if dialect in ("mysql", "mariadb"):
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
