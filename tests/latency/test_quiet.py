import gc
import os
from collections import namedtuple

import psutil
import pytest
import torch

from ranksearch.latency.quiet import CpuWatch, quiet
from ranksearch.records import MeasureConfig

LinuxTimes = namedtuple("LinuxTimes", "user nice system idle iowait irq softirq steal guest guest_nice")


class Machine:
    """Two cores for ten seconds, as psutil would tell of them."""

    def __init__(self, monkeypatch):
        self.times = LinuxTimes(*[100.0] * 10)
        self.own = (50.0, 5.0, 0.0, 0.0)
        monkeypatch.setattr(psutil, "cpu_times", lambda: self.times)
        monkeypatch.setattr(psutil, "Process", lambda: self)

    def cpu_times(self):
        return self.own

    def passes(self, *, own, **seconds):
        self.times = LinuxTimes(**{k: v + seconds.get(k, 0.0) for k, v in self.times._asdict().items()})
        self.own = (self.own[0] + own, *self.own[1:])


@pytest.mark.parametrize(
    ("seconds", "share"),
    [
        ({"own": 10.0, "user": 10.0, "idle": 10.0}, 0.0),  # alone
        ({"own": 10.0, "user": 20.0}, 0.5),  # a busy loop on the other core
        ({"own": 8.0, "user": 8.0, "steal": 2.0, "idle": 10.0}, 0.1),  # the hypervisor
        ({"own": 10.0, "user": 10.0, "iowait": 10.0}, 0.0),  # a disk is no load
        ({"own": 10.0, "user": 20.0, "guest": 10.0}, 0.5),  # guests are in `user` already
        ({"own": 10.02, "user": 10.0, "idle": 10.0}, 0.0),  # two clocks, two rounding errors
        ({"own": 0.0}, 0.0),  # no time has passed
    ],
)
def test_the_foreign_share_is_what_neither_idles_nor_is_ours(monkeypatch, seconds, share):
    machine = Machine(monkeypatch)
    watch = CpuWatch()
    machine.passes(**seconds)
    assert watch.foreign_share() == pytest.approx(share)


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")


@needs_affinity
@pytest.mark.parametrize(("device", "threads", "is_pinned"), [("cpu", 1, True), ("cpu", 2, False), ("cuda", 1, False)])
def test_one_thread_on_the_cpu_is_held_on_one_core(device, threads, is_pinned):
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    with quiet(MeasureConfig(threads=threads), torch.device(device)):
        assert torch.get_num_threads() == threads
        assert os.sched_getaffinity(0) == ({max(before[1])} if is_pinned else before[1])
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    try:
        with quiet(MeasureConfig(), torch.device("cpu")):
            assert not gc.isenabled()
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()
