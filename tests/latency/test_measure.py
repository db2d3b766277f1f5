"""Real models, real clocks."""

import gc
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.errors import MeasurementError, NonFiniteError
from ranksearch.latency import DeviceLock, identity, measure, prepare, prepare_inputs, protocol
from ranksearch.latency.protocol import PROTOCOL, Arm
from ranksearch.latency.quiet import CpuWatch, GpuWatch
from ranksearch.latency.timer import make_timer
from ranksearch.records import MeasureConfig, Measurement

CPU = torch.device("cpu")
CONFIG = MeasureConfig(half_width=0.01, max_seconds=1.0)
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


class Body(nn.Module):
    """About half a millisecond on a CPU; `times` runs it over and over, each run exactly as costly."""

    def __init__(self, times=1, width=256, depth=4):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layers(x)
        return x


def pair(dense, candidate, device=CPU, config=CONFIG, width=256):
    example = torch.randn(1, 16, width, generator=torch.Generator().manual_seed(0))
    return (
        prepare(dense, config, device),
        prepare(candidate, config, device),
        prepare_inputs(example, config, device),
    )


def run(dense, candidate, device=CPU, config=CONFIG, lock=None):
    return measure(*pair(dense, candidate, device, config), config, device=device, seed=0, lock=lock)


def run_quietly(dense, candidate, device):
    """A measurement that does not itself say that it is no good; a skip where two in a row do."""
    for _ in range(2):
        measurement = run(dense, candidate, device)
        if not {"noisy", "unstable"} & set(measurement.flags):
            return measurement
    pytest.skip(f"this machine is busy: measurements are {', '.join(measurement.flags)}")


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_run_twice_takes_twice_as_long(device):
    size = {"width": 256, "depth": 4} if device == "cpu" else {"width": 256, "depth": 40}
    measurement = run_quietly(Body(1, **size), Body(2, **size), torch.device(device))
    assert measurement.ratio == pytest.approx(2.0, rel=0.05)
    if "contended" not in measurement.flags:
        assert measurement.p50_ms == pytest.approx(2 * measurement.dense_p50_ms, rel=0.1)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_against_itself_takes_as_long_as_itself(device):
    measurement = run_quietly(Body(), Body(), torch.device(device))
    assert measurement.ratio == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_measurement_records(device):
    measurement = run(Body(), Body(), torch.device(device))
    assert measurement.protocol == PROTOCOL
    assert measurement.batch_size == {"cpu": 8, "cuda": 32}[device]
    assert measurement.identity == identity(CONFIG, torch.device(device))
    assert measurement.num_blocks >= CONFIG.min_blocks
    assert 4 <= measurement.num_samples / measurement.num_blocks <= CONFIG.iterations_per_block
    assert 0.2 <= measurement.warmup_seconds < measurement.seconds
    assert (measurement.p90_ms is None) == (measurement.num_samples < 64)
    assert (measurement.p99_ms is None) == (measurement.num_samples < 662)
    assert Measurement.from_json(measurement.to_json()) == measurement


@pytest.mark.parametrize(("share", "is_told"), [(None, False), (0.01, False), (0.1, True)])
def test_work_of_others_on_the_gpu_is_told(monkeypatch, share, is_told):
    monkeypatch.setattr(GpuWatch, "foreign_share", lambda self: share)
    monkeypatch.setattr(CpuWatch, "foreign_share", lambda self: 0.1)
    monkeypatch.setattr(protocol, "MAX_WALL_PER_CPU", math.inf)
    measurement = run(Body(), Body(), config=replace(CONFIG, max_seconds=0.1))
    assert ("contended" in measurement.flags) is is_told
    assert measurement.conditions["foreign_gpu_share"] == share
    assert measurement.conditions["foreign_share"] == 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_timers_agree_with_a_stopwatch(device):
    model, _, inputs = pair(Body(depth=20), Body(), torch.device(device))
    calls = {arm: lambda: model(inputs) for arm in Arm}
    timer = make_timer(calls, torch.device(device), threads=1)
    timer.visit(Arm.DENSE, 50, 2)
    visit = timer.visit(Arm.DENSE, 20, 3)
    assert len(visit.samples_ms) == 20
    assert sum(visit.samples_ms) * 3 / 1000 == pytest.approx(visit.wall_seconds, rel=0.25)
    assert timer.wall_per_device() > 0.5
    assert not timer.throttled()


@pytest.mark.parametrize(("threads", "knows"), [(1, True), (2, False)])
def test_one_thread_knows_how_long_it_had_to_wait(threads, knows):
    timer = make_timer({arm: lambda: time.sleep(0.01) for arm in Arm}, CPU, threads=threads)
    visit = timer.visit(Arm.CANDIDATE, 5, 2)
    assert visit.wall_seconds >= 0.1
    assert (visit.cpu_seconds is not None) is knows
    assert not knows or visit.cpu_seconds < 0.5 * visit.wall_seconds


# --- correctness first ----------------------------------------------------------------------------------------------


class Broken(Body):
    def __init__(self, breakage):
        super().__init__()
        self.breakage = breakage
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        return self.breakage(super().forward(x))


@pytest.mark.parametrize(
    ("breakage", "error", "message"),
    [
        (lambda y: y[..., :5], MeasurementError, r"shape \(8, 16, 5\), the dense model's of shape \(8, 16, 256\)"),
        (lambda y: (y, y), MeasurementError, "must be alike"),
        (lambda y: y * float("nan"), NonFiniteError, "the candidate's output holds NaN or infinity"),
        (lambda y: y / 0.0, NonFiniteError, "NaN or infinity"),
    ],
    ids=["shape", "structure", "nan", "inf"],
)
def test_a_broken_candidate_is_refused_before_anything_is_timed(breakage, error, message):
    dense, candidate, inputs = pair(Body(), Broken(breakage))
    with pytest.raises(error, match=message):
        measure(dense, candidate, inputs, CONFIG, device=CPU, seed=0, lock=None)
    assert candidate.num_calls == 1


# --- the process is left as it was ----------------------------------------------------------------------------------


class Witness(Body):
    """Notes the conditions that its forward pass runs under, and fails at the `failing`-th."""

    def __init__(self, failing=None):
        super().__init__()
        self.failing = failing
        self.seen = []

    def forward(self, x):
        self.seen.append(state())
        if len(self.seen) == self.failing:
            raise RuntimeError("out of luck")
        return super().forward(x)


def state():
    return torch.get_num_threads(), os.sched_getaffinity(0), gc.isenabled(), torch.is_inference_mode_enabled()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_affinity
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("failing", [None, 1, 30])
def test_conditions_hold_while_measuring_and_are_put_back(failing):
    before = state()
    dense, witness, inputs = pair(Body(), Witness(failing))
    if failing is None:
        measure(dense, witness, inputs, CONFIG, device=CPU, seed=0, lock=None)
    else:
        with pytest.raises(RuntimeError, match="out of luck"):
            measure(dense, witness, inputs, CONFIG, device=CPU, seed=0, lock=None)
    assert state() == before
    cores = before[1]
    assert {s[0] for s in witness.seen} == {1}
    assert all(len(s[1]) == 1 and s[1] <= cores for s in witness.seen)
    assert {s[2:] for s in witness.seen} == {(False, True)}


# --- alone on the device --------------------------------------------------------------------------------------------


def test_the_lock_is_held_exclusively_while_measuring_and_freed_after(tmp_path):
    tmp_path.chmod(0o700)
    lock, trained, measured = DeviceLock("cpu", tmp_path), [], []

    def train():
        with lock.shared():
            trained.append(time.perf_counter())

    class Starter(Body):
        """Starts a training when it is first run."""

        def forward(self, x):
            if not measured:
                thread.start()
            measured.append(time.perf_counter())
            return super().forward(x)

    thread = threading.Thread(target=train)
    dense, _, inputs = pair(Body(), Body())
    measure(dense, Starter().eval(), inputs, CONFIG, device=CPU, seed=0, lock=lock)
    thread.join(10)
    assert trained[0] > measured[-1]


@needs_affinity
def test_a_busy_loop_on_the_same_core_is_noticed():
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        neighbour.stdout.readline()
        measurement = run(Body(1), Body(2))
    finally:
        neighbour.kill()
        neighbour.communicate()
    assert "contended" in measurement.flags
    assert measurement.ratio == pytest.approx(2.0, rel=0.15)  # it shares the core, not the CPU time
