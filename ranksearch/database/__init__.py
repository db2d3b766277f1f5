"""Records ⇄ SQL. SQLAlchemy lives here only; storage/ has the migrations, the views and what every column means."""

from ranksearch.database.database import Database
from ranksearch.database.engine import configure, engine_arguments
from ranksearch.database.frames import TRIAL_COLUMNS, front
from ranksearch.database.lock import is_running, study_lock
from ranksearch.database.url import read_url, safe_url, sqlite_file

__all__ = [
    "TRIAL_COLUMNS",
    "Database",
    "configure",
    "engine_arguments",
    "front",
    "is_running",
    "read_url",
    "safe_url",
    "sqlite_file",
    "study_lock",
]
