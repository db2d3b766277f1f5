"""The clocks: one for the CPU, one for CUDA. What they promise is `protocol.Timer`."""

import math
import time
from collections.abc import Callable
from statistics import median

import torch

from ranksearch.latency.nvml import Gpu
from ranksearch.latency.protocol import Arm, Timer, Visit

__all__ = ["CpuTimer", "CudaTimer", "busy_ms_of", "launch_ms_of", "make_timer", "wall_ms_of"]

Calls = dict[Arm, Callable[[], object]]
NUM_LAUNCH_PROBES = 5
# Spin-kernel cycles per nanosecond of wall time to hide: no GPU clocks above 4 GHz.
SPIN_CYCLES_PER_NS = 4


def make_timer(calls: Calls, device: torch.device, *, threads: int) -> Timer:
    return CudaTimer(calls, device) if device.type == "cuda" else CpuTimer(calls, threads=threads)


class CpuTimer:
    """`perf_counter_ns`, and beside it the CPU time of the timing thread, which foreign load does not stretch."""

    min_sample_ms = 1.0
    min_warmup_seconds = 0.2

    def __init__(self, calls: Calls, *, threads: int) -> None:
        self._calls = calls
        self._works_alone = threads == 1  # with more, the thread waits for others and its CPU time says nothing

    def now(self) -> float:
        return time.perf_counter()

    def visit(self, arm: Arm, num_samples: int, passes: int) -> Visit:
        call = self._calls[arm]
        cpu_start_ns = time.thread_time_ns()
        edges_ns = [time.perf_counter_ns()]
        for _ in range(num_samples):
            for _ in range(passes):
                call()
            edges_ns.append(time.perf_counter_ns())
        cpu_ns = time.thread_time_ns() - cpu_start_ns
        return Visit(
            samples_ms=[(edges_ns[i + 1] - edges_ns[i]) / 1e6 / passes for i in range(num_samples)],
            wall_seconds=(edges_ns[-1] - edges_ns[0]) / 1e9,
            cpu_seconds=cpu_ns / 1e9 if self._works_alone else None,
        )

    def throttled(self) -> bool:
        return False

    def wall_per_device(self) -> float:
        return 1.0


class CudaTimer:
    """A pair of CUDA events around each sample, the host running ahead of the device as it does in use."""

    min_sample_ms = 0.0  # events tick every 0.5 microseconds
    min_warmup_seconds = 1.0

    def __init__(self, calls: Calls, device: torch.device) -> None:
        self._calls = calls
        self._device = device
        self._gpu = Gpu.find(device)

    def now(self) -> float:
        return time.perf_counter()

    def visit(self, arm: Arm, num_samples: int, passes: int) -> Visit:
        call = self._calls[arm]
        with torch.cuda.device(self._device):
            events = [_event_pair() for _ in range(num_samples)]
            torch.cuda.synchronize()
            start = time.perf_counter()
            for begin, end in events:
                begin.record()
                for _ in range(passes):
                    call()
                end.record()
            torch.cuda.synchronize()
            wall_seconds = time.perf_counter() - start
        return Visit(samples_ms=[begin.elapsed_time(end) / passes for begin, end in events], wall_seconds=wall_seconds)

    def throttled(self) -> bool:
        return self._gpu is not None and self._gpu.is_throttled()

    def wall_per_device(self) -> float:
        with torch.cuda.device(self._device):
            return max(_wall_per_device(call) for call in self._calls.values())


def _wall_per_device(call: Callable[[], object]) -> float:
    wall_ms = median(wall_ms_of(call) for _ in range(NUM_LAUNCH_PROBES))
    return wall_ms / median(busy_ms_of(call, wall_ms) for _ in range(NUM_LAUNCH_PROBES))


def wall_ms_of(call: Callable[[], object]) -> float:
    """From an idle GPU to an idle GPU."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def launch_ms_of(call: Callable[[], object]) -> float:
    """What the host takes to launch one pass, whose end it does not wait for."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def busy_ms_of(call: Callable[[], object], wall_ms: float) -> float:
    """GPU time of one pass, of about `wall_ms` by itself, without the gaps in which the GPU waits for the host.

    Events alone cannot tell: on an idle GPU they too span the gaps. So a spin kernel keeps the GPU busy until the
    whole pass has been queued behind it.
    """
    begin, end = _event_pair()
    torch.cuda._sleep(math.ceil(wall_ms * 1e6 * SPIN_CYCLES_PER_NS))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _event_pair() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
