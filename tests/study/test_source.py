"""The budget's bookkeeping: N means N, whatever fails, is lost, or is killed."""

from collections import Counter

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState as OptunaState

from ranksearch.database import Database
from ranksearch.errors import TooManyFailuresError
from ranksearch.records import TrialResult, TrialState, key_of
from ranksearch.study.mirror import OptunaMirror
from ranksearch.study.source import MAX_RETRIES, StudySource
from tests.study.conftest import Bench, Killed, pretend, study_record


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
    plans = Counter(row.spec.plan for row in rows if row.number not in superseded)
    assert max(plans.values()) == 1, "a plan was evaluated twice"
    study = optuna.load_study(study_name=name, storage=url)
    states = {row.number: row.state for row in rows}
    for trial in study.get_trials():
        wanted = {TrialState.COMPLETE: OptunaState.COMPLETE, TrialState.FAILED: OptunaState.FAIL}[states[trial.number]]
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
