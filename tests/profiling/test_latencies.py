"""Latencies on a clock that knows what each call costs, and once on the real one."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.latency.protocol import Visit
from ranksearch.profiling import clock
from ranksearch.profiling import latencies as module
from ranksearch.profiling.latencies import measure_latencies
from ranksearch.records import MeasureConfig
from ranksearch.workbench import Workbench
from tests.profiling.conftest import NETS, bench_of, records_of

QUICK = MeasureConfig(batch_size=2)


class CountingTimer:
    """Time is what multiplications a call makes cost; the machine gets slower and slower."""

    def __init__(self, calls, device, *, threads):
        self.calls, self.now = calls, 0.0
        self.visits: list[object] = []
        CountingTimer.last = self

    def visit(self, item, num_samples, passes):
        self.visits.append(item)
        ms = work_of(self.calls[item]) * (1 + self.now / 1e5)
        self.now += ms
        return Visit(samples_ms=[ms], wall_seconds=ms / 1e3)


def work_of(call) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e4


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(clock, "make_timer", CountingTimer)


def flops_of(net, x) -> float:
    return work_of(lambda: net(**x) if isinstance(x, dict) else net(x))


@pytest.mark.parametrize("net", NETS)
def test_effects_are_the_change_of_the_whole_network(net, counting):
    """On a machine whose time is proportional to multiplications that change is known."""
    bench = bench_of(net)
    layers = records_of(bench)
    found = measure_latencies(bench, layers, QUICK, seconds=0.0)
    dense = flops_of(bench.dense, bench.example)
    searched = [layer for layer in layers if layer.options]
    assert list(found.effects) == [(layer.name, option.choice) for layer in searched for option in layer.options]
    for (layer, choice), effect in found.effects.items():
        small = compress(bench.dense, {layer: choice}, layers=bench.layers)
        if choice.is_dense:
            assert (effect.value, effect.deviation) == (0.0, 0.0)
        elif net != "transformer":  # where packed attention is counted otherwise
            assert effect.value == pytest.approx(flops_of(small, bench.example) / dense - 1, abs=0.02)


def test_every_round_has_every_option_of_every_distinct_layer_once(counting):
    bench = bench_of("residual")
    layers = records_of(bench)
    measure_latencies(bench, layers, QUICK, seconds=0.0)
    visits = [item for item in CountingTimer.last.visits if item is not None]
    distinct = set(visits)
    assert len(visits) == len(distinct) * (1 + module.MIN_ROUNDS)
    for start in range(0, len(visits), len(distinct)):
        assert set(visits[start : start + len(distinct)]) == distinct


def test_layers_of_equal_shape_and_input_are_timed_once(counting):
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.c = nn.Linear(12, 12, bias=False)
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.c(self.b(self.a(x))))

    task = replace_model(bench_of("residual").task, Twins().eval(), torch.zeros(1, 12))
    bench = Workbench(task, torch.device("cpu"))
    layers = records_of(bench)
    found = measure_latencies(bench, layers, QUICK, seconds=0.0)
    keys = {item[0] for item in CountingTimer.last.visits if item is not None}
    assert len(keys) == 3  # a and b are one
    for option in layers[0].options:
        assert found.effects["a", option.choice] == found.effects["b", option.choice]


def replace_model(task, model, example):
    task.model, task.example_input = model, example
    return task


def test_folded_norms_give_layers_a_bias_to_be_timed_with(counting):
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    for folded in (False, True):
        measure_latencies(bench, layers, replace(QUICK, fold_batchnorm=folded), seconds=0.0)
        (key,) = {item[0] for item in CountingTimer.last.visits if item is not None}
        assert key[0].bias is folded


def test_inputs_are_those_of_the_batch_dtype_and_layout(counting):
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    with torch.inference_mode():
        config = MeasureConfig(batch_size=3, dtype="bfloat16", layout="channels_last")
        probes = module._Probes(bench, layers, config)
    ((x,),) = probes._entered.values()
    assert x.shape == (3, 16, 8, 8)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_writing_the_input_anew_leaves_its_values(counting):
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    with torch.inference_mode():
        probes = module._Probes(bench, layers, replace(QUICK))
        entered = [x for xs in probes._entered.values() for x in xs]
        before = [x.clone() for x in entered]
        for item in probes.items:
            probes.visit(item)
        assert all(torch.equal(a, b) for a, b in zip(before, entered, strict=True))


def test_on_the_real_clock_the_smallest_option_of_what_is_nearly_all_of_the_network_saves_most_of_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 1024), nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 3)).eval()
    bench = Workbench(replace_model(bench_of("residual").task, net, torch.zeros(1, 12)), torch.device("cpu"))
    layers = [layer for layer in records_of(bench, per_method=64) if layer.name == "1"]
    found = measure_latencies(bench, layers, MeasureConfig(batch_size=64), seconds=1.0)
    effects = {choice.ranks: effect.value for (_, choice), effect in found.effects.items()}
    smallest = min(ranks for ranks in effects if ranks)
    assert effects[smallest] < -0.4
    assert effects[()] == 0.0
    assert found.dense_ms > 0
    assert math.isfinite(sum(effects.values()))
