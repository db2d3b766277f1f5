"""Storage URLs: reading them, refusing them in words a user can act on, showing them without a password."""

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ranksearch.errors import ConfigError
from ranksearch.records import nearest

__all__ = ["read_url", "safe_url", "sqlite_file"]

_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")
_EXAMPLE = "sqlite:///ranksearch.db or postgresql+psycopg://user@host/database"
_SECRET = re.compile("pass|pwd|secret|token", re.IGNORECASE)


def read_url(text: str) -> URL:
    """Raises ConfigError on a URL that is malformed, of another kind of database, or whose driver is not installed."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"storage is {safe_url(text)!r}; write a URL like {_EXAMPLE}") from error
    dialect = url.get_backend_name()
    if dialect not in _DIALECTS:
        hint = nearest(dialect, _DIALECTS)
        raise ConfigError(f"storage is of kind {dialect!r}; it must be one of {', '.join(_DIALECTS)}{hint}")
    _check_driver(url)
    if dialect == "sqlite":
        _check_sqlite(url)
        url = url.set(database=str(sqlite_file(url)))  # it stays the same file when the working directory changes
    elif not url.database:
        raise ConfigError(f"storage {safe_url(url)!r} names no database; write {dialect}://user@host/database")
    return url


def _check_driver(url: URL) -> None:
    try:
        url.get_dialect().import_dbapi()
    except NoSuchModuleError as error:
        raise ConfigError(f"storage driver {url.drivername!r} is unknown; write a URL like {_EXAMPLE}") from error
    except ImportError as error:
        raise ConfigError(
            f"storage {safe_url(url)!r} needs {error.name!r}, which is not installed; write postgresql+psycopg:// or "
            'mysql+pymysql:// and run: pip install "ranksearch[cluster]"'
        ) from error


def _check_sqlite(url: URL) -> None:
    if url.host:
        raise ConfigError(f"storage is {safe_url(url)!r}; SQLite takes three slashes, or four for an absolute path")
    if not url.database or ":memory:" in url.database or url.database.startswith("file:"):
        raise ConfigError(f"storage is {safe_url(url)!r}; name a file, like sqlite:///ranksearch.db")


def sqlite_file(url: URL) -> Path | None:
    """The absolute path of a SQLite database; None for a database behind a server."""
    is_file = url.get_backend_name() == "sqlite" and url.database
    return Path(url.database).absolute() if is_file and url.database else None


def safe_url(url: str | URL) -> str:
    """The URL with `***` for every password, also for one among its query parameters."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return _safe_text(str(url))
    hidden = {name: "***" for name in parsed.query if _SECRET.search(name)}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def _safe_text(text: str) -> str:
    """What can be shown of text that is not a URL: all of it, unless a password may be in it."""
    if "@" not in text and not _SECRET.search(text):
        return text
    return next((dialect for dialect in _DIALECTS if text.startswith(dialect)), "") + "***"
