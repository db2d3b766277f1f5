import math
import pickle
import sqlite3
from dataclasses import replace

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from ranksearch.database import Database, store
from ranksearch.errors import NotFoundError, StorageError
from ranksearch.records import TrialState, key_of

from .made import make_measurement, make_plan, make_result, make_score, make_study, make_trial, run_trial


@pytest.fixture
def study(database):
    study = make_study()
    database.save_study(study)
    return study


def contents(database):
    with sqlite3.connect(database.location.database) as connection:
        return list(connection.iterdump())


def test_a_study_is_saved_once_and_whole(database, study):
    before = contents(database)
    with pytest.raises(StorageError, match="UNIQUE"):
        database.save_study(replace(study, seed=5))
    assert contents(database) == before


def test_a_study_that_cannot_be_saved_leaves_nothing(database):
    study = make_study()
    twins = replace(study, layers=(study.layers[0], study.layers[0]))
    before = contents(database)
    with pytest.raises(StorageError):
        database.save_study(twins)
    assert contents(database) == before


def test_a_trial_starts_once(database, study):
    database.start_trial("study", make_trial(study, 0))
    with pytest.raises(StorageError, match="UNIQUE"):
        database.start_trial("study", make_trial(study, 0))


def test_the_same_requeue_twice_is_refused(database, study):
    run_trial(database, study, make_trial(study, 0), state=TrialState.FAILED)
    database.start_trial("study", make_trial(study, 1, attempt=1, retry_of=0))
    with pytest.raises(StorageError, match="UNIQUE"):
        database.start_trial("study", make_trial(study, 2, attempt=1, retry_of=0))
    assert [trial.number for trial in database.trials("study")] == [0, 1]


def test_a_retry_of_nothing_is_refused(database, study):
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        database.start_trial("study", make_trial(study, 1, attempt=1, retry_of=0))


def foreign_specs(study):
    spec = make_trial(study, 0).spec
    return {
        "study key": replace(spec, study="f" * 16),
        "fine-tune": replace(spec, finetune=replace(spec.finetune, steps=99)),
        "measure": replace(spec, measure=replace(spec.measure, threads=99)),
    }


@pytest.mark.parametrize("what", ["study key", "fine-tune", "measure"])
def test_a_trial_of_another_study_is_refused(database, study, what):
    trial = replace(make_trial(study, 0), spec=foreign_specs(study)[what])
    with pytest.raises(ValueError, match="than its study"):
        database.start_trial("study", trial)
    assert database.trials("study") == []


def test_a_plan_of_another_model_is_refused(database, study):
    with pytest.raises(ValueError, match="layer3"):
        database.start_trial("study", make_trial(study, 0, make_plan(1, 1, 1, 1)))
    assert database.trials("study") == []


def test_a_trial_does_not_start_finished(database, study):
    trial = make_trial(study, 0)
    for finished in (replace(trial, state=TrialState.FAILED), replace(trial, result=make_result(trial))):
        with pytest.raises(ValueError, match="starts without a result"):
            database.start_trial("study", finished)


def test_the_same_result_again_changes_nothing(database, study):
    finished = run_trial(database, study, make_trial(study, 0))
    before = contents(database)
    database.finish_trial("study", 0, finished.result, "2030-01-01T00:00:00+00:00")
    assert contents(database) == before


def test_another_result_is_refused(database, study):
    finished = run_trial(database, study, make_trial(study, 0))
    before = contents(database)
    for other in (
        replace(finished.result, parameters=7),
        replace(finished.result, measurement=make_measurement(0.51)),
        replace(finished.result, seconds={"compress": 9.0}),
        replace(finished.result, score=None),
        replace(finished.result, state=TrialState.FAILED),
    ):
        with pytest.raises(StorageError, match="complete already"):
            database.finish_trial("study", 0, other, "2026")
    assert contents(database) == before


def test_the_result_of_another_trial_is_refused(database, study):
    database.start_trial("study", make_trial(study, 0))
    other = make_result(make_trial(study, 1))
    with pytest.raises(StorageError, match=other.key):
        database.finish_trial("study", 0, other, "2026")


def test_a_trial_does_not_finish_running(database, study):
    trial = make_trial(study, 0)
    database.start_trial("study", trial)
    with pytest.raises(ValueError, match="running"):
        database.finish_trial("study", 0, make_result(trial, state=TrialState.RUNNING), "2026")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(database, study, bad):
    trial = make_trial(study, 0)
    database.start_trial("study", trial)
    good = make_result(trial)
    for wrong in (
        replace(good, measurement=replace(good.measurement, dense_p50_ms=bad)),
        replace(good, measurement=replace(good.measurement, conditions={"load": bad})),
        replace(good, seconds={"compress": bad}),
    ):
        with pytest.raises(ValueError, match="finite"):
            database.finish_trial("study", 0, wrong, "2026")
    assert database.trial("study", 0) == trial


def test_what_is_not_there_is_named(database, study):
    with pytest.raises(NotFoundError, match=r"'studdy'.*did you mean 'study'"):
        database.start_trial("studdy", make_trial(study, 0))
    for missing in (
        lambda: database.finish_trial("study", 3, make_result(make_trial(study, 3)), "2026"),
        lambda: database.add_measurement("study", 3, make_measurement(), "fresh"),
        lambda: database.add_score("study", 3, "test", make_score(0.5)),
        lambda: database.trial("study", 3),
        lambda: database.samples("study", 3),
    ):
        with pytest.raises(NotFoundError, match="trial 3"):
            missing()
    for query in (database.trials, database.trials_frame, database.pareto_frame):
        with pytest.raises(NotFoundError, match="nobody"):
            query("nobody")


def test_a_kind_of_measurement_is_spelt_right(database, study):
    database.start_trial("study", make_trial(study, 0))
    with pytest.raises(ValueError, match="did you mean 'fresh'"):
        database.add_measurement("study", 0, make_measurement(), "frehs")


def test_a_score_replaces_an_earlier_one(database, study):
    run_trial(database, study, make_trial(study, 0))
    database.add_score("study", 0, "test", make_score(0.5))
    database.add_score("study", 0, "test", make_score(0.75))
    database.add_score("study", 0, "other", make_score(0.25))
    assert database.trials_frame("study").test_accuracy.tolist() == [0.75]


def test_find_measurement_is_the_newest_of_an_equal_plan(database, study):
    plan, other = make_plan(1, 2), make_plan(1, 4)
    run_trial(database, study, make_trial(study, 0, plan), ratio=0.5)
    run_trial(database, study, make_trial(study, 1, other), ratio=0.6)
    run_trial(database, study, make_trial(study, 2, plan), ratio=0.7)
    assert database.find_measurement(study, make_plan(1, 2)).ratio == 0.7
    assert database.find_measurement(study, make_plan(2, 1)) is None
    elsewhere = make_measurement(0.9, identity={"device_model": "another"})
    database.add_measurement("study", 0, elsewhere, "fresh")
    assert database.find_measurement(study, plan).ratio == 0.7


def another(study, **fingerprint):
    return replace(study, name="another", fingerprint={**study.fingerprint, **fingerprint})


def at_another_resolution(study):
    first = study.layers[0]
    costlier = replace(first, cost=replace(first.cost, macs=2 * first.cost.macs))
    return replace(study, name="another", layers=(costlier, *study.layers[1:]))


def with_other_layers(study):
    return replace(study, name="another", layers=study.layers[:2])


@pytest.mark.parametrize(
    ("sibling", "is_reused"),
    [
        (lambda study: another(study, weights="others", data="others"), True),
        (lambda study: another(study, model="another"), False),
        (lambda study: another(study, **{"latency threads": "2"}), False),
        (lambda study: another(study, **{"latency input": "new in this version"}), False),
        (at_another_resolution, False),
        (with_other_layers, False),
    ],
    ids=["weights", "model", "threads", "version", "resolution", "layers"],
)
def test_another_study_takes_over_what_was_measured_on_the_same_net_and_device(database, study, sibling, is_reused):
    run_trial(database, study, make_trial(study, 0))
    measured = run_trial(database, study, make_trial(study, 1, make_plan(1))).result.measurement
    found = database.find_measurement(sibling(study), make_plan(1))
    assert (found is not None) == is_reused
    if found:
        assert found == replace(measured, conditions={"reused from": "study/1"} | measured.conditions)


def test_a_measurement_that_was_taken_over_is_known_by_whom_it_was_made_for(database, study):
    run_trial(database, study, make_trial(study, 0, make_plan(1)))
    second = replace(study, name="second")
    database.save_study(second)
    trial = make_trial(second, 0, make_plan(1))
    database.start_trial("second", trial)
    taken = database.find_measurement(second, trial.spec.plan)
    database.finish_trial("second", 0, replace(make_result(trial), measurement=taken), "2026")
    assert database.trial("second", 0).result.measurement.conditions["reused from"] == "study/0"
    assert database.find_measurement(second, trial.spec.plan) == taken


@pytest.mark.parametrize(
    ("half_width", "flags", "wanted", "is_reused"),
    [
        (0.01, (), {}, True),
        (0.01, ("launch_bound",), {}, True),
        (0.01, ("contended",), {}, False),
        (0.01, ("unstable",), {}, False),
        (0.01, ("throttled",), {}, False),
        (0.03, ("noisy",), {}, True),  # it was tried as long as it would be now
        (0.03, ("noisy",), {"max_seconds": 60.0}, False),
        (0.03, ("noisy",), {"half_width": 0.005}, False),
        (0.03, ("noisy",), {"max_seconds": 60.0, "half_width": 0.05}, True),
        (0.01, (), {"half_width": 0.005}, False),
    ],
)
def test_a_measurement_is_taken_over_if_it_is_as_good_as_a_new_one(
    database, study, half_width, flags, wanted, is_reused
):
    trial = make_trial(study, 0, make_plan(1))
    database.start_trial("study", trial)
    low, high = 0.5 * (1 - half_width), 0.5 * (1 + half_width)
    measured = replace(make_measurement(0.5), ratio_low=low, ratio_high=high, flags=flags)
    database.finish_trial("study", 0, replace(make_result(trial), measurement=measured), "2026")
    wants = replace(study, name="another", measure=replace(study.measure, **wanted))
    assert (database.find_measurement(wants, make_plan(1)) is not None) == is_reused


def test_a_fresh_measurement_is_taken_over_where_it_is_narrow_enough(database, study):
    """How long it was tried is not known."""
    database.start_trial("study", make_trial(study, 0, make_plan(1)))
    narrow = replace(make_measurement(0.5), ratio_low=0.496, ratio_high=0.504)
    database.add_measurement("study", 0, replace(narrow, ratio_low=0.4, ratio_high=0.6), "fresh")
    assert database.find_measurement(study, make_plan(1)) is None
    database.add_measurement("study", 0, narrow, "fresh")
    assert database.find_measurement(study, make_plan(1)).ratio == 0.5


def break_statements(database, monkeypatch, failures):
    """The first `failures` transactions fail at their last statement, as when the server hangs up."""
    monkeypatch.setattr(store, "RETRY_SECONDS", (0.001, 0.001, 0.001))
    left = [failures]

    def before_commit(_connection):
        if left[0]:
            left[0] -= 1
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database is locked"))

    event.listen(database.engine, "commit", before_commit)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_transient_failure_is_tried_again(database, study, monkeypatch, failures):
    break_statements(database, monkeypatch, failures)
    database.start_trial("study", make_trial(study, 0, make_plan(1, 2)))
    assert database.trial("study", 0) == make_trial(study, 0, make_plan(1, 2))


def test_a_lasting_failure_is_a_storage_error(database, study, monkeypatch):
    break_statements(database, monkeypatch, 4)
    with pytest.raises(StorageError, match="another process keeps it locked") as caught:
        database.start_trial("study", make_trial(study, 0))
    assert "\n" not in str(caught.value)
    assert database.trials("study") == []


def test_a_constraint_is_not_tried_again(database, study):
    commits = []
    event.listen(database.engine, "begin", commits.append)
    with pytest.raises(StorageError):
        database.save_study(study)
    assert len(commits) == 1


def test_a_database_does_not_travel_in_a_pickle(url):
    with Database.open(url) as database, pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(database)


def test_keys_are_those_of_the_records(database, study):
    trial = make_trial(study, 0, make_plan(2))
    database.start_trial("study", trial)
    with sqlite3.connect(database.location.database) as connection:
        stored = connection.execute("SELECT spec_key, plan_key FROM rs_trial").fetchall()
    assert stored == [(key_of(trial.spec), key_of(trial.spec.plan))]
