"""Knapsack seeds of a drawn profile: what they claim to be is what the profile says of them."""

from dataclasses import replace

import numpy as np
import pytest

from ranksearch.allocate import Table, hypervolume, hypervolume_gains, knapsack, knapsack_seeds
from ranksearch.records import DENSE
from ranksearch.space import SearchSpace
from tests.allocate.conftest import drawn_profile

COSTS = ["latency", "macs", "parameters", "bytes"]


def summed(layers, profile, plan, cost) -> tuple[float, float]:
    """Predicted ratio and loss, straight from the profile."""
    rows = {(row.layer, row.choice): row for row in profile.options}
    chosen = [rows[name, choice] for name, choice in plan.items()]
    loss = sum(row.loss if row.loss is not None else row.error for row in chosen)
    if cost == "latency":
        return 1 + sum(row.latency for row in chosen), loss
    field = "macs" if cost == "macs" else "parameters"
    searched = {layer.name: getattr(layer.cost, field) for layer in layers if layer.options}
    return sum((searched | {row.layer: getattr(row.cost, field) for row in chosen}).values()) / sum(
        searched.values()
    ), loss


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("losses", [True, False])
def test_seeds_are_options_with_the_ratio_in_their_name_ordered_by_what_they_add(cost, losses, layers):
    profile = drawn_profile(layers, 5, losses=losses)
    seeds = knapsack_seeds(layers, profile, num=20, cost=cost, half_loss=2.0)
    assert 5 <= len(seeds) <= 20
    assert len({seed.plan for seed in seeds}) == len(seeds)
    points = []
    for seed in seeds:
        SearchSpace(layers).indices(seed.plan)
        ratio, loss = summed(layers, profile, seed.plan, cost)
        assert seed.origin == f"seed:knapsack-{ratio:.3f}"
        points.append((ratio, 1 / (1 + (loss / 2.0) ** 0.75)))
    gains = [hypervolume_gains(points, points[:i], (1.0, 0.5)) for i in range(len(points))]
    for place, gain in enumerate(gains):
        assert gain[place] == pytest.approx(gain.max(), abs=1e-12)
    assert gains[0][0] > 0


def kept(loss: float, half: float) -> float:
    return 1 / (1 + (max(loss, 0) / half) ** 0.75)


@pytest.mark.parametrize("seed", range(3))
def test_no_drawn_plan_is_faster_and_loses_less_than_a_seed(seed, layers):
    profile = drawn_profile(layers, seed)
    found = [summed(layers, profile, s.plan, "latency") for s in knapsack_seeds(layers, profile, num=12)]
    rng = np.random.default_rng(seed)
    table = Table.of(layers, profile)
    drawn = [[rng.integers(len(layer.options)) for layer in table.layers] for _ in range(3000)]
    rivals = [summed(layers, profile, table.plan(indices), "latency") for indices in drawn]
    assert not any(other < ratio - 1e-3 and less <= loss for ratio, loss in found for other, less in rivals)


@pytest.mark.parametrize("num", [3, 6, 12])
@pytest.mark.parametrize("half", [0.3, 3.0])
def test_few_seeds_are_worth_nearly_the_whole_front_and_more_than_evenly_spaced_ones(num, half, layers):
    profile = drawn_profile(layers, 4)
    table = Table.of(layers, profile)
    front = knapsack(table.costs, table.losses)

    def worth(pairs):
        return hypervolume([(ratio, kept(loss, half)) for ratio, loss in pairs], (1.0, 0.5))

    of_front = [(table.ratio(cost), loss) for cost, loss in zip(front.costs, front.losses, strict=True)]
    budgets = np.linspace(front.costs[0], table.budget(1.0), num, endpoint=False)
    seeds = knapsack_seeds(layers, profile, num=num, half_loss=half)
    taken = worth([summed(layers, profile, seed.plan, "latency") for seed in seeds])
    assert taken >= worth([of_front[front.at(budget)] for budget in budgets]) * (1 - 1e-9)
    assert taken >= {3: 0.8, 6: 0.9, 12: 0.95}[num] * worth(of_front)


def test_one_missing_loss_makes_all_layers_count_by_error(layers):
    """Nats and squared errors do not add up."""
    profile = drawn_profile(layers, 1)
    first, *others = profile.options
    table = Table.of(layers, replace(profile, options=(replace(first, loss=None), *others)))
    rows = {(row.layer, row.choice): row.error for row in profile.options}
    for layer, losses in zip(table.layers, table.losses, strict=True):
        assert losses.tolist() == [rows.get((layer.name, option.choice), 0.0) for option in layer.options]
        assert layer.options[-1].choice == DENSE


@pytest.mark.parametrize("cost", COSTS)
def test_ratios_and_budgets_are_each_others_inverse_and_dense_is_1(cost, layers):
    table = Table.of(layers, drawn_profile(layers, 2), cost)
    assert table.ratio(table.cost([len(costs) - 1 for costs in table.costs])) == pytest.approx(1)
    assert table.ratio(table.budget(0.37)) == pytest.approx(0.37)


def test_a_profile_in_which_nothing_saves_time_has_no_seeds(layers):
    profile = drawn_profile(layers, 3)
    slow = replace(profile, options=tuple(replace(row, latency=0.01) for row in profile.options))
    assert knapsack_seeds(layers, slow) == ()
    assert knapsack_seeds([], profile) == ()
