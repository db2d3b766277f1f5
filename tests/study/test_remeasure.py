"""Trials measured again: the net that is measured, what is stored, what the tables then show."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ranksearch import latency, trial
from ranksearch.database import Database
from ranksearch.errors import ConfigError, MeasurementError, ModelError, NotFoundError
from ranksearch.latency import DeviceLock
from ranksearch.outbox import Outbox
from ranksearch.records import MeasureConfig, TrialState, key_of
from ranksearch.study import remeasure
from ranksearch.study.remeasure import front_and_near, measure_again, variants
from ranksearch.study.search import SearchConfig, run_search
from ranksearch.study.study import Study, files_folder
from ranksearch.trial import start
from tests.study.conftest import measurement
from tests.toy import ToyNet, toy_task

BUDGET = 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task():
    return toy_task()


@pytest.fixture
def study(tmp_path, task, monkeypatch):
    """Nobody looks at these latencies: a short warm-up will do, and nobody else's measurement is waited for."""
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return run_search(
        task,
        SearchConfig(
            budget=BUDGET,
            study="toy",
            storage=f"sqlite:///{tmp_path}/ranksearch.db",
            executor="inline",
            profile_seconds=0,
            finetune={"steps": 2, "precision": "float32", "layout": "contiguous", "threads": 1},
            measure=MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2),
        ),
    )


@pytest.fixture
def measured(monkeypatch):
    """Every call of `measure_fresh`; what it gives has the identity of what was asked for and a ratio to know it by."""
    calls = []

    def fake(dense, candidate, example, config, *, device, seed, lock):
        calls.append((dense, candidate, example, config, seed, lock))
        found = measurement(0.001 * len(calls))
        return replace(found, identity=latency.identity(config, device), batch_size=config.batch_size)

    monkeypatch.setattr(remeasure, "measure_fresh", fake)
    return calls


def again(study, numbers, task, **given):
    configs = variants(study.record.measure, **given)
    return list(measure_again(study, numbers, configs, task=task, device="cpu"))


def stored(study: Study) -> list[tuple[int, str, float]]:
    from sqlalchemy import text

    query = """SELECT t.number, m.identity, m.ratio FROM rs_measurement m JOIN rs_trial t ON t.id = m.trial_id
               WHERE m.kind = 'fresh' ORDER BY m.id"""
    with Database.open(study.storage) as database, database.reading() as connection:
        return [
            (n, json.loads(identity)["batch_size"], ratio) for n, identity, ratio in connection.execute(text(query))
        ]


def test_what_was_measured_as_the_study_measures_is_shown_and_the_rest_is_kept(study, task, measured):
    before = study.trials().latency_ratio
    found = again(study, [1, 3], task, batch_sizes=[1, 2, 32])
    assert [(f.trial, f.fresh.batch_size) for f in found] == [(n, size) for n in (1, 3) for size in (1, 2, 32)]
    assert stored(study) == [(f.trial, str(f.fresh.batch_size), f.fresh.ratio) for f in found]
    after = study.trials().latency_ratio
    own = {f.trial: f.fresh.ratio for f in found if f.fresh.batch_size == 2}  # the study's
    assert after.to_dict() == {**before.to_dict(), **own}
    assert [f.searched for f in found] == [study.trial(f.trial).result.measurement for f in found]
    assert study.trial(1).result.measurement.ratio == before[1]  # what Optuna keeps


def test_each_is_measured_beside_the_dense_model_with_the_device_s_lock(study, task, measured):
    again(study, [0, 2], task, threads=2, max_seconds=3.0)
    for dense, candidate, example, config, _, lock in measured:
        assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), task.model.parameters(), strict=True))
        assert candidate is not dense
        assert torch.equal(example, task.example_input)
        assert config == replace(study.record.measure, threads=2, max_seconds=3.0, half_width=remeasure.HALF_WIDTH)
        assert lock == DeviceLock("cpu")
    assert [seed for *_, seed, _ in measured] == [study.trial(n).spec.seed for n in (0, 2)]


def test_the_net_is_the_trained_one_and_without_its_weights_one_of_its_form(study, task, measured, monkeypatch):
    model, key = study.load(1, task=task), key_of(study.trial(1).spec)
    files = Outbox(files_folder(study.storage, study.name))
    files.put_weights(key, model)
    again(study, [1], task)
    files.keep_weights(set())
    monkeypatch.setattr("ranksearch.trial.train", lambda *_: pytest.fail("trained again"))
    again(study, [1], task)
    trained, untrained = (call[1].state_dict() for call in measured)
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())
    assert {name: value.shape for name, value in untrained.items()} == {k: v.shape for k, v in trained.items()}


def test_without_weights_the_faster_forward_is_chosen_as_in_the_trial(study, task, measured, monkeypatch):
    from torch import nn

    class Either(nn.Module):
        contracted = False

    def made(spec, bench):
        net = start(spec, bench)
        net.either = Either()
        return net

    Outbox(files_folder(study.storage, study.name)).keep_weights(set())
    monkeypatch.setattr(remeasure, "start", made)
    monkeypatch.setattr(trial, "choose_forwards", lambda net, inputs, known: {"either": True})
    again(study, [1], task)
    assert measured[0][1].either.contracted


def test_what_cannot_be_measured_is_told_and_the_others_are(study, task, measured, monkeypatch, caplog):
    fake = remeasure.measure_fresh

    def sometimes(*arguments, **given):
        if arguments[3].batch_size == 1:
            raise MeasurementError("too hot")
        return fake(*arguments, **given)

    monkeypatch.setattr(remeasure, "measure_fresh", sometimes)
    with caplog.at_level(logging.WARNING, "ranksearch"):
        found = again(study, [1, 2], task, batch_sizes=[1, 2])
    assert [(f.trial, f.fresh.batch_size) for f in found] == [(1, 2), (2, 2)]
    assert "trial 1, batch size 1: too hot" in caplog.text
    assert len(stored(study)) == 2


def test_nothing_is_measured_where_something_is_wrong(study, task, measured):
    with pytest.raises(NotFoundError):
        again(study, [1, 99], task)
    with pytest.raises(ModelError, match="another model"):
        again(study, [1], toy_task(ToyNet()))
    with pytest.raises(ConfigError, match="cuda-graph"):
        again(study, [1], task, backend="cuda-graph")
    with Database.open(study.storage) as database:
        running = {"number": BUDGET, "state": TrialState.RUNNING, "result": None, "finished": None}
        database.start_trial(study.name, replace(database.trial(study.name, 1), **running))
    with pytest.raises(ModelError, match=f"trial {BUDGET} is running"):
        again(study, [1, BUDGET], task)
    assert measured == []


def test_the_front_and_what_is_near_it(study, monkeypatch):
    with Database.open(study.storage) as database:
        identity = database.trial(study.name, 0).result.measurement.identity
        for number, ratio in enumerate((1.0, 0.50, 0.51, 0.53)):
            database.add_measurement(study.name, number, replace(measurement(ratio), identity=identity))
        for number in range(BUDGET):
            _set_accuracy(database, number, 0.9 if number == 0 else 0.8)
    assert front_and_near(study, 0) == [0, 1]
    assert front_and_near(study) == [0, 1, 2]
    assert front_and_near(study, 0.1) == [0, 1, 2, 3]


def _set_accuracy(database, number, accuracy):
    from sqlalchemy import update

    from ranksearch.database import schema

    table = schema.trial
    database.write(lambda c: c.execute(update(table).where(table.c.number == number).values(accuracy=accuracy)))


@pytest.mark.parametrize("given", [{"threads": 0}, {"backend": "eagr"}, {"max_seconds": 0.0}, {"batch_sizes": [-1]}])
def test_flags_that_say_nothing_sensible(given):
    with pytest.raises(ConfigError, match="must be"):
        variants(MeasureConfig(), **given)


def test_without_flags_all_is_as_in_the_study_but_for_how_long():
    measure = MeasureConfig(batch_size=3, threads=2, layout="channels_last", dtype="bfloat16")
    (found,) = variants(measure)
    assert found == replace(measure, half_width=0.005, max_seconds=15.0)


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 0), (2.0, 1), (13.0, 1), (14.0, 2), (20.0, 2), (21.0, 3)])
def test_what_fits_into_the_time_is_measured_again(monkeypatch, seconds, expected):
    """Each takes seven seconds, which is known from the first one on."""
    clock = [100.0]

    def slowly(record, configs, bench):
        clock[0] += 7.0
        yield measurement(0.5)

    monkeypatch.setattr(remeasure, "_measured", slowly)
    monkeypatch.setattr(remeasure, "perf_counter", lambda: clock[0])
    wanted = [(SimpleNamespace(number=number), None) for number in range(5)]
    found = remeasure.measured_within(None, wanted, seconds)
    assert [number for number, _ in found] == list(range(expected))
