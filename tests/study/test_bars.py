"""Trials that are stopped, in a search: they count, are told, are learnt from, and never stand on the front."""

from dataclasses import replace

import pytest

from ranksearch.database import Database
from ranksearch.records import ONE_SHOT, Bar, TrialState
from ranksearch.space import SearchSpace
from ranksearch.study.bars import bar_of
from ranksearch.study.mirror import expected_of
from ranksearch.study.sampler import make_sampler
from ranksearch.study.summary import RULES, pruned
from tests.study.conftest import pretend
from tests.study.test_source import check

BUDGET = 60


@pytest.fixture
def searched(bench):
    bench.prune_below = 0.05
    bench.drive(BUDGET)
    return bench


def records(bench):
    with bench.database() as database:
        return database.trials("toy")


def stopped(bench):
    return [record for record in records(bench) if record.state is TrialState.PRUNED]


def test_stopped_trials_are_trials_of_the_budget_with_a_reason_and_no_accuracy(searched):
    check(searched, BUDGET)
    assert stopped(searched)
    with searched.database() as database:
        frame, front = database.trials_frame("toy"), database.pareto_frame("toy")
    rows = frame[frame.state == "pruned"]
    assert rows.accuracy.isna().all()
    assert rows.latency_ratio.notna().all()
    assert rows.reason.str.contains("one-shot").all()
    assert not set(rows.index) & set(front.index)


def test_none_of_the_stopped_would_have_joined_the_front(searched):
    """Here what is lost in the end is a half of what one shot loses, nearly."""
    with searched.database() as database:
        front = database.pareto_frame("toy")
    for record in stopped(searched):
        end = pretend(record.spec, searched.study)
        assert ((front.latency_ratio <= end.measurement.ratio) & (front.accuracy >= end.score.value)).any()


def test_rules_and_the_dense_model_are_never_stopped(searched):
    assert all(not record.origin.startswith((*RULES, "dense")) for record in stopped(searched))
    of_rules = [record for record in records(searched) if record.origin.startswith(RULES)]
    assert of_rules
    assert {record.state for record in of_rules} == {TrialState.COMPLETE}


def test_zero_stops_nothing(bench):
    bench.drive(BUDGET)
    assert not stopped(bench)


def test_a_stopped_trial_is_not_run_again_and_a_result_left_behind_is_taken(searched):
    before = records(searched)
    searched.drive(BUDGET)
    assert records(searched) == before
    budget = BUDGET
    while len(stopped(searched)) == len([r for r in before if r.state is TrialState.PRUNED]):
        budget += 1
        with (
            searched.database() as database
        ):  # every driver is killed between its worker's end and its own hearing of it
            job = searched.source(database, budget).suggest()
        searched.outbox.put_result(pretend(job.spec, searched.study, job.bar))
        searched.drive(budget)
    check(searched, budget)
    assert stopped(searched)[-1].number == budget - 1


def test_the_latency_of_a_stopped_trial_is_known(searched):
    with searched.database() as database:
        for record in stopped(searched):
            found = database.find_measurement(searched.study, record.spec.plan)
            assert found is not None
            assert found.ratio == record.result.measurement.ratio


def test_samplers_learn_what_was_expected(searched):
    space = SearchSpace.of(searched.study)
    history = records(searched)
    sampler = make_sampler("additive", space, searched.study.objectives, seed=0, history=history)
    sampler.propose()
    seen = sampler._study.sampler._surrogate.seen()
    assert len(seen) == BUDGET
    (record, *_) = stopped(searched)
    assert expected_of(record, searched.study.objectives)[0] in seen[:, 0]


def bar(bench, origin="sampler", below=0.05) -> Bar | None:
    trials = {record.number: record for record in records(bench)}
    record = replace(trials[max(trials)], origin=origin)
    return bar_of(record, trials, [0, 3], bench.study.objectives, below)


def test_a_bar_tells_how_all_others_ended(bench):
    bench.drive(20)
    found = bar(bench)
    assert Bar.from_json(found.to_json()) == found
    dense, *rest = records(bench)
    assert found.dense_accuracy == dense.result.score.value
    assert [accuracy for _, accuracy in found.front] == [records(bench)[n].result.score.value for n in (0, 3)]
    assert len(found.finished[ONE_SHOT]) == len(rest)
    for record, (then, end) in zip(rest, found.finished[ONE_SHOT], strict=True):
        assert found.accuracy(then) == pytest.approx(record.result.oneshot.value)
        assert found.accuracy(end) == pytest.approx(record.result.score.value)
    assert bar(bench, origin="seed:uniform-0.5").below == 0
    assert bar(bench, origin="seed:knapsack-0.5").below == 0.05
    assert bar(bench, origin="putback:3") is None
    assert bar(bench, below=0.0) is None


def test_what_stopping_saves_is_told(searched):
    with Database.open(searched.url) as database:
        told = pruned(database.trials_frame("toy"))
    assert told.num == len(stopped(searched))
    assert told.seconds_saved == pytest.approx(0.1 * told.num)
