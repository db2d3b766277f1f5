import sqlite3
from pathlib import Path

import pytest

from .made import make_plan, make_study, make_trial, run_trial


@pytest.fixture
def filled(database):
    study = make_study()
    database.save_study(study)
    run_trial(database, study, make_trial(study, 0, make_plan(1, 2)))
    database.start_trial("study", make_trial(study, 1, make_plan(4)))
    return database


def tamper(database, *statements):
    with sqlite3.connect(database.location.database) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_nothing_is_wrong(filled):
    assert filled.check() == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TABLE rs_score", "table rs_score is missing"),
        ("DROP VIEW rs_layers", "view rs_layers is missing"),
        ("UPDATE rs_alembic_version SET version_num = '0000'", "the schema is 0000"),
        ("DELETE FROM rs_layer WHERE position = 0", "2 rows of rs_choice belong to nothing: no rs_layer"),
        ("DELETE FROM rs_trial WHERE number = 0", "rows of rs_timing belong to nothing: no rs_trial"),
        (
            "UPDATE rs_trial SET retry_of = 77 WHERE number = 1",
            "rows of rs_trial belong to nothing: no rs_trial for their study_id",
        ),
        ("UPDATE rs_trial SET seed = 99", "study study, trial 0: its plan, seed or settings"),
        ("UPDATE rs_choice SET ranks = '3' WHERE ranks = '2'", "study study, trial 0: its plan is not"),
        ("DELETE FROM rs_choice WHERE ranks = '4'", "study study, trial 1: its plan is not"),
        ("UPDATE rs_trial SET accuracy = NULL", "trial 0: it is complete without an accuracy or a latency"),
        ("DELETE FROM rs_measurement", "trial 0: it is complete without an accuracy or a latency"),
        ("UPDATE rs_trial SET finished = NULL", "trial 0: it is complete and finished at None"),
        ("UPDATE rs_trial SET finished = '2026'", "trial 1: it is running and finished at 2026"),
    ],
)
def test_what_is_wrong_is_said(filled, statement, said):
    tamper(filled, statement)
    found = filled.check()
    assert any(said in line for line in found), found
    assert all("\n" not in line for line in found)


def test_damage_is_said(filled):
    filled.close()
    with sqlite3.connect(filled.location.database) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_rs_trial_study_id_plan_key'")
        number, size = page.fetchone()[0], connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with Path(filled.location.database).open("r+b") as file:
        file.seek((number - 1) * size)
        file.write(b"\0" * size)
    (found,) = filled.check()
    assert "damaged" in found
