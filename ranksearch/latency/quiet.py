"""Keeping this process out of its own way while it times, and noticing what others do meanwhile."""

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch

from ranksearch.latency.nvml import Gpu
from ranksearch.records import MeasureConfig
from ranksearch.threads import threads

__all__ = ["CpuWatch", "GpuWatch", "deployed_kernels", "quiet"]

IDLE_SECONDS = 1.2  # a GPU's counters look back for up to one second
STILL = 0.02  # of the time: less is no work


@contextmanager
def quiet(config: MeasureConfig, device: torch.device) -> Iterator[None]:
    """Fixed threads, one core where one thread works on the CPU, and no garbage collection; all put back after."""
    with threads(config.threads), _pinned(device.type == "cpu" and config.threads == 1), _gc_paused():
        yield


@contextmanager
def deployed_kernels() -> Iterator[None]:
    """cuDNN's own choice of kernels, as in a new process: trainings here ask for those that repeat their last bits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextmanager
def _pinned(wanted: bool) -> Iterator[None]:
    """Holds the calling thread on the last core it may use: interrupts mostly go to the first."""
    if not wanted or not hasattr(os, "sched_setaffinity"):  # macOS and Windows have none
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _gc_paused() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds since the machine or the process started: of all cores, of all work, of this process."""

    total: float = field(default_factory=lambda: _seconds(idle=True))
    busy: float = field(default_factory=lambda: _seconds(idle=False))
    own: float = field(default_factory=lambda: sum(psutil.Process().cpu_times()[:2]))


def _seconds(*, idle: bool) -> float:
    times = psutil.cpu_times()._asdict()
    skipped = {"guest", "guest_nice"}  # Linux counts them in `user` already
    if not idle:
        skipped |= {"idle", "iowait"}
    return sum(seconds for name, seconds in times.items() if name not in skipped)


class CpuWatch:
    """Starts watching when made."""

    def __init__(self) -> None:
        self._start = CpuUse()

    def foreign_share(self) -> float:
        """Share of the machine's CPU time since the start that went to others: processes, or the hypervisor."""
        start, now = self._start, CpuUse()
        foreign = (now.busy - start.busy) - (now.own - start.own)
        return max(0.0, foreign / max(now.total - start.total, 1e-9))


class GpuWatch:
    """Starts watching when made. Knows nothing of a device that is no NVIDIA GPU."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = Gpu.find(device) if device.type == "cuda" else None
        self._start_us = time.time_ns() // 1000

    def foreign_share(self) -> float | None:
        """Share of the time since the start in which other processes' kernels ran; None where nobody tells.

        Where processes are not told apart, the GPU's share of work while this process gives it none: that takes until
        the counters fall, at most IDLE_SECONDS.
        """
        if self._gpu is None:
            return None
        shares = self._gpu.process_shares(self._start_us)
        return self._share_while_idle(self._gpu) if shares is None else _of_others(shares)

    @staticmethod
    def _share_while_idle(gpu: Gpu) -> float | None:
        deadline = time.monotonic() + IDLE_SECONDS
        while (share := gpu.busy_share()) and share > STILL and time.monotonic() < deadline:
            time.sleep(0.05)
        return share


def _of_others(shares: Mapping[int, float]) -> float:
    """All but this process's. A container may know it by another number: it is then the busiest."""
    own = os.getpid() if os.getpid() in shares else max(shares, key=lambda pid: shares[pid])
    return sum(share for pid, share in shares.items() if pid != own)
