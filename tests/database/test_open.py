"""Opening what is there, what is not, and what should not be touched."""

import json
import os
import shutil
import sqlite3
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ranksearch.database import Database, engine, migrate, schema, store
from ranksearch.database.schema import SCHEMA_VERSION
from ranksearch.errors import ConfigError, NotFoundError, StorageError

from .made import make_plan, make_study, make_trial, run_trial

NOBODY = 65534


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ranksearch.db"


@pytest.fixture
def filled(url, file):
    """A database at rest with one finished trial."""
    with Database.open(url) as database:
        study = make_study()
        database.save_study(study)
        run_trial(database, study, make_trial(study, 0, make_plan(1)))
    return file


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_new_database_is_made_and_opened_again(url):
    with Database.open(url) as database:
        database.save_study(make_study())
    with Database.open(url, create=False) as database:
        assert database.load_study("study") == make_study()
        assert database.check() == []


def test_what_is_at_rest_is_one_file(filled):
    assert [path.name for path in filled.parent.iterdir()] == [filled.name]


def test_without_create_nothing_is_made(url, tmp_path):
    with pytest.raises(NotFoundError, match="ranksearch run"):
        Database.open(url, create=False)
    with pytest.raises(NotFoundError):
        Database.open(f"sqlite:///{tmp_path}/missing/folder/ranksearch.db", create=False)
    assert contents(tmp_path) == {}


def test_without_create_another_programs_database_is_left_alone(url, file):
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = contents(file.parent)
    with pytest.raises(NotFoundError, match="holds no study"):
        Database.open(url, create=False)
    assert contents(file.parent) == before


def test_without_create_an_empty_file_is_left_empty(url, file):
    file.touch()
    with pytest.raises(NotFoundError):
        Database.open(url, create=False)
    assert contents(file.parent) == {file.name: b""}


def test_an_empty_file_becomes_a_database(url, file):
    file.touch()
    with Database.open(url) as database:
        assert database.check() == []


def test_the_database_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Database.open("sqlite:///ranksearch.db") as database:
        monkeypatch.chdir("/")
        database.engine.dispose()
        database.save_study(make_study())
        assert database.url == f"sqlite:///{tmp_path}/ranksearch.db"


@pytest.mark.parametrize("create", [True, False])
def test_a_folder(tmp_path, create):
    with pytest.raises(StorageError, match="is a folder"):
        Database.open(f"sqlite:///{tmp_path}", create=create)


def test_a_missing_folder(tmp_path):
    with pytest.raises(StorageError, match="there is no folder"):
        Database.open(f"sqlite:///{tmp_path}/missing/ranksearch.db")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database(url, file, create):
    file.write_text("accuracy,latency\n" * 1000)
    before = contents(file.parent)
    with pytest.raises(StorageError, match="not a SQLite database") as caught:
        Database.open(url, create=create)
    one_line(caught)
    assert contents(file.parent) == before


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_database(url, filled, kept):
    data = filled.read_bytes()
    filled.write_bytes(data[: int(len(data) * kept)])
    try:
        with Database.open(url) as database:
            said = database.check()[0]
    except StorageError as error:
        said = str(error)
    assert "damaged" in said
    assert "\n" not in said


@contextmanager
def unprivileged():
    """As somebody who may not write everything, if this process may."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public_folder():
    """A folder that another user can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o777), (0o444, 0o555)])
def test_a_database_that_may_only_be_read(filled, public_folder, file_mode, folder_mode, monkeypatch):
    monkeypatch.setattr(store, "RETRY_SECONDS", ())
    file = public_folder / "ranksearch.db"
    shutil.copy(filled, file)
    file.chmod(file_mode)
    public_folder.chmod(folder_mode)
    url = f"sqlite:///{file}"
    before = contents(public_folder)
    with unprivileged():
        with pytest.raises(StorageError, match="may not be written"):
            Database.open(url)
        with Database.open(url, create=False) as database:
            assert len(database.trials_frame("study")) == 1
            with pytest.raises(StorageError, match="may not be written") as caught:
                database.save_study(make_study("another"))
    one_line(caught)
    assert contents(public_folder) == before


def test_a_folder_that_may_only_be_read(public_folder):
    public_folder.chmod(0o555)
    with unprivileged(), pytest.raises(StorageError, match="cannot be opened") as caught:
        Database.open(f"sqlite:///{public_folder}/ranksearch.db")
    one_line(caught)
    assert contents(public_folder) == {}


def test_a_database_that_stays_locked(url, filled, monkeypatch):
    monkeypatch.setattr(engine, "_BUSY_TIMEOUT", "PRAGMA busy_timeout = 10")
    monkeypatch.setattr(store, "RETRY_SECONDS", (0.01,))
    other = sqlite3.connect(filled, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Database.open(url) as database:
        assert len(database.trials("study")) == 1, "readers do not wait for a writer"
        with pytest.raises(StorageError, match="another process keeps it locked") as caught:
            database.save_study(make_study("another"))
        one_line(caught)
        other.execute("ROLLBACK")
        database.save_study(make_study("another"))
    other.close()


def set_version(file, version):
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE rs_alembic_version SET version_num = ?", (version,))
    connection.close()


@pytest.mark.parametrize("create", [True, False])
def test_a_newer_schema_is_left_alone(url, filled, create):
    set_version(filled, "0999")
    before = contents(filled.parent)
    with pytest.raises(StorageError, match=r"schema 0999.*pip install --upgrade ranksearch"):
        Database.open(url, create=create)
    assert contents(filled.parent) == before


def test_an_older_schema_waits_for_its_upgrade(url, filled):
    set_version(filled, "0000")
    with pytest.raises(StorageError, match="ranksearch db upgrade"):
        Database.open(url, create=False)
    with Database.open(url, create=False, accept_older=True) as database:
        assert database.check() == [
            f"the schema is 0000, this ranksearch has {schema.SCHEMA_VERSION}; run: ranksearch db upgrade"
        ]


def test_upgrade_is_safe_to_repeat_and_makes_the_views_anew(url, filled):
    with sqlite3.connect(filled) as connection:
        connection.execute("DROP VIEW rs_layers")
    connection.close()
    with Database.open(url) as database:
        before = database.trials("study")
        database.upgrade()
        assert database.trials("study") == before
        assert database.check() == []


def test_an_older_database_is_upgraded_with_its_views(url, filled, monkeypatch):
    """The views of the older version go first: what they read may change."""
    with sqlite3.connect(filled) as connection:
        connection.execute("DROP VIEW rs_layers")
        connection.execute("CREATE VIEW rs_layers AS SELECT details AS of_an_older_version FROM rs_trial")
        connection.execute("UPDATE rs_alembic_version SET version_num = '0000'")
    connection.close()

    def next_version(connection):
        connection.exec_driver_sql("ALTER TABLE rs_trial DROP COLUMN details")
        connection.exec_driver_sql("ALTER TABLE rs_trial ADD COLUMN details TEXT")
        connection.exec_driver_sql(f"UPDATE rs_alembic_version SET version_num = '{SCHEMA_VERSION}'")

    monkeypatch.setattr(migrate, "_run_migrations", next_version)
    with Database.open(url) as database:
        assert database.check() == []
        assert len(database.trials("study")) == 1
        with database.reading() as connection:
            assert connection.exec_driver_sql("SELECT COUNT(layer) FROM rs_layers").scalar() == 3


def test_a_database_of_the_first_schema_keeps_its_study_and_trials(url, file):
    """As that version wrote it: one way of training, told by the study."""
    study = make_study()
    trial = make_trial(study, 0, make_plan(1))
    with Database.open(url) as database:
        database.save_study(study)
        run_trial(database, study, trial)
        before = database.trials("study")
    with sqlite3.connect(file) as connection:
        for view in reversed(schema.VIEWS):
            connection.execute(f"DROP VIEW {view}")
        connection.execute("UPDATE rs_study SET finetune = ?", [json.dumps(study.recipes[0].finetune.to_json())])
        for table, column in (
            ("rs_seed", "recipe"),
            ("rs_trial", "recipe"),
            ("rs_trial", "finetune"),
            ("rs_trial", "parent_key"),
            ("rs_study", "profile"),
        ):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for table in ("rs_samples", "rs_profile", "rs_layer_latency", "rs_identity"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE rs_alembic_version SET version_num = '0001'")
    connection.close()
    with Database.open(url) as database:
        assert database.check() == []
        assert database.load_study("study") == study
        assert database.trials("study") == before
        database.start_trial("study", make_trial(study, 1, make_plan(2)))


def test_several_may_make_one_database_at_once(tmp_path):
    """Fifteen times over: one of them failed once in fourteen while nothing was tried again."""
    together = threading.Barrier(4)

    def make(attempt):
        together.wait()
        with Database.open(f"sqlite:///{tmp_path / str(attempt)}.db") as database:
            return database.check()

    with ThreadPoolExecutor(4) as pool:
        for attempt in range(15):
            assert list(pool.map(make, [attempt] * 4)) == [[], [], [], []]


def test_an_upgrade_that_fails_leaves_the_old_schema(url, file, monkeypatch):
    monkeypatch.setattr(migrate, "view_sql", lambda view: "CREATE VIEW rs_broken AS SELECT FROM")
    monkeypatch.setattr(store, "RETRY_SECONDS", ())
    with pytest.raises(StorageError):
        Database.open(url)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    monkeypatch.undo()
    with Database.open(url) as database:
        assert database.check() == []


def test_a_database_shared_with_others_keeps_their_tables(url, file):
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE studies (study_id INTEGER)")
        connection.execute("INSERT INTO studies VALUES (7)")
    connection.close()
    with Database.open(url) as database, database.reading() as connection:
        assert connection.exec_driver_sql("SELECT study_id FROM studies").scalar() == 7


def test_a_url_that_cannot_be_used_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        Database.open("ranksearch.db")
    assert contents(tmp_path) == {}
