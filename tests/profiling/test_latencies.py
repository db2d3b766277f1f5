"""Latencies on a clock that knows what each call costs, and once on the real one."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.factorize import LayerShape
from ranksearch.latency.protocol import Visit
from ranksearch.profiling import clock
from ranksearch.profiling import probes as module
from ranksearch.profiling.latencies import measure_latencies
from ranksearch.profiling.rounds import MIN_ROUNDS
from ranksearch.records import DENSE, LayerLatency, MeasureConfig
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
    assert len(visits) == len(distinct) * (1 + MIN_ROUNDS)
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


def test_shapes_are_told_apart_by_all_that_decides_their_time():
    def words(layer, *sizes):
        return module._in_words(LayerShape.of(layer), [torch.zeros(size) for size in sizes])

    assert words(nn.Conv2d(4, 8, 3, 2, 1, bias=False), (2, 4, 6, 6)) == (
        "conv2d 4→8 3×3/2, padding 1×1, no bias, on 2×4×6×6"
    )
    assert words(nn.Linear(4, 8), (2, 5, 4), (2, 5, 4), (2, 4)) == "linear 4→8, 2 times on 2×5×4, on 2×4"
    convs = [
        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(4, 8, 3, padding=(1, 2)),
        nn.Conv2d(4, 8, 3, padding="same"), nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.Conv2d(4, 8, 3, padding=1, dilation=2), nn.Conv2d(4, 8, (3, 1)),
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(4, 8, 3, padding=1), nn.Conv1d(4, 8, 3, padding=1),
        nn.ConvTranspose2d(4, 8, 3, 2, padding=1), nn.ConvTranspose2d(4, 8, 3, 2, padding=1, output_padding=1),
    ]  # fmt: skip
    assert len({words(conv, (2, 4, 6, 6)) for conv in convs}) == len(convs)


def as_known(found, dense_ms=1.0, **changed):
    """What a profile would store of it; `changed`: other ratios than were found, by layer."""
    return [
        LayerLatency(
            shape=found.shapes[layer],
            choice=choice,
            latency_ms=dense_ms * changed.get(layer, 1.0) * effect.layer_ms / found.effects[layer, DENSE].layer_ms,
            dense_ms=dense_ms,
            ratio_deviation=0.0,
        )
        for (layer, choice), effect in found.effects.items()
        if not choice.is_dense
    ]


def test_what_is_known_is_taken_over_whatever_the_machine_took_for_it_then(counting):
    bench = bench_of("residual")
    layers = records_of(bench)
    first = measure_latencies(bench, layers, QUICK, seconds=0.0)
    again = measure_latencies(bench, layers, QUICK, seconds=0.0, known=as_known(first, dense_ms=17.0))
    visited = {item for item in CountingTimer.last.visits if item is not None}
    shapes = set(first.shapes.values())
    assert len(visited) == 2 * len(shapes)  # the dense layer and the fastest option
    for point, effect in again.effects.items():
        assert effect.value == pytest.approx(first.effects[point].value, rel=0.02, abs=1e-4)
        assert effect.layer_ms == pytest.approx(first.effects[point].layer_ms, rel=0.05)
        assert effect.is_measured == ((again.shapes[point[0]], point[1]) in visited)


def test_only_what_is_new_is_timed(counting):
    bench = bench_of("residual")
    layers = records_of(bench)
    known = as_known(measure_latencies(bench, layers, QUICK, seconds=0.0))
    new = known.pop()
    measure_latencies(bench, layers, QUICK, seconds=0.0, known=known)
    visited = {item for item in CountingTimer.last.visits if item is not None}
    assert (new.shape, new.choice) in visited
    assert len(visited) == 2 * len({found.shape for found in known}) + 1


def test_a_shape_that_takes_another_time_now_is_measured_anew(counting):
    bench = bench_of("residual")
    layers = records_of(bench)
    first = measure_latencies(bench, layers, QUICK, seconds=0.0)
    again = measure_latencies(bench, layers, QUICK, seconds=0.0, known=as_known(first, conv2=1.2))
    for (layer, choice), effect in again.effects.items():
        assert effect.value == pytest.approx(first.effects[layer, choice].value, abs=3e-3)
        if layer == "conv2":
            assert effect.is_measured


def test_folded_norms_give_layers_a_bias_to_be_timed_with(counting):
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    for folded in (False, True):
        measure_latencies(bench, layers, replace(QUICK, fold_batchnorm=folded), seconds=0.0)
        (key,) = {item[0] for item in CountingTimer.last.visits if item is not None}
        assert ("no bias" not in key) is folded


def test_inputs_are_those_of_the_batch_dtype_and_layout(counting):
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    with torch.inference_mode():
        config = MeasureConfig(batch_size=3, dtype="bfloat16", layout="channels_last")
        probes = module.Probes(bench, layers, config)
    ((_, (x,)),) = probes._layers.values()
    assert x.shape == (3, 16, 8, 8)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_writing_the_input_anew_leaves_its_values(counting):
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    with torch.inference_mode():
        probes = module.Probes(bench, layers, replace(QUICK))
        probes.prepare(probes.items)
        entered = [x for _, xs in probes._layers.values() for x in xs]
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
