"""A simulated machine: everything costs what it costs times what the machine's mood is at that moment."""

import random
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import pytest

from ranksearch.profiling.rounds import Ratio, Rounds

TRUE_MS = {"net": 10.0, "a": 1.0, "b": 2.0, "c": 0.5, "slow": 40.0}


class Machine:
    def __init__(self, mood=lambda now: 1.0) -> None:
        self.now, self.mood, self.visits, self.slices = 0.0, mood, [], []

    def visit(self, item: str) -> float:
        ms = TRUE_MS[item] * self.mood(self.now)
        self.now += ms
        self.visits.append(item)
        return ms

    @contextmanager
    def alone(self):
        start, first = self.now, len(self.visits)
        yield
        self.slices.append((self.now - start, self.visits[first:]))


def rounds_on(machine: Machine, **options) -> Rounds[str]:
    items = [item for item in TRUE_MS if item != "net"]
    return Rounds(items=items, reference="net", visit=machine.visit, alone=machine.alone, **options)


def test_every_round_visits_every_item_once_in_another_order():
    machine = Machine()
    rounds = rounds_on(machine)
    orders = []
    for _ in range(6):
        start = len(machine.visits)
        rounds.run()
        orders.append(tuple(item for item in machine.visits[start:] if item != "net"))
    assert all(sorted(order) == sorted(set(TRUE_MS) - {"net"}) for order in orders)
    assert len(set(orders)) > 1


def test_every_slice_starts_and_ends_with_the_reference_and_is_short():
    machine = Machine()
    rounds = rounds_on(machine, slice_ms=20.0)
    for _ in range(4):
        rounds.run()
    for seconds_ms, visits in machine.slices:
        assert visits[0] == visits[-1] == "net"
        assert seconds_ms <= max(20, 50) + 40 + 2 * 10 + 10  # what was begun is ended, between references
    longest_without = max(sum(TRUE_MS[i] for i in run) for run in _between_references(machine.visits))
    assert longest_without <= 50 + 40


def _between_references(visits):
    places = [place for place, item in enumerate(visits) if item == "net"]
    return [visits[a + 1 : b] for a, b in pairwise(places)]


def test_ratios_are_right_on_an_even_machine_and_certain():
    rounds = rounds_on(Machine())
    for _ in range(4):
        rounds.run()
    expected = {item: Ratio(pytest.approx(ms / 10), 0.0) for item, ms in TRUE_MS.items() if item != "net"}
    assert rounds.result() == expected


def test_a_machine_that_slows_down_for_good_leaves_ratios_alone():
    machine = Machine(lambda now: 1 + now / 1500)  # three times as slow at the end
    rounds = rounds_on(machine, slice_ms=50.0)
    while machine.now < 3000:
        rounds.run()
    for item, ratio in rounds.result().items():
        assert ratio.value == pytest.approx(TRUE_MS[item] / 10, rel=0.04)


def test_the_deviation_is_that_of_the_median():
    errors, claimed = [], []
    for seed in range(60):
        noise = random.Random(seed)
        rounds = rounds_on(Machine(lambda _, noise=noise: noise.gauss(1, 0.05)), seed=seed)
        for _ in range(21):
            rounds.run()
        found = rounds.result()["slow"]
        errors.append(found.value - 4.0)
        claimed.append(found.deviation)
    spread = (sum(error**2 for error in errors) / len(errors)) ** 0.5
    assert 0.6 < spread / (sum(claimed) / len(claimed)) < 1.6


def test_the_first_round_warms_up():
    machine = Machine()
    seen: list[str] = []

    def visit(item: str) -> float:
        seen.append(item)
        return machine.visit(item) * (50 if seen.count(item) == 1 else 1)

    rounds = Rounds(items=["a", "b"], reference="net", visit=visit, alone=nullcontext)
    for _ in range(2):  # so that only one counts
        rounds.run()
    assert rounds.result() == {"a": Ratio(pytest.approx(0.1), 0.0), "b": Ratio(pytest.approx(0.2), 0.0)}
    assert set(rounds.reference_ms) == {10.0}
