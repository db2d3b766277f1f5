"""Which of a GPU's times a profile adds up: against simulated ones, and on a real GPU against the network's."""

import copy
from dataclasses import dataclass
from statistics import median

import pytest
import torch
from torch import nn

from ranksearch.latency import measure, prepare
from ranksearch.latency.backends import BACKENDS
from ranksearch.profiling import clock
from ranksearch.profiling.clock import layer_backend, make_clock
from ranksearch.records import MeasureConfig

CUDA = torch.device("cuda")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@dataclass
class Work:
    """A call that takes so many milliseconds."""

    launch: float
    busy: float
    num_calls: int = 0

    def __call__(self):
        self.num_calls += 1


@pytest.fixture
def simulated(monkeypatch):
    """A GPU that waits for its host, and a kernel that waits as long as it is told."""

    def busy_ms_of(work, wall_ms):
        assert wall_ms >= work.launch  # otherwise gaps are left
        return work.busy

    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode())
    monkeypatch.setattr(clock, "launch_ms_of", lambda work: work.launch)
    monkeypatch.setattr(clock, "wall_ms_of", lambda work: work.launch + work.busy)
    monkeypatch.setattr(clock, "busy_ms_of", busy_ms_of)


@pytest.mark.parametrize(
    ("backend", "network", "counts"),
    [
        ("eager", Work(launch=3.0, busy=5.0), "busy"),
        ("eager", Work(launch=5.0, busy=3.0), "launch"),
        ("onnxruntime", Work(launch=5.0, busy=3.0), "launch"),
        ("cuda-graph", Work(launch=5.0, busy=3.0), "busy"),  # one launch, whatever is in it
    ],
)
def test_what_a_network_takes_is_what_its_layers_add_to(simulated, backend, network, counts):
    layer = Work(launch=0.7, busy=0.2)
    milliseconds = make_clock({None: network, "layer": layer}, MeasureConfig(backend=backend), CUDA)
    for _ in range(3):
        assert milliseconds("layer") == getattr(layer, counts)
        assert milliseconds(None) == getattr(network, counts)
    assert layer.num_calls == 1  # loads its kernels before it is timed


@pytest.mark.parametrize(("launch", "warns"), [(5.0, True), (1.0, False)])
def test_a_network_that_is_launched_for_longer_than_it_works_is_told_of(simulated, caplog, launch, warns):
    make_clock({None: Work(launch=launch, busy=3.0)}, MeasureConfig(), CUDA)(None)
    assert ("only launches count" in caplog.text) is warns


class Convolutions(nn.Sequential):
    def __init__(self, size, depth):
        torch.manual_seed(0)
        super().__init__(*(nn.Conv2d(size, size, 3, padding=1) for _ in range(depth)))


@pytest.mark.parametrize(
    ("backend", "size", "pixels"),
    [pytest.param(*case, marks=GPU) for case in (("eager", 128, 56), ("cuda-graph", 128, 56), ("eager", 8, 8))],
)
def test_layers_add_up_to_what_their_network_is_measured_to_take(backend, size, pixels):
    """Where the GPU's work counts, and where launches do: the last network is a few microseconds of work a layer."""
    config = MeasureConfig(backend=backend, batch_size=32)
    network = prepare(Convolutions(size, 20), config, CUDA)
    x = torch.randn(32, size, pixels, pixels, device=CUDA)
    with torch.inference_mode():
        runs = BACKENDS[layer_backend(config)]
        calls = {i: runs.prepare(layer, x, config, CUDA) for i, layer in enumerate(network)}
        calls[None] = BACKENDS[backend].prepare(network, x, config, CUDA)
        milliseconds = make_clock(calls, config, CUDA)
        visits = [{item: milliseconds(item) for item in calls} for _ in range(20)]
    found = {item: median(visit[item] for visit in visits) for item in calls}
    measured = measure(network, copy.deepcopy(network), x, config, device=CUDA, seed=0, lock=None).dense_p50_ms
    assert found.pop(None) == pytest.approx(measured, rel=0.15)
    assert sum(found.values()) == pytest.approx(measured, rel=0.25)
