"""What a job runs: its flags survive, and no password is among them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.cluster.command import RunCommand, holds_password
from ranksearch.errors import ConfigError
from tests.cluster.argv import ARGUMENTS

WITH_PASSWORD = (
    "postgresql+psycopg://ada:hunter2@db/ranksearch",
    "postgresql://:hunter2@db/ranksearch",
    "mysql+pymysql://ada:p/w:x@db:3306/ranksearch",
    "postgresql://db/ranksearch?user=ada&password=hunter2",
    "postgresql://db/ranksearch?sslpassword=hunter2",
)
WITHOUT = (
    "postgresql+psycopg://ada@db:5432/ranksearch",
    "postgresql://db:5432/ranksearch?passfile=/home/ada/.pgpass",
    "sqlite:////data/a:b@c.db",
    "net.py:make_net",
    "cifar10:./data",
)


@pytest.mark.parametrize("url", WITH_PASSWORD)
@pytest.mark.parametrize("flags", [["--storage", "{}"], ["--storage={}"], ["{}"]])
def test_a_password_in_a_flag_is_refused_and_not_repeated(url: str, flags: list[str]) -> None:
    with pytest.raises(ConfigError, match="RANKSEARCH_STORAGE") as refused:
        RunCommand(flags=tuple(flag.format(url) for flag in flags))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", WITHOUT)
def test_what_holds_no_password_is_accepted(url: str) -> None:
    assert not holds_password(url)
    RunCommand(flags=("--storage", url))


@given(before=ARGUMENTS, value=st.text(min_size=1).filter(lambda t: not holds_password(t)), joined=st.booleans())
def test_the_last_value_of_a_flag_is_found(before: list[str], value: str, joined: bool) -> None:
    given_flag = [f"--storage={value}"] if joined else ["--storage", value]
    command = RunCommand(flags=(*before, "--storage", "first", *given_flag))
    assert command.value_of("--storage") == value
    assert command.with_flag("--storage", "last").value_of("--storage") == "last"


def test_a_flag_that_is_not_given_has_no_value() -> None:
    assert RunCommand().value_of("--storage") is None
    assert RunCommand(flags=("--storage-x", "a", "a--storage", "b")).value_of("--storage") is None
