"""Records come back from the database equal to what went in."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from .made import make_measurement, make_plan, make_study, make_trial, run_trial, studies, trials

STUDY_NAMES = (f"study {i}" for i in itertools.count())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_study(shared_database, data):
    study = data.draw(studies(next(STUDY_NAMES)))
    shared_database.save_study(study)
    assert shared_database.load_study(study.name) == study


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_trials(shared_database, data):
    study = data.draw(studies(next(STUDY_NAMES)))
    shared_database.save_study(study)
    expected = []
    for number in range(data.draw(st.integers(0, 4))):
        started, finished = data.draw(trials(study, number))
        shared_database.start_trial(study.name, started)
        assert shared_database.trial(study.name, number) == started
        if finished.result:
            shared_database.finish_trial(study.name, number, finished.result, finished.finished)
        assert shared_database.trial(study.name, number) == finished
        expected.append(finished)
    assert shared_database.trials(study.name) == expected


def test_layer_names_differ_by_case_and_accent(database):
    plain = make_study()
    study = replace(plain, layers=tuple(replace(plain.layers[0], name=name) for name in "aAá"))
    database.save_study(study)
    assert database.load_study(study.name) == study


def test_a_fresh_measurement_is_no_part_of_the_trial(database):
    study = make_study()
    database.save_study(study)
    finished = run_trial(database, study, make_trial(study, 0, make_plan(1)))
    database.add_measurement(study.name, 0, make_measurement(0.9), "fresh")
    assert database.trials(study.name) == [finished]


def test_a_later_measurement_of_the_search_takes_the_place_of_the_first(database):
    study = make_study()
    database.save_study(study)
    run_trial(database, study, make_trial(study, 0, make_plan(1)))
    database.add_measurement(study.name, 0, make_measurement(0.9), "search")
    assert database.trial(study.name, 0).result.measurement == make_measurement(0.9)


def test_the_number_of_statements_does_not_grow_with_the_study(database):
    study = make_study()
    database.save_study(study)
    statements = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    counts = set()
    for number in range(3):
        run_trial(database, study, make_trial(study, number, make_plan(1)))
        statements.clear()
        database.trials(study.name)
        database.trials_frame(study.name)
        database.load_study(study.name)
        counts.add(len(statements))
    assert len(counts) == 1
    assert counts.pop() < 20


def test_unknown_study_is_none(database):
    assert database.load_study("nobody") is None
