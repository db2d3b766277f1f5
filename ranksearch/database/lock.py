"""One driver a study. The operating system, or the database's server, lets go when the driver dies."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, text

from ranksearch.database.failures import storage_errors
from ranksearch.database.store import Store
from ranksearch.database.url import sqlite_file
from ranksearch.errors import StorageError, StudyBusyError

__all__ = ["is_running", "study_lock"]


@contextmanager
def study_lock(database: Store, study: str) -> Iterator[None]:
    """Held by the one process that drives `study`; raises StudyBusyError while another one holds it.

    SQLite: a lock on `<database>.<hash of the study>.lock`. The file stays behind, since removing it would let two
    drivers lock two files of one name. PostgreSQL: an advisory lock. MySQL, MariaDB: GET_LOCK. A server's lock lasts as
    long as the connection to it.
    """
    path = sqlite_file(database.location)
    held = _file_lock(path, study) if path else _server_lock(database, study)
    with held:
        yield


def is_running(database: Store, study: str) -> bool:
    """Whether some process drives `study` now. Writes nothing."""
    path = sqlite_file(database.location)
    if path:
        return _is_file_locked(_lock_path(path, study))
    try:
        with _server_lock(database, study):
            return False
    except StorageError:
        return True


def _is_file_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock_path(database: Path, study: str) -> Path:
    return database.with_name(f"{database.name}.{_digest(study).hex()[:12]}.lock")


def _file_lock(database: Path, study: str) -> AbstractContextManager[object]:
    path = _lock_path(database, study)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout as error:
        raise StudyBusyError(_busy(study, path.read_text(encoding="utf-8"))) from error
    except OSError as error:
        raise StorageError(f"lock file {path} cannot be written: {error.strerror}; check its folder") from error
    return lock


def _digest(study: str) -> bytes:
    return hashlib.sha256(f"ranksearch study {study}".encode()).digest()


def _busy(study: str, owner: str) -> str:
    by = f" by {owner}" if owner else ""
    return f"study {study!r} is being run{by}; wait for that run, stop it, or choose another study"


@contextmanager
def _server_lock(database: Store, study: str) -> Iterator[None]:
    acquire = _acquire_postgresql if database.location.get_backend_name() == "postgresql" else _acquire_mysql
    with storage_errors(database.location):
        # A connection of its own, outside any transaction: the lock is the session's and lasts as long.
        connection = database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        with storage_errors(database.location):
            if not acquire(connection, study):
                raise StudyBusyError(_busy(study, ""))
        yield
    finally:
        connection.invalidate()  # closes the session rather than handing it, and its lock, to the next user
        connection.close()


def _acquire_postgresql(connection: Connection, study: str) -> bool:
    number = int.from_bytes(_digest(study)[:8], "big", signed=True)
    return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:number)"), {"number": number}))


def _acquire_mysql(connection: Connection, study: str) -> bool:
    # The server's locks are of all its databases, and it hangs up after eight idle hours unless told to wait a year.
    connection.execute(text("SET SESSION wait_timeout = 31536000"))
    name = f"ranksearch {_digest(f'{connection.engine.url.database} {study}').hex()[:40]}"
    return connection.scalar(text("SELECT GET_LOCK(:name, 0)"), {"name": name}) == 1
