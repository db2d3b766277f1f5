import pytest

from ranksearch.database import Database


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/ranksearch.db"


@pytest.fixture
def database(url):
    with Database.open(url) as database:
        yield database


@pytest.fixture(scope="module")
def shared_database(tmp_path_factory):
    """One for many examples, each with studies of its own."""
    with Database.open(f"sqlite:///{tmp_path_factory.mktemp('database')}/ranksearch.db") as database:
        yield database
