import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from ranksearch.database.failures import storage_errors
from ranksearch.errors import StorageError

URL = make_url("postgresql+psycopg://user:hunter2@host/database")


def said_of(error):
    with pytest.raises(StorageError) as caught, storage_errors(URL):
        raise error
    return str(caught.value)


def test_a_driver_that_repeats_the_password_is_not_repeated():
    driver = OSError("connection to 'user:hunter2@host' refused\n\tIs the server running?")
    assert said_of(OperationalError("SELECT secret_value", {"parameter": 1}, driver)) == (
        "database postgresql+psycopg://user:***@host/database failed: connection to 'user:***@host' refused"
    )


def test_a_driver_that_says_nothing_is_named():
    assert said_of(OperationalError("COMMIT", {}, OSError())).endswith("failed: OperationalError")


def test_an_error_of_sqlalchemy_itself():
    assert said_of(ArgumentError("invalid option\nmore")).endswith("failed: invalid option")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), storage_errors(URL):
        raise ZeroDivisionError
