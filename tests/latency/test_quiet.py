import gc
import os
import sys
import time
import types
from collections import namedtuple

import psutil
import pytest
import torch

from ranksearch.latency.quiet import CpuWatch, GpuWatch, deployed_kernels, quiet
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


# --- other processes on the GPU -------------------------------------------------------------------------------------

OWN, OTHER = os.getpid(), 1  # process 1 is never this one


class Driver(types.ModuleType):
    """Of a GPU on which processes, pid -> per cent, have worked for ten seconds from 100 s of the epoch on."""

    class NVMLError(Exception):
        pass

    def __init__(self, processes, busy=()):
        super().__init__("pynvml")
        self.processes, self.busy = processes, list(busy)

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetProcessUtilization(self, _handle, since_us):
        if self.processes is None:
            raise self.NVMLError
        stale = types.SimpleNamespace(pid=OTHER, smUtil=100, timeStamp=0)  # drivers fill the end of the list with such
        return [stale] + [
            types.SimpleNamespace(pid=pid, smUtil=percent, timeStamp=110_000_000)
            for pid, percent in self.processes.items()
        ]

    def nvmlDeviceGetUtilizationRates(self, _handle):
        if not self.busy:
            raise self.NVMLError
        return types.SimpleNamespace(gpu=self.busy.pop(0) if len(self.busy) > 1 else self.busy[0])


@pytest.fixture
def foreign_share(monkeypatch):
    """What is said of a GPU with this driver."""
    clock = [100.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1-2-3"))
    monkeypatch.setattr(time, "time_ns", lambda: int(clock[0] * 1e9))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))

    def look(driver):
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return GpuWatch(torch.device("cuda")).foreign_share()

    return look


@pytest.mark.parametrize(
    ("processes", "share"),
    [
        ({OWN: 90}, 0.0),
        ({OWN: 50, OTHER: 40}, 0.4),
        ({OWN: 30, OTHER: 40, 2: 5}, 0.45),
        ({OTHER: 80}, 0.0),  # a container that knows this process by another number
        ({OTHER: 80, 2: 15}, 0.15),
    ],
)
def test_the_foreign_share_of_a_gpu_is_what_other_processes_do_there(foreign_share, processes, share):
    assert foreign_share(Driver(processes, busy=[100])) == pytest.approx(share)


@pytest.mark.parametrize("processes", [None, {}], ids=["not supported", "hidden"])
@pytest.mark.parametrize(
    ("busy", "share"),
    [
        ([0], 0.0),
        ([100, 100, 60, 0], 0.0),  # the counter falls once this process gives no more work
        ([100], 1.0),  # and does not where others do
        ([], None),  # a part of a GPU has no such counter
    ],
)
def test_where_processes_are_hidden_a_gpu_left_idle_must_fall_idle(foreign_share, processes, busy, share):
    assert foreign_share(Driver(processes, busy=busy)) == share


def test_without_a_gpu_or_its_library_nothing_is_said(foreign_share):
    assert foreign_share(None) is None
    assert GpuWatch(torch.device("cpu")).foreign_share() is None


@pytest.mark.parametrize("wanted", [True, False])
def test_what_training_asks_of_kernels_holds_again_after_a_measurement(monkeypatch, wanted):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", wanted)
    with deployed_kernels():
        assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.deterministic is wanted
