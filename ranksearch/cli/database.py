"""`db upgrade`, `db check`: a database's schema."""

import typer

from ranksearch.cli.options import with_settings
from ranksearch.errors import StorageError
from ranksearch.settings import Settings

__all__ = ["app"]

app = typer.Typer(help="Look after a database.", no_args_is_help=True)


@app.command()
@with_settings("storage")
def upgrade(settings: Settings) -> None:
    """Bring a database up to this version of ranksearch."""
    from ranksearch.database import Database, safe_url

    with Database.open(settings.storage_url, create=False, accept_older=True) as database:
        database.upgrade()
    print(f"{safe_url(settings.storage_url)} is up to date")


@app.command()
@with_settings("storage")
def check(settings: Settings) -> None:
    """Look for what is wrong with a database. Exit code 4 where anything is."""
    from ranksearch.database import Database, safe_url

    with Database.open(settings.storage_url, create=False, accept_older=True) as database:
        problems = database.check()
    for problem in problems:
        print(problem)
    if problems:
        raise StorageError(f"{safe_url(settings.storage_url)} has {len(problems)} problems")
    print(f"{safe_url(settings.storage_url)} is in order")
