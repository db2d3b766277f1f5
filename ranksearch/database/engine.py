"""Engines: how a connection to each kind of database is set up."""

import os
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url

from ranksearch.database.url import sqlite_file

__all__ = ["BUSY_TIMEOUT_SECONDS", "configure", "engine_arguments", "is_on_network", "make_engine"]

BUSY_TIMEOUT_SECONDS = 60
_BUSY_TIMEOUT = f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}"
_CAREFUL = ("PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON")

_DRIVERS_WITH_CONNECT_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")

# Write-ahead logging keeps its index in memory that all processes share, which no network file system gives.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "panfs", "smb", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"),
        *("fuse.ceph", "fuse.cephfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs", "fuse.rclone"),
        *("fuse.s3fs", "fuse.sshfs"),
    }
)


def engine_arguments(url: str | URL) -> dict[str, Any]:
    """What `sqlalchemy.create_engine` takes beside the URL; Optuna's RDBStorage takes it as `engine_kwargs`."""
    parsed = make_url(url)
    if sqlite_file(parsed):
        return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}}
    patience = {"connect_timeout": 10} if parsed.get_driver_name() in _DRIVERS_WITH_CONNECT_TIMEOUT else {}
    return {"pool_pre_ping": True, "connect_args": patience}


def configure(engine: Engine) -> None:
    """Sets up every connection that `engine` makes from now on, and drops those it has.

    SQLite: a write-ahead log (a rollback journal on a network file system), a commit reaches the disk before it
    returns, foreign keys are enforced, a locked database is waited for. Other databases need nothing.
    """
    if path := sqlite_file(engine.url):
        journal = "DELETE" if is_on_network(path) else "WAL"
        # The busy timeout is the first of all, for to change the journal may mean to wait.
        _at_connect(engine, [_BUSY_TIMEOUT, f"PRAGMA journal_mode = {journal}", *_CAREFUL])


def _at_connect(engine: Engine, statements: Sequence[str]) -> None:
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        for statement in statements:
            connection.execute(statement).close()

    event.listen(engine, "connect", connected)
    engine.dispose()


def make_engine(url: URL, *, create: bool) -> Engine:
    """An engine whose SQLite transactions begin where ours do, and with `BEGIN IMMEDIATE` under the execution option
    `begin="IMMEDIATE"`, so that a writer waits for its turn at the start and never fails half way.

    Without `create`, connecting changes nothing on disk, also when the file turns out to be somebody else's.
    """
    path = sqlite_file(url)
    engine = create_engine(
        _immutable(path) if path and _is_at_rest(path) else url, hide_parameters=True, **engine_arguments(url)
    )
    if path:
        if create:
            configure(engine)
        else:
            _at_connect(engine, [_BUSY_TIMEOUT, *_CAREFUL])
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin)
    return engine


def _is_at_rest(path: Path) -> bool:
    """Whether we may only read a database and nobody is writing it: SQLite would want to make files beside it."""
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return path.exists() and not writable and not path.with_name(f"{path.name}-wal").exists()


def _immutable(path: Path) -> URL:
    return make_url(f"sqlite:///file:{quote(str(path))}?immutable=1&uri=true")


def _leave_transactions_to_us(connection: sqlite3.Connection, _record: object) -> None:
    # Python's sqlite3 begins a transaction before it writes, not before it reads or defines tables.
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")


def is_on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a file lies, or would lie, on a network file system; False where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    resolved = path.resolve()
    mounted = [(Path(_unescaped(mount)), kind) for _, mount, kind, *_ in map(str.split, lines)]
    above = [(len(mount.parts), kind) for mount, kind in mounted if resolved.is_relative_to(mount)]
    # The deepest mount holds the file; of several at one place, the last one covers the others.
    _, kind = max(reversed(above), key=lambda mount: mount[0], default=(0, ""))
    return kind in _NETWORK_FILE_SYSTEMS


def _unescaped(mount: str) -> str:
    """A mount point as /proc/mounts writes it, with `\\040` for a space."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount)
