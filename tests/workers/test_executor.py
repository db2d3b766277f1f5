"""What passes between a driver and its workers: a latency that is known, and what a lost worker left."""

import pytest
import torch

from ranksearch.outbox import Outbox
from ranksearch.records import (
    FinetuneConfig,
    LayerChoice,
    MeasureConfig,
    Plan,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.trial import run
from ranksearch.workbench import Workbench
from ranksearch.workers.executor import left_behind
from tests.workers.made import KNOWN

FINETUNE = FinetuneConfig(steps=1, precision="float32", layout="contiguous", threads=1, calibration_examples=64)
MEASURE = MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2)


def spec(choice: str = "spatial_svd:8") -> TrialSpec:
    plan = Plan({"conv1": LayerChoice.parse(choice)})
    return TrialSpec(study="s", plan=plan, seed=1, finetune=FINETUNE, measure=MEASURE)


@pytest.fixture
def bench(task, tmp_path, monkeypatch) -> Workbench:
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    return Workbench(task, torch.device("cpu"), outbox=Outbox(tmp_path))


def test_a_known_latency_is_not_measured(bench, monkeypatch):
    fresh = run(spec(), bench)
    monkeypatch.setattr("ranksearch.latency.measure", None)
    known = run(spec(), bench, KNOWN)
    assert known.state is TrialState.COMPLETE, known.reason
    assert known.measurement == KNOWN
    assert "measure" in fresh.seconds
    assert "measure" not in known.seconds
    assert known.score == fresh.score


@pytest.mark.parametrize("measured", [None, KNOWN])
def test_layers_that_run_in_two_ways_run_the_faster_one_measured_or_not(bench, monkeypatch, measured):
    monkeypatch.setattr("ranksearch.forwards._is_faster_contracted", lambda *_: True)
    result = run(spec("tt_conv:4x8x4"), bench, measured)
    weights = bench.outbox.weights(result.key)
    assert [bool(value) for name, value in weights.items() if name.endswith("_extra_state")] == [True]


def test_a_worker_lost_in_training_leaves_the_latency_it_measured(bench, monkeypatch):
    class Lost(BaseException):
        pass

    def lost(*_, **__):
        raise Lost

    monkeypatch.setattr("ranksearch.trial.train", lost)
    with pytest.raises(Lost):
        run(spec(), bench)
    found = left_behind(bench.outbox, key_of(spec()), "the worker was lost")
    assert found.measurement.identity["device"] == "cpu"
    assert found.measurement.samples is not None
    assert (found.state, found.reason, found.retryable) == (TrialState.FAILED, "the worker was lost", True)


def test_a_result_that_a_worker_left_counts_as_it_is(tmp_path):
    result = TrialResult(key="k", state=TrialState.FAILED, reason="ValueError: no")
    Outbox(tmp_path).put_result(result)
    assert left_behind(Outbox(tmp_path), "k", "lost") == result


@pytest.mark.parametrize("has_outbox", [False, True])
def test_a_worker_that_left_nothing_is_lost(tmp_path, has_outbox):
    lost = TrialResult(key="k", state=TrialState.FAILED, reason="lost", retryable=True)
    assert left_behind(Outbox(tmp_path) if has_outbox else None, "k", "lost") == lost
