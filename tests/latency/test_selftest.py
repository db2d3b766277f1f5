"""The self-test's sums on made-up numbers, and its course with measurements that are made up."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch import nn

from ranksearch.errors import MeasurementError
from ranksearch.latency import selftest
from ranksearch.latency.fresh import measure_fresh
from ranksearch.latency.selftest import (
    Check,
    Repeated,
    Subject,
    coverage,
    false_alarms,
    kendall_tau,
    self_test,
    variation,
)
from ranksearch.latency.statistics import bootstrap_median_interval
from ranksearch.records import MeasureConfig, Measurement

CPU = torch.device("cpu")
QUICK = MeasureConfig(batch_size=1, max_seconds=0.01, min_blocks=2, iterations_per_block=2)
small = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


def made_up(ratio: float, half_width: float = 0.01, flags: tuple[str, ...] = ()) -> Measurement:
    return Measurement(
        protocol=1, identity={}, conditions={}, batch_size=1,
        ratio=ratio, ratio_low=ratio - half_width, ratio_high=ratio + half_width,
        dense_p50_ms=1.0, p50_ms=ratio, p90_ms=None, p95_ms=None, p99_ms=None,
        num_blocks=10, num_samples=100, num_dropped_blocks=0, warmup_seconds=0.0, seconds=0.0, flags=flags,
    )  # fmt: skip


# --- sums ------------------------------------------------------------------------------------------------------------


@given(small)
def test_tau_is_scipy_s(pairs):
    a, b = ([pair[side] for pair in pairs] for side in (0, 1))
    expected = kendalltau(a, b).statistic if len(pairs) > 1 else math.nan
    assert kendall_tau(a, b) == pytest.approx(expected, nan_ok=True)


def test_tau_of_one_exchange_of_neighbours():
    order = [*range(50)]
    exchanged = [1, 0, *order[2:]]
    assert kendall_tau(order, order) == 1
    assert kendall_tau(order, order[::-1]) == -1
    assert kendall_tau(order, exchanged) == pytest.approx(1 - 2 / (50 * 49 / 2))


@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=20), st.floats(0.1, 10))
def test_variation_is_the_spread_whatever_the_unit(values, unit):
    assert variation(values) == pytest.approx(np.std(values, ddof=1) / np.mean(values), abs=1e-9)
    assert variation([unit * value for value in values]) == pytest.approx(variation(values), abs=1e-9)


def test_a_correct_protocol_passes_and_one_whose_intervals_are_too_narrow_does_not():
    """Bootstrap intervals of the median of 25 blocks of 1 % noise, about a truth of 1."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap_median_interval(rng.normal(1, 0.01, 25), rng=rng) for _ in range(1000)]
    narrow = [(0.7 * (low - 1) + 1 + 0.3 * (high - 1), high) for low, high in intervals]
    assert selftest.MIN_COVERAGE < coverage(intervals, 1.0) < 0.98
    assert coverage(narrow, 1.0) < selftest.MIN_COVERAGE
    assert coverage([(low + 0.02, high + 0.02) for low, high in intervals], 1.0) < 0.01


def test_false_alarms_are_those_more_than_two_percent_faster():
    assert false_alarms([0.97, 0.9801, 1.03, 1.0]) == 0.25
    assert false_alarms([1.0] * 4) == 0


@pytest.mark.parametrize(
    ("value", "num_done", "passed"),
    [(0.9, 10, False), (1.0, 10, True), (1.5, 10, True), (2.0, 10, True), (2.1, 10, False), (1.5, 9, False)],
)
def test_a_check_passes_within_its_bounds_and_whole(value, num_done, passed):
    check = Check(
        test="", value=value, at_least=1.0, at_most=2.0, num_done=num_done, num_wanted=10, note="", seconds=0.0
    )
    assert check.passed is passed
    assert replace(check, at_most=None).passed is (passed or value > 2)
    assert replace(check, at_least=None).passed is (passed or value < 1)
    assert not replace(check, value=None).passed
    assert not replace(check, value=math.nan).passed


# --- the course ------------------------------------------------------------------------------------------------------


class Marked(nn.Module):
    """A net whose latency is what it says."""

    def __init__(self, cost: float) -> None:
        super().__init__()
        self.cost = cost


def cost_of(model: nn.Module) -> float:
    return model.times * cost_of(model.model) if isinstance(model, Repeated) else model.cost


@pytest.fixture
def subject():
    costs = [0.3 + 0.02 * i for i in range(10)]
    return Subject(dense=Marked(1.0), nets=[Marked(c) for c in costs], macs=range(10), example=torch.zeros(1, 2))


@pytest.fixture
def machine(monkeypatch):
    """A machine that measures as told: its noise, its bias against a candidate, whether it notices others. Its clock
    goes on by a second a measurement."""
    told = {"noise": 0.002, "bias": 1.0, "notices": True, "width": 0.01}
    rng, busy, clock = random.Random(0), [], [0.0]

    def measure(dense, candidate, *_inputs, **_given):
        ratio = told["bias"] * cost_of(candidate) / cost_of(dense) * rng.gauss(1, told["noise"])
        clock[0] += 1
        return made_up(ratio, told["width"], ("contended",) if busy and told["notices"] else ())

    class Training:
        def __init__(self, _device):
            pass

        def __enter__(self):
            busy.append(1)

        def __exit__(self, *_error):
            busy.clear()

    monkeypatch.setattr(selftest, "measure", measure)
    monkeypatch.setattr(selftest, "measure_fresh", measure)
    monkeypatch.setattr(selftest, "_training", Training)
    monkeypatch.setattr(selftest, "_other_clock", lambda bench, net: cost_of(net) * rng.gauss(1, told["noise"]))
    monkeypatch.setattr(selftest, "perf_counter", lambda: clock[0])
    return told


def missed(checks) -> set[str]:
    return {check.test for check in checks if not check.passed}


def test_a_good_machine_passes(subject, machine):
    checks = list(self_test(subject, device=CPU, lock=None))
    assert missed(checks) == set()
    assert len(checks) == 6
    assert [check.num_done for check in checks] == [5, 1, 8, 10, 200, 200]
    assert checks[0].value == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("fault", "misses"),
    [
        ({"bias": 1.02}, ["run twice", "covers"]),
        ({"bias": 0.97}, ["run twice", "covers", "faster"]),
        ({"width": 0.0001}, ["covers"]),
        ({"noise": 0.05}, ["fresh", "order", "covers", "faster"]),
        ({"notices": False}, ["noticed"]),
    ],
    ids=str,
)
def test_a_fault_of_the_machine_is_found(subject, machine, fault, misses):
    machine.update(fault)
    found = missed(self_test(subject, device=CPU, lock=None))
    assert all(any(word in test for test in found) for word in misses)
    assert fault == {"noise": 0.05} or len(found) == len(misses)


def test_what_does_not_end_in_time_is_missed_and_nothing_begins_after(subject, machine):
    checks = list(self_test(subject, device=CPU, lock=None, limit_seconds=100))
    copies = [check for check in checks if "copies" in check.test]
    assert [check.num_wanted for check in copies] == [200, 200]
    assert all(0 < check.num_done < 200 for check in copies)
    assert missed(checks) == {check.test for check in copies}
    assert sum(check.num_done for check in checks) - copies[1].num_done <= 100 + len(subject.nets)
    nothing = list(self_test(subject, device=CPU, lock=None, limit_seconds=0))
    assert [(check.value, check.num_done) for check in nothing] == [(None, 0)] * 6
    assert len(missed(nothing)) == 6


# --- real processes --------------------------------------------------------------------------------------------------


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3)).eval()


class Loud(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        print("a model that prints")  # noqa: T201
        return self.net(x)


class Dying(nn.Module):
    def forward(self, x):
        import os

        os._exit(7)


class Raising(nn.Module):
    def forward(self, x):
        raise LookupError("two\nlines")


def fresh(candidate):
    return measure_fresh(net(), candidate, torch.zeros(1, 4), QUICK, device=CPU, seed=0, lock=None)


def test_a_fresh_process_measures_whatever_the_model_prints(monkeypatch):
    assert fresh(Loud()).num_blocks >= 2


@pytest.mark.parametrize(("candidate", "said"), [(Dying(), "exit code 7"), (Raising(), "LookupError: two lines")])
def test_a_fresh_process_that_fails_says_why(candidate, said):
    with pytest.raises(MeasurementError, match=said):
        fresh(candidate)


def test_the_training_loop_runs_beside_and_ends():
    import psutil

    with selftest._training(CPU):
        (loop,) = [child for child in psutil.Process().children() if "backward" in " ".join(child.cmdline())]
        assert loop.is_running()
    assert not loop.is_running()


def test_repeated_runs_a_model_as_often_as_it_says():
    seen = []
    model = net()
    model.register_forward_hook(lambda *_: seen.append(1))
    x = torch.ones(2, 4)
    assert torch.equal(Repeated(model, 3)(x), model(x))
    assert len(seen) == 4
