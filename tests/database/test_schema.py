"""The tables of the code, those the migrations make, and what storage/README.md says of them."""

import re
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import UniqueConstraint, inspect, text
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from ranksearch.data_folder import data_folder
from ranksearch.database.migrate import view_sql
from ranksearch.database.schema import METADATA, SCHEMA_VERSION, VERSION_TABLE, VIEWS
from ranksearch.records import TrialState

from .made import make_measurement, make_plan, make_study, make_trial, run_trial

STORAGE = data_folder("storage")
DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect(), "mysql": mysql.dialect()}
DIALECTS["mariadb"] = mysql.dialect(is_mariadb=True)
# What some of these databases have and others do not.
NOT_PORTABLE = re.compile(
    r"\|\||::|json_|group_concat|string_agg|ifnull|strftime|rowid|\bfilter\b|\blimit\b|distinct on|materialized|"
    r"\bfull\b|\blateral\b|\bqualify\b|[\"`\[:;]",
    re.IGNORECASE,
)


def columns_of(database, name):
    return [column["name"] for column in inspect(database.engine).get_columns(name)]


def test_the_migrations_make_the_tables_of_the_code(database):
    ours = set(METADATA.tables)
    options = {"include_name": lambda name, kind, _parents: kind != "table" or name in ours, "compare_type": True}
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []


def test_the_version_is_the_newest_migration(database):
    config = Config()
    config.set_main_option("script_location", str(STORAGE / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION
    with database.reading() as connection:
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == SCHEMA_VERSION


def test_all_that_is_made_begins_with_rs(database):
    with sqlite3.connect(database.location.database) as connection:
        made = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        }
    connection.close()
    assert made == {*METADATA.tables, *VIEWS, VERSION_TABLE}
    assert all(name.startswith("rs_") for name in made)


@pytest.mark.parametrize("view", VIEWS)
def test_views_read_our_tables_only(view):
    sql = re.sub(r"--.*", "", view_sql(view))
    read = set(re.findall(r"(?:FROM|JOIN)\s+(\w+)", sql))
    within = set(re.findall(r"(\w+) AS \(", sql))
    assert read - within <= {*METADATA.tables, *VIEWS}
    assert {word for word in re.findall(r"\w+", sql) if word.startswith("rs_")} <= {*METADATA.tables, *VIEWS}


@pytest.mark.parametrize("path", sorted(STORAGE.glob("*/*.sql")), ids=lambda path: path.name)
def test_sql_keeps_to_what_all_databases_have(path):
    sql = re.sub(r"--.*", "", path.read_text(encoding="utf-8")).strip().removesuffix(";")
    assert NOT_PORTABLE.findall(sql) == []


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_compile_for_every_database(name):
    dialect = DIALECTS[name]
    for table in METADATA.sorted_tables:
        ddl = str(CreateTable(table).compile(dialect=dialect))
        assert ("utf8mb4_bin" in ddl) == (name in ("mysql", "mariadb"))
        assert not re.search(r"\b(FLOAT|REAL)\b", ddl), "single precision on MySQL"
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=dialect))
    for view in VIEWS:
        assert text(view_sql(view)).compile(dialect=dialect).params == {}


@pytest.mark.parametrize("name", DIALECTS)
def test_names_are_short_enough_for_every_database(name):
    found = [constraint.name for table in METADATA.tables.values() for constraint in table.constraints]
    found += [index.name for table in METADATA.tables.values() for index in table.indexes]
    assert max(len(str(name)) for name in found) <= 63


def test_every_foreign_key_finds_an_index():
    """A row that is a parent is looked up by its children; without an index that is a scan of the whole table."""
    for table in METADATA.tables.values():
        indexing = [
            *table.indexes,
            *(c for c in table.constraints if isinstance(c, UniqueConstraint)),
            table.primary_key,
        ]
        indexes = [[column.name for column in index.columns] for index in indexing]
        for key in table.foreign_key_constraints:
            wanted = list(key.column_keys)
            assert any(index[: len(wanted)] == wanted for index in indexes), f"{table.name} {wanted}"


def documented():
    """{heading: [(column, unit, meaning)]} of storage/README.md."""
    found, heading = {}, None
    for line in (STORAGE / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ") and not line.startswith("| column"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_readme_has_every_column_in_order(database):
    names = {heading: [column for column, _, _ in rows] for heading, rows in documented().items()}
    assert names == {name: columns_of(database, name) for name in (*METADATA.tables, *VIEWS)}


UNITS = {
    r"_ms$": {"ms"},
    r"(^|_)seconds(_total)?$": {"s"},
    r"(^|_)bytes$": {"bytes"},
    r"^macs$": {"MACs"},
    r"^parameters$|^num_|_num_|^attempt$": {"count"},
    r"ratio": {"candidate / dense"},
    r"^speedup$": {"dense / candidate"},
    r"accuracy": {"metric"},
    r"^(created|started|finished)$": {"time"},
    r"_key$": {"key"},
    r"^(plan|fingerprint|finetune|measure|environment|settings|identity|conditions)$": {"JSON"},
}


def test_the_readme_gives_the_unit_of_every_column():
    for heading, rows in documented().items():
        for column, unit, _ in rows:
            for pattern, units in UNITS.items():
                if re.search(pattern, column):
                    assert unit in units, f"{heading}.{column}"


@pytest.mark.parametrize("path", sorted((STORAGE / "queries").glob("*.sql")), ids=lambda path: path.stem)
def test_example_queries_run_and_find_something(database, path):
    study = make_study()
    database.save_study(study)
    run_trial(database, study, make_trial(study, 0, origin="dense"), ratio=1.0, accuracy=0.9)
    run_trial(database, study, make_trial(study, 1, make_plan(1)), state=TrialState.FAILED, reason="killed")
    run_trial(database, study, make_trial(study, 2, make_plan(1), attempt=1, retry_of=1), ratio=0.5, accuracy=0.895)
    database.add_measurement("study", 2, make_measurement(0.55), "fresh")
    with sqlite3.connect(database.location.database) as connection:
        found = connection.execute(path.read_text(encoding="utf-8")).fetchall()
    connection.close()
    expected = {
        "front": [("study", 2), ("study", 0)],
        "fastest_within_one_point": [("study", 2)],
        "choices_on_the_front": [("study", "layer0", "dense", 1, 1.0), ("study", "layer0", "svd", 1, 1.0)],
        "failures": [("study", "killed", 1, 1, 1)],
        "seconds_per_phase": [("study", "finetune", 3, 3.0, 1.0), ("study", "compress", 3, 1.5, 0.5)],
        "measured_again": [("study", 2, 0.5, 0.55, 0)],
    }[path.stem]
    assert [row[: len(want)] for row, want in zip(found, expected, strict=False)] == expected
