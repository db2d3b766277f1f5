"""What a database or its driver refuses, said in one line as a StorageError."""

import contextlib
from collections.abc import Iterator

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ranksearch.database.url import safe_url, sqlite_file
from ranksearch.errors import StorageError

__all__ = ["storage_errors"]

# what SQLite says -> what it means and what to do
_ADVICE = {
    "database is locked": "another process keeps it locked; stop that process or try again",
    "attempt to write a readonly database": "it may not be written; check its permissions",
    "unable to open database file": "it cannot be opened; check that its folder exists and may be written",
    "file is not a database": "it is not a SQLite database; name another file",
    "database disk image is malformed": "it is damaged; restore a copy, or move it away and begin anew",
    "database or disk is full": "the disk is full; free some space and run the same command again",
    "no such table": "its tables are incomplete; `ranksearch db check` tells more",
}


@contextlib.contextmanager
def storage_errors(url: URL) -> Iterator[None]:
    """Turns every SQLAlchemy error into a StorageError whose one line never holds the password."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(_line(url, error)) from error


def _line(url: URL, error: SQLAlchemyError) -> str:
    said = _said(error)
    if url.password:
        said = said.replace(str(url.password), "***")
    advice = next((advice for symptom, advice in _ADVICE.items() if symptom in said), None)
    where = sqlite_file(url) or safe_url(url)
    if advice:
        return f"database {where}: {advice}"
    what = "refused, since it is there already or belongs to nothing" if isinstance(error, IntegrityError) else "failed"
    return f"database {where} {what}: {said}"


def _said(error: SQLAlchemyError) -> str:
    """The first line of what the driver said; SQLAlchemy's own text repeats the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return next(iter(str(cause).strip().splitlines()), type(error).__name__)
