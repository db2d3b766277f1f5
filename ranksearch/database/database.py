"""The whole of a database: opening it, its schema, and what `Writer`, `Queries` and `Frames` do with it."""

import os
from pathlib import Path
from typing import Self

from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from ranksearch.database import migrate, store
from ranksearch.database.check import problems
from ranksearch.database.frames import Frames
from ranksearch.database.queries import Queries
from ranksearch.database.schema import SCHEMA_VERSION
from ranksearch.database.url import read_url, safe_url, sqlite_file
from ranksearch.database.writer import Writer
from ranksearch.errors import NotFoundError, StorageError

__all__ = ["Database"]


class Database(Writer, Queries, Frames):
    """Use `Database.open`; close it, or use it in a `with`."""

    @classmethod
    def open(cls, url: str, *, create: bool = True, accept_older: bool = False) -> Self:
        """Opens a database. With `create`, makes what is missing and upgrades an older schema; without, writes nothing.

        `accept_older` opens an older schema as it is, for `upgrade` and `check`.

        Raises:
            ConfigError: the URL is malformed, of an unknown kind, or its driver is not installed.
            NotFoundError: without `create`, there is no database or it holds no ranksearch tables.
            StorageError: unreachable, locked, damaged, not writable; an older schema; a newer schema.
        """
        parsed = read_url(url)
        path = sqlite_file(parsed)
        if path:
            _check_file(path, create)
        # Whoever switches a new SQLite file to write-ahead logging makes others fail who open it meanwhile.
        return store.patiently(
            lambda: cls._opened(parsed, create, accept_older),
            lambda error: isinstance(error, StorageError) and isinstance(error.__cause__, OperationalError),
        )

    @classmethod
    def _opened(cls, parsed: URL, create: bool, accept_older: bool) -> Self:
        database = cls(parsed, create=create)
        try:
            database._settle(create, accept_older)
        except BaseException:
            database.close()
            raise
        return database

    def _settle(self, create: bool, accept_older: bool) -> None:
        with self.reading() as connection:
            version = migrate.version_of(connection)
        if version == SCHEMA_VERSION:
            return
        where = sqlite_file(self.location) or safe_url(self.location)
        if version is not None and version > SCHEMA_VERSION:
            raise StorageError(
                f"database {where} has schema {version} and this ranksearch knows up to {SCHEMA_VERSION}; "
                "upgrade it: pip install --upgrade ranksearch"
            )
        if create:
            self.upgrade()
        elif version is None:
            raise NotFoundError(f"database {where} holds no study of ranksearch; `ranksearch run` makes one")
        elif not accept_older:
            raise StorageError(f"database {where} has the older schema {version}; run: ranksearch db upgrade")

    def upgrade(self) -> None:
        """Brings an older schema up to this version and makes the views anew."""
        self.write(migrate.upgrade)

    def check(self) -> list[str]:
        """What is wrong with the database, one line each; empty when all is well."""
        found: list[str] = []
        try:
            with self.reading() as connection:
                found.extend(problems(connection))
        except StorageError as error:  # a damaged file may refuse even to end the transaction
            return found or [str(error)]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _check_file(path: Path, create: bool) -> None:
    if path.is_dir():
        raise StorageError(f"database {path} is a folder; name a file in it, like {path / 'ranksearch.db'}")
    if path.exists():
        if create and not os.access(path, os.W_OK):
            raise StorageError(f"database {path} may not be written; check its permissions")
    elif not create:
        raise NotFoundError(f"there is no database {path}; `ranksearch run` makes one, --storage names another")
    elif not path.parent.is_dir():
        raise StorageError(f"database {path} cannot be made: there is no folder {path.parent}")
