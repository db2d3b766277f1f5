"""The knapsack against enumeration, against a mixed-integer solver, and its stated bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from ranksearch.allocate import knapsack
from ranksearch.errors import SpaceError

seeds = st.integers(0, 2**32 - 1)


def enumerated(costs, losses):
    """(cost, loss) of every plan."""
    plans = itertools.product(*(range(len(of_layer)) for of_layer in costs))
    return np.array(
        [[sum(of_layer[i] for of_layer, i in zip(v, plan, strict=True)) for v in (costs, losses)] for plan in plans]
    )


def solved(costs, losses, budget) -> float:
    """The least loss, by HiGHS; inf where nothing fits."""
    owner = np.repeat(np.arange(len(costs)), [len(c) for c in costs])
    one_each = (owner == np.arange(len(costs))[:, None]).astype(float)
    answer = milp(
        np.concatenate(losses),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(np.concatenate(costs), -np.inf, budget)],
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return answer.fun if answer.success else np.inf


def drawn(seed, num_layers, num_options, *, whole=False):
    """Costs below and above the dense option's, the last; losses below 0 too, as noise makes them."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, num_options + 1, num_layers)
    costs = [rng.integers(-9, 3, n).astype(float) if whole else rng.uniform(-1, 0.2, n) for n in sizes]
    losses = [rng.integers(-3, 40, n) / 1000 if whole else rng.normal(0.5, 0.5, n) for n in sizes]
    for cost, loss in zip(costs, losses, strict=True):
        cost[-1] = loss[-1] = 0.0
    return costs, losses


@given(seed=seeds, num_layers=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_whole_costs_give_every_optimum_exactly(seed, num_layers):
    costs, losses = drawn(seed, num_layers, 5, whole=True)
    span = sum(cost[np.lexsort((cost, loss))[0]] - cost.min() for cost, loss in zip(costs, losses, strict=True))
    front = knapsack(costs, losses, tolerance=1 / max(1, span))  # a step is 1 over the number of layers
    plans = enumerated(costs, losses)
    best = [(b, plans[plans[:, 0] <= b, 1].min()) for b in np.unique(plans[:, 0])]
    for budget, loss in best:
        assert front.losses[front.at(budget)] == pytest.approx(loss, abs=1e-12)


@given(seed=seeds, num_layers=st.integers(1, 12), tolerance=st.sampled_from([1e-3, 0.03, 0.2]))
@settings(max_examples=25, deadline=None)
def test_against_a_solver_it_lies_between_the_optimum_and_that_of_a_slightly_smaller_budget(
    seed, num_layers, tolerance
):
    costs, losses = drawn(seed, num_layers, 8)
    front = knapsack(costs, losses, tolerance)
    span = front.costs[-1] - front.costs[0]
    for budget in front.costs[0] + span * np.array([0.0, 0.11, 0.35, 0.62, 0.9, 1.2]):
        position = front.at(budget)
        assert front.costs[position] <= budget
        loss = front.losses[position]
        assert loss >= solved(costs, losses, budget + 1e-9) - 1e-6
        assert loss <= solved(costs, losses, budget - tolerance * span - 1e-9) + 1e-6


@given(seed=seeds, num_layers=st.integers(0, 8), tolerance=st.sampled_from([1e-3, 0.3]))
@settings(max_examples=60, deadline=None)
def test_the_front_is_a_front_of_plans_that_cost_and_lose_what_it_says(seed, num_layers, tolerance):
    costs, losses = drawn(seed, num_layers, 7)
    front = knapsack(costs, losses, tolerance)
    assert (np.diff(front.costs) > 0).all()
    assert (np.diff(front.losses) < 0).all()  # more budget never loses more
    for position, plan in enumerate(front.indices):
        assert front.costs[position] == pytest.approx(sum(cost[i] for cost, i in zip(costs, plan, strict=True)))
        assert front.losses[position] == pytest.approx(sum(loss[i] for loss, i in zip(losses, plan, strict=True)))
    assert front.costs[0] == pytest.approx(sum(c.min() for c in costs), abs=1e-12)
    assert front.losses[-1] == pytest.approx(sum(loss.min() for loss in losses), abs=1e-12)


def test_the_error_stays_below_its_tolerance_where_every_rounding_goes_the_same_way():
    """Forty equal layers, each of whose options lies just beyond half a step."""
    step = 1.0
    costs = [np.array([0.0, 0.51 * step, 2.49 * step, 10 * step])] * 40
    losses = [np.array([4.0, 3.0, 1.0, 0.0])] * 40
    tolerance = step * 40 / 400
    front = knapsack(costs, losses, tolerance)
    for budget in np.linspace(0, 400, 60):
        assert front.costs[front.at(budget)] <= budget
        if budget >= 40:
            assert front.losses[front.at(budget)] <= solved(costs, losses, budget - 40) + 1e-6


def test_an_infinite_loss_is_never_taken_however_cheap():
    front = knapsack([np.array([-5.0, -1.0, 0.0])] * 2, [np.array([np.inf, 1.0, 0.0])] * 2)
    assert front.costs.tolist() == [-2, -1, 0]
    assert front.losses.tolist() == [2, 1, 0]
    assert (front.indices != 0).all()


def test_a_budget_below_the_cheapest_plan_is_refused_with_what_is_possible():
    front = knapsack([np.array([2.0, 3.0])], [np.array([1.0, 0.0])])
    with pytest.raises(SpaceError, match=r"budget is 1; the cheapest plan costs 2"):
        front.at(1.0)
    assert front.at(2.0) == 0
    assert front.at(1e9) == 1
