import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from ranksearch.database import read_url, safe_url, sqlite_file
from ranksearch.errors import ConfigError

# Long and of letters that no other part of these URLs has, so that to find it is to leak it.
passwords = st.text("QXZ0123456789:/@?#%&= é", min_size=6, max_size=20)


@given(passwords)
def test_a_password_is_never_shown(password):
    url = URL.create("postgresql+psycopg", "user", password, "host", 5432, "database")
    assert password not in safe_url(url)
    shown = safe_url(url.render_as_string(hide_password=False))
    assert password not in shown
    assert shown == "postgresql+psycopg://user:***@host:5432/database"


@given(passwords, st.sampled_from(["password", "passwd", "sslpassword", "PWD", "access_token"]))
def test_a_password_among_the_parameters_is_never_shown(password, name):
    url = URL.create("mysql+pymysql", "user", host="host", database="d", query={name: password, "charset": "utf8mb4"})
    shown = safe_url(url.render_as_string(hide_password=False))
    assert password not in shown
    assert "charset=utf8mb4" in shown


@given(passwords)
def test_a_password_in_a_malformed_url_is_never_shown(password):
    for url in (
        "postgresql//user:{}@host/database",
        "postgres:user:{}@host",
        "user@pass={}",
        "{}@host",
        "mysql:/pwd={}",
    ):
        assert password not in safe_url(url.format(password))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ranksearch.db", "'ranksearch.db'.*sqlite:///ranksearch.db"),
        ("", "write a URL"),
        ("sqlite:/ranksearch.db", "write a URL"),
        ("sqlite://ranksearch.db", "three slashes"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:///file:x?uri=true", "name a file"),
        ("postgres://user@host/d", "'postgres'.*did you mean 'postgresql'"),
        ("oracle://user@host/d", "'oracle'; it must be one of sqlite, postgresql, mysql, mariadb"),
        ("sqlite+nothing:///x.db", r"'sqlite\+nothing' is unknown"),
        ("postgresql://user@host:port/d", "write a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read_url(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("postgresql+psycopg://user:hunter2@host/d", "psycopg"),
        ("mysql+pymysql://user:hunter2@host/d", "pymysql"),
        ("mariadb+pymysql://user:hunter2@host/d", "pymysql"),
    ],
)
def test_a_missing_driver_names_the_extra(monkeypatch, text, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=re.escape('pip install "ranksearch[cluster]"')) as caught:
        read_url(text)
    assert module in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_server_url_names_its_database(monkeypatch):
    from sqlalchemy.dialects.postgresql import psycopg

    monkeypatch.setattr(psycopg.PGDialect_psycopg, "import_dbapi", classmethod(lambda cls: None))
    with pytest.raises(ConfigError, match="names no database"):
        read_url("postgresql+psycopg://user@host")
    assert sqlite_file(read_url("postgresql+psycopg://user@host/d")) is None


def test_a_relative_file_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sqlite_file(read_url("sqlite:///a.db")) == tmp_path / "a.db"
    assert sqlite_file(read_url("sqlite:////b/c.db")).as_posix() == "/b/c.db"
