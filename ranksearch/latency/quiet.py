"""Keeping this process out of its own way while it times, and noticing what others do meanwhile."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch

from ranksearch.records import MeasureConfig
from ranksearch.threads import threads

__all__ = ["CpuWatch", "quiet"]


@contextmanager
def quiet(config: MeasureConfig, device: torch.device) -> Iterator[None]:
    """Fixed threads, one core where one thread works on the CPU, and no garbage collection; all put back after."""
    with threads(config.threads), _pinned(device.type == "cpu" and config.threads == 1), _gc_paused():
        yield


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
