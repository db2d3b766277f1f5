"""Records come back from the database equal to what went in."""

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from ranksearch.records import FinetuneConfig, LayerChoice, LayerLatency, OptionProfile, Profile, Recipe, Timings

from .made import (
    COST,
    make_measurement,
    make_plan,
    make_result,
    make_samples,
    make_study,
    make_trial,
    run_trial,
    studies,
    timings,
    trials,
)

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
        assert list(shared_database.samples(study.name, number).values()) == samples_of(finished)
    assert shared_database.trials(study.name) == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_timings_of_an_identity_are_those_stored_last(shared_database, data):
    identity = {"device": next(STUDY_NAMES)}
    assert shared_database.timings(identity) == Timings(identity=identity)
    expected, stairs = {}, None
    for _ in range(data.draw(st.integers(1, 3))):
        added = replace(data.draw(timings), identity=identity)
        shared_database.add_timings(added)
        expected |= {(found.shape, found.choice): found for found in added.layers}
        stairs = added.staircase or stairs
        known = shared_database.timings(identity)
        assert {(found.shape, found.choice): found for found in known.layers} == expected
        assert (len(known.layers), known.staircase) == (len(expected), stairs)


def samples_of(trial):
    """Those of its measurement, if there are any."""
    measured = trial.result and trial.result.measurement
    return [measured.samples] if measured and measured.samples else []


def test_samples_are_those_of_their_measurement_to_single_precision(database):
    """What is read back is what was measured, rounded once; each measurement has its own, block by block."""
    study = make_study()
    database.save_study(study)
    trial = make_trial(study, 0, make_plan(1))
    database.start_trial(study.name, trial)
    first, fresh = make_samples(), make_samples(num_blocks=5, size=4)
    result = make_result(trial)
    result = replace(result, measurement=replace(result.measurement, samples=first))
    database.finish_trial(study.name, 0, result, "2026")
    database.add_measurement(study.name, 0, make_measurement(), "fresh")
    database.add_measurement(study.name, 0, replace(make_measurement(), num_blocks=5, samples=fresh), "fresh")
    found = database.samples(study.name, 0)
    assert list(found) == [1, 3]
    for read, measured in zip(found.values(), (first, fresh), strict=True):
        for arm in ("dense_ms", "candidate_ms"):
            rounded = np.array(getattr(measured, arm), dtype=np.float32)
            np.testing.assert_array_equal(np.array(getattr(read, arm)), rounded)
            assert not np.array_equal(np.array(getattr(measured, arm)), rounded)


def test_samples_are_only_read_where_they_are_asked_for(database):
    study = make_study()
    database.save_study(study)
    trial = make_trial(study, 0, make_plan(1))
    database.start_trial(study.name, trial)
    result = make_result(trial)
    samples = make_samples()
    database.finish_trial(
        study.name, 0, replace(result, measurement=replace(result.measurement, samples=samples)), "2026"
    )
    statements = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    database.trials_frame(study.name)
    database.pareto_frame(study.name)
    assert database.trials(study.name)[0].result.measurement.samples is None
    assert database.find_measurement(study, make_plan(1)).samples is None
    assert statements
    assert not [sql for sql in statements if "rs_samples" in sql]
    assert database.samples(study.name, 0)
    assert "rs_samples" in statements[-1]


def test_a_trial_of_a_second_and_a_half_takes_less_than_six_kilobytes():
    """At the 1 ms that a sample lasts at least."""
    assert len(make_samples(num_blocks=75).pack()) < 6000


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


def profiled(study, latency, **identity):
    rows = [
        OptionProfile(layer=layer.name, choice=option.choice, cost=option.cost, latency=latency, error=0.1)
        for layer in study.layers
        for option in layer.options[:2]
    ]
    return Profile(identity=study.identity | {"probe": "1"} | identity, dense_ms=1.0, options=tuple(rows))


def test_a_profile_serves_other_studies_of_the_same_net_weights_data_and_identity(database):
    made = make_study("first")
    made = replace(made, fingerprint={**made.fingerprint, "weights": "w"})
    first, second = (profiled(made, latency) for latency in (-0.1, -0.2))
    database.save_study(replace(made, profile=first))
    database.save_study(replace(made, name="second", profile=second))
    database.save_study(replace(made, name="third"))
    assert database.find_profiles(made) == [second, first]
    fisher = Recipe(name="default", finetune=FinetuneConfig(factors="fisher"))
    assert database.find_profiles(replace(made, recipes=(fisher,))) == []
    longer = Recipe(name="default", finetune=FinetuneConfig(steps=99, calibration_examples=7))
    assert database.find_profiles(replace(made, recipes=(longer, fisher))) == [second, first]
    for part in ("model", "weights", "data", "latency threads"):
        other = replace(made, fingerprint={**made.fingerprint, part: "another"})
        assert database.find_profiles(other) == []


def test_what_a_profile_timed_is_told_by_layer_shape_and_what_it_took_over_is_not():
    def option(layer, rank, layer_ms, **given):
        choice = LayerChoice(method="svd", ranks=(rank,)) if rank else LayerChoice(method="dense")
        return OptionProfile(layer=layer, choice=choice, cost=COST, error=0.0, layer_ms=layer_ms, **given)

    found = Profile(
        identity={"device": "a CPU"},
        dense_ms=10.0,
        options=(
            option("a", 1, 1.0, latency=-0.3, latency_deviation=0.02),
            option("a", 2, 3.0, latency=-0.1, is_latency_measured=False),
            option("a", 0, 4.0, latency=0.0),
            option("b", 1, 1.0, latency=-0.3, latency_deviation=0.02),
            option("b", 0, 4.0, latency=0.0),
        ),
        shapes={"a": "square", "b": "square"},
    )
    (known,) = found.timings.layers
    assert known == LayerLatency(
        shape="square",
        choice=LayerChoice(method="svd", ranks=(1,)),
        latency_ms=1.0,
        dense_ms=4.0,
        ratio_deviation=0.02 * 10 / 4,
    )
