"""Steps of latency over rank: on made-up clocks, and which layer they are looked for on."""

import random
from itertools import pairwise

import pytest
import torch
from torch import nn

from ranksearch.latency.protocol import Visit
from ranksearch.profiling import clock
from ranksearch.profiling.staircase import RANKS, STEPS, measure_staircase, step_of
from ranksearch.records import MeasureConfig
from ranksearch.workbench import Workbench
from tests.profiling.conftest import bench_of, records_of


def stairs(rank: int, step: int) -> float:
    return 0.3 + 0.01 * step * -(-rank // step)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", range(5))
def test_the_width_is_found_under_noise_of_one_percent(step, seed):
    draw = random.Random(seed)
    assert step_of(RANKS, [stairs(rank, step) * draw.gauss(1, 0.01) for rank in RANKS]) == step


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("latency_ms", [lambda rank: 0.3 + 0.01 * rank, lambda rank: 1.0], ids=["a line", "flat"])
def test_where_there_are_none_none_are_found(seed, latency_ms):
    draw = random.Random(seed)
    assert step_of(RANKS, [latency_ms(rank) * draw.gauss(1, 0.02) for rank in RANKS]) == 1


class SteppingTimer:
    """A layer of two takes stairs of 16 over the channels in between."""

    def __init__(self, calls, device, *, threads):
        self.calls = calls

    def visit(self, item, num_samples, passes):
        ranks = item[1].ranks if item else ()
        ms = stairs(ranks[0], 16) if ranks else 5.0
        return Visit(samples_ms=[ms], wall_seconds=ms / 1e3)


def bench_with(*widths: int) -> Workbench:
    task = bench_of("residual").task
    task.model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))).eval()
    task.example_input = torch.zeros(1, widths[0])
    return Workbench(task, torch.device("cpu"))


def test_of_the_costliest_layer_that_has_the_ranks(monkeypatch):
    monkeypatch.setattr(clock, "make_timer", SteppingTimer)
    bench = bench_with(12, 80, 96, 4000, 12)
    found = measure_staircase(bench, records_of(bench), MeasureConfig(batch_size=2), seconds=0.0)
    assert found is not None
    assert (found.shape, found.method, found.step) == ("linear 96→4000, on 2×96", "svd", 16)
    assert found.ranks == RANKS
    assert found.latency_ms == pytest.approx([stairs(rank, 16) for rank in RANKS])


def test_a_net_of_narrow_layers_has_none():
    bench = bench_with(12, 40, 30)
    assert measure_staircase(bench, records_of(bench), MeasureConfig(batch_size=2), seconds=0.0) is None
