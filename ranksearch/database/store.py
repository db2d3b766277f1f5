"""A database's transactions: reading one moment of it, writing with a few retries."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import InterfaceError, OperationalError

from ranksearch.database.engine import configure, engine_arguments, make_engine
from ranksearch.database.failures import storage_errors
from ranksearch.database.url import safe_url

__all__ = ["RETRY_SECONDS", "Store", "patiently"]

RETRY_SECONDS = (0.05, 0.2, 0.8)
PASSING = (OperationalError, InterfaceError)  # a lock, a deadlock, a lost connection

T = TypeVar("T")


class Store:
    """An open database. Not shared with another process: each opens its own."""

    def __init__(self, url: URL, *, create: bool) -> None:
        self.location = url
        self.engine: Engine = make_engine(url, create=create)
        if url.get_backend_name() == "sqlite":
            self._reader, self._writer = self.engine, self.engine.execution_options(begin="IMMEDIATE")
        else:
            self._reader, self._writer = self.engine.execution_options(isolation_level="REPEATABLE READ"), self.engine

    def __repr__(self) -> str:
        return f"{type(self).__name__}({safe_url(self.location)!r})"

    @property
    def url(self) -> str:
        """With the password: to open the same database elsewhere in this process. Show `safe_url(url)` instead."""
        return self.location.render_as_string(hide_password=False)

    def engine_arguments(self) -> dict[str, Any]:
        """What another engine on this database, such as Optuna's, takes beside `url`."""
        return engine_arguments(self.location)

    def configure(self, engine: Engine) -> None:
        """Sets up another engine on this database as this one is."""
        configure(engine)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database, whatever is written meanwhile."""
        with storage_errors(self.location), self._reader.begin() as connection:
            yield connection

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction. It must bear to be run again: a lock, a deadlock or a lost connection is
        tried anew a few times before it becomes a StorageError."""
        with storage_errors(self.location):
            return patiently(lambda: self._write_once(work), lambda error: isinstance(error, PASSING))

    def _write_once(self, work: Callable[[Connection], T]) -> T:
        with self._writer.begin() as connection:
            return work(connection)


def patiently(work: Callable[[], T], is_passing: Callable[[Exception], bool]) -> T:
    """What `work` returns, tried anew a few times, and later each time, after errors that pass."""
    for seconds in RETRY_SECONDS:
        try:
            return work()
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(seconds * random.uniform(0.5, 1.5))
    return work()
