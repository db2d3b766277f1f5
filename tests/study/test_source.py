"""The budget's bookkeeping: N means N, whatever fails, is lost, or is killed."""

import tempfile
from collections import Counter
from dataclasses import replace
from statistics import median

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState

from ranksearch.database import Database
from ranksearch.errors import TooManyFailuresError
from ranksearch.records import FinetuneConfig, MeasureConfig, Plan, TrialResult, TrialState, key_of
from ranksearch.study.mirror import OPTUNA_STATE, OptunaMirror
from ranksearch.study.search import SearchConfig, run_search
from ranksearch.study.source import LOST_IN_DRIVER, LOST_WITH_DRIVER, MAX_RETRIES, StudySource
from tests.study.conftest import Bench, Killed, measurement, pretend, study_record


def lost(spec, study):
    return TrialResult(key=key_of(spec), state=TrialState.FAILED, reason="lost", retryable=True)


def failed(spec, study):
    return TrialResult(key=key_of(spec), state=TrialState.FAILED, reason="ValueError: no")


def check(bench: Bench, budget: int) -> None:
    check_study(bench.url, bench.study.name, budget)


def check_study(url: str, name: str, budget: int) -> None:
    """What every promise comes down to, read from the database alone."""
    with Database.open(url, create=False) as database:
        rows = database.trials(name)
        logical = database.trials_frame(name)
    superseded = {row.retry_of for row in rows} - {None}
    assert len(logical) == budget
    assert {row.number for row in rows} - superseded == set(logical.index)
    assert [row.number for row in rows] == list(range(len(rows)))
    assert not [row for row in rows if row.state is TrialState.RUNNING]
    retries = Counter(row.retry_of for row in rows if row.retry_of is not None)
    assert all(count == 1 for count in retries.values()), "a trial was retried twice"
    plans = Counter((row.spec.plan, row.spec.finetune) for row in rows if row.number not in superseded)
    assert max(plans.values()) == 1, "a plan was evaluated twice"
    study = optuna.load_study(study_name=name, storage=url)
    states = {row.number: row.state for row in rows}
    for trial in study.get_trials():
        wanted = OPTUNA_STATE[states[trial.number]]
        assert trial.state is wanted
        if wanted is OptunaState.COMPLETE:
            row = rows[trial.number].result
            assert trial.values == [row.measurement.ratio, row.score.value]
    assert len(study.get_trials()) == len(rows)


@pytest.mark.parametrize("concurrent", [1, 3])
def test_a_budget_of_n_is_n_trials_and_the_dense_model_is_the_first(bench, concurrent):
    bench.drive(30, concurrent=concurrent)
    check(bench, 30)
    with bench.database() as database:
        origins = [row.origin for row in database.trials("toy")]
    assert origins[0] == "dense"
    num_seeds = len(bench.study.seeds)
    assert all(o.startswith("seed:") for o in origins[1:num_seeds])
    assert set(origins[num_seeds:]) == {"sampler"}


def test_a_larger_budget_extends_and_the_same_adds_nothing(bench):
    bench.drive(16)
    bench.drive(16)
    check(bench, 16)
    bench.drive(20)
    check(bench, 20)


def test_lost_trials_are_retried_and_counted_once(bench):
    seen = Counter()

    def flaky(spec, study):
        seen[spec.plan] += 1
        return lost(spec, study) if seen[spec.plan] <= MAX_RETRIES and len(spec.plan) % 2 else pretend(spec, study)

    bench.drive(20, concurrent=2, outcome=flaky)
    check(bench, 20)
    with bench.database() as database:
        assert set(database.trials_frame("toy").state) == {"complete"}


def test_a_trial_that_is_always_lost_fails_for_good_after_its_retries(bench):
    poison = bench.study.seeds[3].plan
    runs = Counter()

    def outcome(spec, study):
        runs[spec.plan] += 1
        return lost(spec, study) if spec.plan == poison else pretend(spec, study)

    bench.drive(20, outcome=outcome)
    check(bench, 20)
    assert runs[poison] == 1 + MAX_RETRIES
    with bench.database() as database:
        frame = database.trials_frame("toy")
    assert list(frame.state).count("failed") == 1


def test_a_trial_that_fails_by_itself_is_not_repeated(bench):
    bench.drive(20, outcome=lambda spec, study: failed(spec, study) if len(spec.plan) == 1 else pretend(spec, study))
    check(bench, 20)
    with bench.database() as database:
        assert {row.attempt for row in database.trials("toy")} == {0}


def test_too_many_failures_end_the_run_and_resuming_goes_on(bench):
    bench.max_failures = 3
    with pytest.raises(TooManyFailuresError, match=r"4 trials failed.*ValueError: no"):
        bench.drive(20, outcome=lambda spec, study: failed(spec, study) if spec.plan else pretend(spec, study))
    bench.max_failures = 20
    bench.drive(20)
    check(bench, 20)


def test_a_dense_model_that_fails_ends_the_run_at_once(bench):
    with pytest.raises(TooManyFailuresError, match="dense model"):
        bench.drive(20, outcome=failed)


# --- kills: the driver stops between any two of its writes ---

WRITES = [("database", "start_trial"), ("mirror", "start"), ("database", "finish_trial"), ("mirror", "finish")]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.tuples(st.sampled_from(WRITES), st.booleans(), st.integers(1, 7)), min_size=1, max_size=6))
def test_a_driver_killed_around_any_write_leaves_a_study_that_resumes(tmp_path_factory, kills):
    bench = Bench(tmp_path_factory.mktemp("kills"), study_record(num_layers=2))
    for (part, name), before, countdown in kills:
        owner = OptunaMirror if part == "mirror" else None
        with pytest.MonkeyPatch.context() as patch, bench.database() as database:
            target = owner or type(database)
            original, left = getattr(target, name), [countdown]

            def killing(self, *args, original=original, left=left, before=before):
                left[0] -= 1
                if left[0] == 0 and before:
                    raise Killed
                original(self, *args)
                if left[0] == 0:
                    raise Killed

            patch.setattr(target, name, killing)
            try:
                source = bench.source(database, 15)
                while (job := source.suggest()) is not None:
                    result = pretend(job.spec, bench.study)
                    if job.number % 2:
                        bench.outbox.put_result(result)
                    source.complete(job, result)
            except Killed:
                continue
    bench.drive(15)
    check(bench, 15)


def test_a_result_its_worker_left_behind_is_adopted_not_repeated(bench):
    with bench.database() as database:
        source = bench.source(database, 5)
        for _ in range(3):
            job = source.suggest()
        bench.outbox.put_result(pretend(job.spec, bench.study))
    ran = []

    def outcome(spec, study):
        ran.append(spec.plan)
        return pretend(spec, study)

    bench.drive(5, outcome=outcome)
    check(bench, 5)
    assert job.spec.plan not in ran
    with bench.database() as database:
        rows = database.trials("toy")
    assert [row.result.reason for row in rows[:2]] == ["the driver ended while it ran"] * 2
    assert rows[2].state is TrialState.COMPLETE


@pytest.mark.parametrize("in_driver", [False, True])
def test_a_trial_lost_with_its_driver_costs_an_attempt_only_where_it_may_be_to_blame(bench, in_driver):
    bench.in_driver = in_driver
    bench.drive(3)
    for _ in range(6):  # six drivers die while a trial runs
        with bench.database() as database:
            bench.source(database, 4).suggest()
    bench.drive(4)
    check(bench, 4)
    with bench.database() as database:
        rows = database.trials("toy")
        states = list(database.trials_frame("toy").state)
    assert states == ["complete"] * 3 + ["failed" if in_driver else "complete"]
    assert max(row.attempt for row in rows) == (MAX_RETRIES if in_driver else 0)


def test_a_stale_result_of_an_earlier_attempt_is_not_adopted(bench):
    with bench.database() as database:
        source = bench.source(database, 5)
        job = source.suggest()
        bench.outbox.put_result(failed(job.spec, bench.study))
        source.complete(job, lost(job.spec, bench.study))
        retry = source.suggest()
        assert retry.spec == job.spec
        assert bench.outbox.result(key_of(job.spec)) is None


def test_weights_are_kept_for_the_front_alone(bench):
    from torch import nn

    def outcome(spec, study):
        bench.outbox.put_weights(key_of(spec), nn.Linear(1, 1))
        return pretend(spec, study)

    bench.drive(25, outcome=outcome)
    with bench.database() as database:
        front = {key_of(row.spec) for row in database.trials("toy") if row.number in database.pareto_frame("toy").index}
    assert {path.stem for path in bench.folder.glob("*.safetensors")} == front


def test_a_space_with_fewer_plans_than_the_budget_ends_when_it_is_empty(tmp_path):
    bench = Bench(tmp_path, study_record(num_layers=1))
    bench.drive(50)
    check(bench, 11)  # ten options and the dense one


def test_the_source_is_not_exhausted_while_a_running_trial_may_come_back(bench):
    with bench.database() as database:
        source = bench.source(database, 1)
        job = source.suggest()
        assert source.suggest() is None
        assert not source.exhausted
        source.complete(job, lost(job.spec, bench.study))
        assert not source.exhausted
        again = source.suggest()
        assert isinstance(source, StudySource)
        source.complete(again, pretend(again.spec, bench.study))
        assert source.exhausted


# --- a plan is measured once ---


def lost_while_training(spec):
    """What its worker had left by then."""
    return TrialResult(key=key_of(spec), state=TrialState.RUNNING, measurement=measurement(0.5))


@pytest.mark.parametrize("in_driver", [False, True])
def test_a_retry_takes_over_the_latency_that_was_measured_before_its_driver_was_killed(bench, in_driver):
    bench.in_driver = in_driver
    bench.drive(1)
    with bench.database() as database:
        job = bench.source(database, 2).suggest()
        assert job.measurement is None
        bench.outbox.put_result(lost_while_training(job.spec))
    with bench.database() as database:
        retry = bench.source(database, 2).suggest()
        lost = database.trial("toy", job.number)
    assert lost.state is TrialState.FAILED
    assert lost.result.reason == (LOST_IN_DRIVER if in_driver else LOST_WITH_DRIVER)
    assert retry.spec == job.spec
    assert retry.measurement.ratio == 0.5
    assert retry.measurement.conditions["reused from"] == f"toy/{job.number}"


def test_trials_that_differ_in_their_recipe_alone_are_measured_once_and_the_dense_model_in_every_study(tmp_path):
    first = Bench(tmp_path, study_record(num_layers=1, recipes=("short", "long")))
    second = Bench(tmp_path, study_record(num_layers=1, name="second"))
    given = []
    for bench in (first, second):
        with bench.database() as database:
            source = bench.source(database, 12)
            while (job := source.suggest()) is not None:
                given.append((bench.study.name, job.spec.plan, job.measurement))
                result = pretend(job.spec, bench.study)
                source.complete(job, replace(result, measurement=job.measurement or result.measurement))
    measured = [(study, plan) for study, plan, known in given if known is None]
    assert len(set(measured)) == len(measured), "measured twice in one study"
    before, after = ({plan for study, plan in measured if study == name} for name in ("toy", "second"))
    assert before & after == {Plan()}
    assert len(before) < 12, "two recipes of one plan"


def search(task, folder, monkeypatch, study, **measure):
    """A real one, in this process. Gives its trials, and how many of them were measured."""
    from ranksearch import latency

    measured, original = [], latency.measure

    def calm(*args, **kwargs):
        """Other work on this machine must not decide what is taken over."""
        measured.append(1)
        return replace(original(*args, **kwargs), flags=())

    monkeypatch.setattr(latency, "measure", calm)
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))  # nobody else's measurement is waited for
    quick = {"batch_size": 2, "max_seconds": 0.05, "min_blocks": 2, "iterations_per_block": 2}
    url = f"sqlite:///{folder / 'shared.db'}"
    config = SearchConfig(
        budget=3,
        study=study,
        storage=url,
        executor="inline",
        profile_seconds=0,
        finetune=FinetuneConfig(steps=1, precision="float32", layout="contiguous", threads=1),
        measure=MeasureConfig(**quick | measure),
    )
    run_search(task, config)
    monkeypatch.undo()
    with Database.open(url) as database:
        samples = [database.samples(study, number) for number in range(3)]
        return database.trials(study), len(measured), samples


def test_a_second_study_of_a_net_measures_nothing_but_its_dense_model(task, tmp_path, monkeypatch):
    wall = {"threads": 2}  # of one thread that shares its core, ratios are of CPU times, and samples are not
    first, num_first, samples = search(task, tmp_path, monkeypatch, "first", **wall)
    assert num_first == 3
    assert all(len(found) == 1 for found in samples)
    for trial, found in zip(first, samples, strict=True):
        (kept,), measured = found.values(), trial.result.measurement
        assert sum(map(len, kept.dense_ms)) == measured.num_samples
        ratios = [median(own) / median(dense) for dense, own in zip(kept.dense_ms, kept.candidate_ms, strict=True)]
        assert median(ratios) == pytest.approx(measured.ratio, rel=1e-6), "the blocks are those that were compared"
    again, num_again, samples = search(task, tmp_path, monkeypatch, "second", **wall)
    assert num_again == 1
    assert ["measure" in trial.result.seconds for trial in again] == [True, False, False]
    assert [len(found) for found in samples] == [1, 0, 0]
    for old, new in zip(first[1:], again[1:], strict=True):
        assert new.spec.plan == old.spec.plan
        assert new.result.measurement.conditions["reused from"] == f"first/{old.number}"
        assert new.result.value_of("latency") == old.result.value_of("latency")
        assert new.result.score == old.result.score
    _, num_with_two_threads, _ = search(task, tmp_path, monkeypatch, "threads", threads=1)
    assert num_with_two_threads == 3
