"""Areas by counting the cells of a grid; the greedy order by trying every point."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksearch.allocate import hypervolume, hypervolume_gains, order_by_hypervolume

REFERENCE = (8, 2)
points = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), max_size=8)


def cells(chosen) -> int:
    """Unit cells [x, x + 1] × [y, y + 1] that some point dominates."""
    (right, floor) = REFERENCE
    return sum(
        any(cost <= x and score >= y + 1 for cost, score in chosen) for x in range(right) for y in range(floor, 10)
    )


@given(points)
@settings(deadline=None)
def test_hypervolume_is_the_number_of_cells(chosen):
    assert hypervolume(chosen, REFERENCE) == cells(chosen)


@given(points, points)
@settings(deadline=None)
def test_gains_are_what_each_point_adds(candidates, chosen):
    expected = [cells([*chosen, point]) - cells(chosen) for point in candidates]
    assert hypervolume_gains(candidates, chosen, REFERENCE).tolist() == expected


@given(points)
@settings(deadline=None)
def test_the_order_is_greedy_at_every_place_and_a_permutation(candidates):
    order = order_by_hypervolume(candidates, REFERENCE)
    assert sorted(order) == list(range(len(candidates)))
    for place in range(len(order)):
        chosen, rest = [candidates[i] for i in order[:place]], order[place:]
        gains = {i: cells([*chosen, candidates[i]]) - cells(chosen) for i in rest}
        assert gains[order[place]] == max(gains.values())
        if max(gains.values()) == 0:
            assert rest == sorted(rest)  # what adds nothing stays as it stood
            break


def test_the_first_five_of_a_front_are_within_the_bound_of_the_best_five():
    ratios = np.linspace(0.3, 0.95, 14)
    front = np.stack((ratios, 1 - 0.02 / ratios**2), 1)
    reference = (1.0, 0.5)
    order = order_by_hypervolume(front, reference)
    best = max(hypervolume(front[list(five)], reference) for five in itertools.combinations(range(14), 5))
    assert hypervolume(front[order[:5]], reference) >= (1 - 1 / np.e) * best
    assert hypervolume(front[order[:1]], reference) == pytest.approx(
        max((1 - ratio) * (score - 0.5) for ratio, score in front)
    )
