"""The last of a budget is the front trained for longer, each plan once, whatever is killed in between."""

from dataclasses import replace

import pytest

from ranksearch.errors import ConfigError
from ranksearch.records import SeedPlan, TrialState, key_of
from ranksearch.study.longer import num_longer, the_next_longer
from ranksearch.study.search import SearchConfig
from tests.study.conftest import pretend
from tests.study.test_source import check, lost

BUDGET = 40


@pytest.fixture
def bench(bench):
    bench.longer = 4
    return bench


def search(bench):
    """All of the budget but its last tenth."""
    bench.longer = 0
    bench.drive(BUDGET - 4)
    bench.longer = 4


def records(bench):
    with bench.database() as database:
        return database.trials("toy")


def longer(bench):
    return [record for record in records(bench) if record.origin.startswith("longer:")]


def whose(bench, record):
    return records(bench)[int(record.origin.removeprefix("longer:"))]


@pytest.mark.parametrize("concurrent", [1, 3])
def test_the_last_tenth_is_the_front_s_plans_trained_for_longer(bench, concurrent):
    bench.drive(BUDGET, concurrent=concurrent)
    check(bench, BUDGET)
    assert [record.number for record in longer(bench)] == [36, 37, 38, 39]
    for record in longer(bench):
        short = whose(bench, record)
        finetune = replace(short.spec.finetune, steps=4 * short.spec.finetune.steps)
        assert record.spec == replace(short.spec, finetune=finetune)
        assert record.recipe is None
        assert record.result.score.value > short.result.score.value
    assert len({record.spec.plan for record in longer(bench)}) == num_longer(BUDGET)


@pytest.mark.parametrize(("lost", "times"), [(0.0, 1), (0.03, 1), (0.1, 2), (0.6, 4)])
def test_where_loss_decides_it_is_longer_than_that_and_never_nothing(bench, lost, times):
    search(bench)
    trials = {record.number: record for record in records(bench)}
    dense = trials[0].result.score.value
    with bench.database() as database:
        number = max(set(database.pareto_frame("toy").index) - {0}, key=lambda n: -trials[n].result.score.value)
    short = trials[number]
    oneshot = replace(short.result.score, value=dense * (1 - lost - 1e-9))
    trials[number] = replace(
        short,
        spec=replace(short.spec, finetune=replace(short.spec.finetune, allocation="by_loss")),
        result=replace(short.result, oneshot=oneshot),
    )
    origin, spec = the_next_longer(trials, [number], 4)
    assert origin == f"longer:{number}"
    assert spec.finetune == replace(short.spec.finetune, steps=4 * times * short.spec.finetune.steps)


def test_what_lost_most_comes_first_and_what_lost_nothing_not_at_all(bench):
    search(bench)
    trials = {record.number: record for record in records(bench)}
    with bench.database() as database:
        front = list(database.pareto_frame("toy").index)
    order = []
    while (found := the_next_longer(trials, front, 4)) is not None:
        origin, spec = found
        order.append(int(origin.removeprefix("longer:")))
        number = max(trials) + 1
        trials[number] = replace(trials[order[-1]], number=number, origin=origin, spec=spec, recipe=None)
        front.append(number)
    accuracies = [trials[number].result.score.value for number in order]
    assert accuracies == sorted(accuracies)
    assert 0 not in order
    assert len(order) == len(set(order))
    near = [number for number in front if trials[number].result.score.value > 0.995 * trials[0].result.score.value]
    assert not set(near) & set(order)


def test_the_ruined_come_last(bench):
    search(bench)
    trials = {record.number: record for record in records(bench)}
    with bench.database() as database:
        front = list(database.pareto_frame("toy").index)
    first = int(the_next_longer(trials, front, 4)[0].removeprefix("longer:"))
    result = trials[first].result
    ruined = replace(result, score=replace(result.score, value=0.2))
    trials[first] = replace(trials[first], result=ruined)
    assert the_next_longer(trials, front, 4)[0] != f"longer:{first}"
    assert the_next_longer(trials, [first], 4)[0] == f"longer:{first}"


def test_a_run_killed_among_them_goes_on(bench):
    search(bench)
    for _ in range(3):  # drivers that die while such a trial runs, or before they hear of its end
        with bench.database() as database:
            job = bench.source(database, BUDGET).suggest()
        assert job.spec.finetune.steps == 80
    bench.outbox.put_result(pretend(job.spec, bench.study))
    bench.drive(BUDGET)
    check(bench, BUDGET)
    kept = [record for record in longer(bench) if record.state is TrialState.COMPLETE]
    assert len(kept) == len({record.origin for record in kept}) == 4
    assert {(r.spec.finetune.steps, r.recipe) for r in longer(bench)} == {(80, None)}


def test_a_lost_one_is_repeated_as_it_was(bench):
    tries = []

    def outcome(spec, study):
        tries.append(key_of(spec))
        is_first = spec.finetune.steps == 80 and tries.count(key_of(spec)) == 1
        return lost(spec, study) if is_first else pretend(spec, study)

    bench.drive(BUDGET, outcome=outcome)
    check(bench, BUDGET)
    assert [record.attempt for record in longer(bench)] == [0, 1] * 4


def test_a_larger_budget_trains_more_of_them(bench):
    bench.drive(BUDGET)
    bench.drive(2 * BUDGET)
    check(bench, 2 * BUDGET)
    numbers = [record.number for record in longer(bench)]
    assert numbers[:4] == [36, 37, 38, 39]
    assert numbers[4:] == list(range(72, 72 + len(numbers[4:])))
    assert len(numbers) > 4
    assert len({record.origin for record in longer(bench)}) == len(numbers)


@pytest.mark.parametrize(("times", "budget"), [(0, BUDGET), (4, 19)])
def test_none_are_where_none_are_wanted_or_the_budget_is_small(bench, times, budget):
    bench.longer = times
    bench.drive(budget)
    assert not longer(bench)


def test_latency_is_not_measured_again(bench):
    search(bench)
    with bench.database() as database:
        job = bench.source(database, BUDGET).suggest()
    assert job.measurement.ratio == whose(bench, records(bench)[job.number]).result.measurement.ratio


def test_what_is_put_back_is_trained_as_long(bench):
    bench.drive(BUDGET)
    record = longer(bench)[0]
    plan = type(record.spec.plan)(list(record.spec.plan.items())[:1])
    with bench.database() as database:
        source = bench.source(database, BUDGET, [SeedPlan(origin=f"putback:{record.number}", plan=plan)])
        job = source.suggest()
        source.complete(job, pretend(job.spec, bench.study))
    assert job.spec == replace(record.spec, plan=plan)
    assert records(bench)[-1].recipe is None


@pytest.mark.parametrize("times", [-1, 1])
def test_as_long_is_not_longer(times):
    with pytest.raises(ConfigError, match="2 or more times"):
        SearchConfig(longer=times)
