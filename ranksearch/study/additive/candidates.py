"""Proposals worth scoring: steps from the front, crossings of it, and knapsacks under effects as they may be.

A knapsack is solved by Lagrange's relaxation: at a price λ of damage every variable takes the option with the smallest
cost + λ · damage; a sweep of λ gives the lower convex hull of what the effects allow, steps and crossings what lies
between. Effects are drawn from their marginal posteriors (Thompson sampling), the first draw is their mean.
"""

from collections.abc import Sequence

import numpy as np

from ranksearch.study.additive.coding import Codes, Coding, Floats
from ranksearch.study.additive.regression import Effects

__all__ = ["crossings", "knapsacks", "steps"]

PRICES = np.logspace(-2.5, 2.5, 32)  # of damage, in units that make the two sums alike
REACH = 2  # a step goes to an option at most so far away


def steps(coding: Coding, parents_PV: Codes, num: int, rng: np.random.Generator) -> Codes:
    """Parents with one variable or two changed to neighbouring options; options are ordered by cost."""
    found_NV = parents_PV[rng.integers(len(parents_PV), size=num)].copy()
    for rows in (np.arange(num), np.arange(num // 2)):
        which = rng.integers(len(coding.sizes_V), size=len(rows))
        by = rng.integers(1, REACH + 1, size=len(rows)) * rng.choice((-1, 1), size=len(rows))
        found_NV[rows, which] = (found_NV[rows, which] + by) % coding.sizes_V[which]
    return found_NV


def crossings(parents_PV: Codes, num: int, rng: np.random.Generator) -> Codes:
    """Each variable from one of two parents."""
    first, second = rng.integers(len(parents_PV), size=(2, num))
    from_first = rng.random((num, parents_PV.shape[1])) < rng.random((num, 1))
    return np.where(from_first, parents_PV[first], parents_PV[second])


def knapsacks(
    coding: Coding, costs: Sequence[Floats | Effects], damage: Effects, draws: int, rng: np.random.Generator
) -> Codes:
    """For each draw of effects, and of weights of the costs, one proposal a price."""
    found = []
    for draw in range(draws):
        spread = 0.0 if draw == 0 else 1.0
        harm_D = _drawn(damage, spread, rng)
        cost_D = sum(
            weight * _drawn(cost, spread, rng) / _range(coding, _drawn(cost, 0.0, rng))
            for weight, cost in zip(rng.dirichlet(np.ones(len(costs))), costs, strict=True)
        )
        prices = PRICES * np.exp(rng.uniform(-0.2, 0.2)) / _range(coding, damage.mean)
        found.append(_cheapest(coding, cost_D + prices[:, None] * harm_D))
    return np.concatenate(found)


def _drawn(effect: Floats | Effects, spread: float, rng: np.random.Generator) -> Floats:
    if not isinstance(effect, Effects):
        return effect
    return effect.mean + spread * effect.sd * rng.standard_normal(len(effect.mean)) if spread else effect.mean


def _range(coding: Coding, effect_D: Floats) -> float:
    """Of the sum over all variables, from the least to the most."""
    most = np.maximum.reduceat(effect_D, coding.offsets_V) - np.minimum.reduceat(effect_D, coding.offsets_V)
    return float(most.sum()) or 1.0


def _cheapest(coding: Coding, price_ND: Floats) -> Codes:
    parts = np.split(price_ND, coding.offsets_V[1:], axis=1)
    return np.stack([part.argmin(1) for part in parts], axis=1)
