import pytest
from sqlalchemy import create_engine

from ranksearch.database import Database, configure, engine, engine_arguments
from ranksearch.database.engine import is_on_network

MOUNTS = r"""
proc /proc proc rw 0 0
/dev/sda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/local ext4 rw 0 0
//server/share /mnt/two\040words cifs rw 0 0
user@host: /mnt/remote fuse.sshfs rw 0 0
/dev/sdc /covered ext4 rw 0 0
server:/x /covered nfs rw 0 0
server:/y /uncovered nfs rw 0 0
/dev/sdd /uncovered ext4 rw 0 0
""".strip()


def pragmas(engine):
    with engine.connect() as connection:
        return {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }


CAREFUL = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 60_000}


def test_a_database_is_careful(database):
    assert pragmas(database.engine) == CAREFUL


def test_opened_to_read_it_is_careful_as_well(url):
    Database.open(url).close()
    with Database.open(url, create=False) as database:
        assert pragmas(database.engine) == CAREFUL


def test_another_engine_is_configured_alike(database):
    other = create_engine(database.url, **database.engine_arguments())
    with other.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 0
    configure(other)
    assert pragmas(other) == CAREFUL
    other.dispose()


def test_no_write_ahead_log_on_a_network_file_system(url, monkeypatch):
    monkeypatch.setattr(engine, "is_on_network", lambda path: True)
    with Database.open(url) as database:
        assert pragmas(database.engine) == CAREFUL | {"journal_mode": "delete"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/ranksearch.db", False),
        ("/home/user/ranksearch.db", True),
        ("/home/local/ranksearch.db", False),
        ("/homeless/ranksearch.db", False),
        ("/mnt/two words/ranksearch.db", True),
        ("/mnt/remote/deep/folder/ranksearch.db", True),
        ("/covered/ranksearch.db", True),
        ("/uncovered/ranksearch.db", False),
    ],
)
def test_network_file_systems_are_told_by_their_mounts(tmp_path, path, expected):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert is_on_network(type(tmp_path)(path), mounts) is expected


def test_a_system_that_does_not_tell_counts_as_local(tmp_path):
    assert not is_on_network(tmp_path, tmp_path / "missing")


def test_a_server_is_asked_whether_it_is_still_there():
    arguments = engine_arguments("postgresql+psycopg://user:hunter2@host/database")
    assert arguments == {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
