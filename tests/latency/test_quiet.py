from collections import namedtuple

import psutil
import pytest

from ranksearch.latency.quiet import CpuWatch

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
