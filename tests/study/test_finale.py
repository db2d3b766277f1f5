"""What follows a run's last trial: what is measured again and once only, what is put back, what the budget counts."""

import logging
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch import latency
from ranksearch.database import Database
from ranksearch.latency.layers import layer_seconds
from ranksearch.records import MeasureConfig, Plan
from ranksearch.space import load_space
from ranksearch.study import finale, remeasure
from ranksearch.study.search import SearchConfig, run_search
from tests.study.conftest import measurement
from tests.toy import toy_task

BUDGET = 5
SLOW = "conv2"


@pytest.fixture(scope="module")
def task():
    return toy_task()


@pytest.fixture
def search(tmp_path, task, monkeypatch):
    """A run with enough time for the front, whose latencies nobody looks at."""
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(finale, "SHARE", 1e6)
    stages = []

    class Listener:
        def on_stage(self, text):
            stages.append(text)

        def on_start(self, study, trials, budget):
            pass

        def on_trial(self, trial):
            pass

    def run(budget=BUDGET, objectives=("latency", "accuracy"), **measure):
        quick = {"batch_size": 2, "max_seconds": 0.05, "min_blocks": 2, "iterations_per_block": 2}
        config = SearchConfig(
            budget=budget,
            study="toy",
            storage=f"sqlite:///{tmp_path}/ranksearch.db",
            executor="inline",
            profile_seconds=0,
            space=load_space("default").model_copy(update={"objectives": objectives}),
            finetune={"steps": 2, "precision": "float32", "layout": "contiguous", "threads": 1},
            measure=MeasureConfig(**quick, **measure),
        )
        return run_search(task, config, Listener()), stages

    return run


@pytest.fixture
def fresh(monkeypatch):
    """What fresh processes are asked to measure; what they say is made up."""
    asked, ratio = [], [0.5]

    def fake(dense, candidate, example, config, *, device, seed, lock):
        asked.append(config)
        found = measurement(ratio[0])
        return replace(found, identity=latency.identity(config, device), batch_size=config.batch_size)

    monkeypatch.setattr(remeasure, "measure_fresh", fake)
    return asked


@pytest.fixture
def slow_layer(monkeypatch):
    """One layer that is not faster when small; the rival without it has this ratio to its trial."""
    told = {"ratio": 0.8, "seconds": 1.0}

    def looked(models, names, inputs):
        times = dict.fromkeys(names, 1.0)
        return [times, {name: told["seconds"] if name == SLOW else 0.5 for name in names}]

    monkeypatch.setattr(finale, "layer_seconds", looked)
    monkeypatch.setattr(finale, "measure_fresh", lambda *_, **__: measurement(told["ratio"]))
    return told


def measured_again(study):
    with Database.open(study.storage) as database:
        return [(number, found.batch_size) for number, found in database.fresh_measurements(study.name)]


def put_back(study):
    trials = study.trials()
    return trials[trials.origin.str.startswith("putback:")]


@pytest.fixture
def nothing_slow(monkeypatch):
    monkeypatch.setattr(finale, "_rivals", lambda *_: [])


@pytest.mark.usefixtures("nothing_slow")
def test_the_front_and_what_is_near_is_measured_again_once(search, fresh):
    study, _ = search()
    numbers = [number for number, _ in measured_again(study)]
    front = study.pareto()
    assert set(front.index[front.origin != "dense"]) <= set(numbers)
    assert 0 not in numbers
    assert len(numbers) == len(set(numbers))
    assert all(study.trials().latency_ratio[number] == 0.5 for number in numbers)
    assert {(config.half_width, config.max_seconds) for config in fresh} == {(remeasure.HALF_WIDTH, finale.MAX_SECONDS)}
    search()
    assert [number for number, _ in measured_again(study)] == numbers


@pytest.mark.usefixtures("nothing_slow")
def test_the_front_is_measured_in_every_batch_size(search, fresh):
    study, _ = search(also_batch_sizes=(1, 4))
    found = measured_again(study)
    own = {number for number, size in found if size == 2}
    for size in (1, 4):
        others = {number for number, other in found if other == size}
        assert others
        assert others <= own
    assert study.trials().latency_ratio[max(own)] == 0.5
    search(also_batch_sizes=(1, 4))
    assert measured_again(study) == found


@pytest.mark.usefixtures("nothing_slow")
def test_without_time_nothing_is_measured_again_and_that_is_said(search, fresh, monkeypatch, caplog):
    monkeypatch.setattr(finale, "SHARE", 0.0)
    with caplog.at_level(logging.INFO):
        study, _ = search()
    assert fresh == []
    assert f"bench --front --study {study.name}" in caplog.text


def test_a_layer_that_costs_time_is_put_back_outside_the_budget(search, fresh, slow_layer):
    study, stages = search()
    found = put_back(study)
    assert len(found) >= 1
    for number, origin in found.origin.items():
        parent = study.trial(int(origin.removeprefix("putback:"))).spec
        own = study.trial(number).spec
        assert SLOW in parent.plan
        assert own.plan == Plan({name: choice for name, choice in parent.plan.items() if name != SLOW})
        assert replace(own, plan=parent.plan) == parent
    assert any(f"1.25 times as fast with {SLOW} dense" in stage for stage in stages)
    assert len(study.trials()) == BUDGET + len(found)
    more, _ = search(budget=BUDGET + 2)
    searched = more.trials()
    assert (~searched.origin.str.startswith("putback:")).sum() == BUDGET + 2


@pytest.mark.parametrize("fault", [{"ratio": 1.05}, {"seconds": 0.9}], ids=str)
def test_what_is_not_faster_without_it_stays_small(search, fresh, slow_layer, fault):
    slow_layer.update(fault)
    study, _ = search()
    assert put_back(study).empty


def test_where_parameters_count_nothing_is_put_back(search, fresh, slow_layer):
    study, _ = search(objectives=("latency", "accuracy", "parameters"))
    assert put_back(study).empty


class Sleeping(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_layers_are_timed_within_their_network(monkeypatch):
    monkeypatch.setattr("ranksearch.latency.layers.MAX_SECONDS", 0.0)
    slow, fast = (nn.ModuleDict({"a": Sleeping(0.02), "b": Sleeping(s)}) for s in (0.03, 0.005))
    for net in (slow, fast):
        net.forward = lambda x, net=net: net["b"](net["a"](x))
    first, second = layer_seconds([slow, fast], ["a", "b", "missing"], torch.zeros(1))
    assert set(first) == set(second) == {"a", "b"}
    assert first["a"] == pytest.approx(second["a"], rel=0.5)
    assert first["b"] > 3 * second["b"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in slow.modules())
