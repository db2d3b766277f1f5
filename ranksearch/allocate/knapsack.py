"""Knapsack: for every budget at once the options, one a layer, that lose least in sum.

    minimise Σ_l loss_l   subject to   Σ_l cost_l ≤ budget

The multiple-choice knapsack by dynamic programming over costs in steps of h (Dudzinski and Walukiewicz 1987; Kellerer,
Pferschy, Pisinger 2004, Knapsack problems, chapter 11). A layer's costs are rounded to the nearest step for the
recursion alone: every plan that it ends in is then given its true cost, and those that another beats are dropped. So a
budget is never exceeded; and with L layers a plan loses no more than the optimum of a budget smaller by L·h, which is
`tolerance` of the whole range of costs. Exact where all costs are multiples of h.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranksearch.allocate.table import Floats
from ranksearch.errors import SpaceError

__all__ = ["Front", "knapsack"]

Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Front:
    """Plans from the cheapest to the one that loses least; costs (n,) rise, losses (n,) fall, indices (n, L)."""

    costs: Floats
    losses: Floats
    indices: NDArray[np.uint16]

    def at(self, budget: float) -> int:
        """The position of the best plan that costs at most `budget`. Raises SpaceError where there is none."""
        if budget < self.costs[0]:
            raise SpaceError(
                f"the budget is {budget:g}; the cheapest plan costs {self.costs[0]:g}, so give that or more"
            )
        return int(np.searchsorted(self.costs, budget, side="right")) - 1


def knapsack(costs: Sequence[Floats], losses: Sequence[Floats], tolerance: float = 1e-3) -> Front:
    """An array of costs and one of losses per layer; an infinite loss is never taken, a finite one there must be.

    tolerance: the most that discretisation may cost, as a share of the range from the cheapest plan to the one that
    loses least. Time and memory grow with the square of the number of layers over it.
    """
    kept: list[Indices] = [_undominated(cost, loss) for cost, loss in zip(costs, losses, strict=True)]
    spans: Floats = np.array([cost[rows[-1]] - cost[rows[0]] for cost, rows in zip(costs, kept, strict=True)])
    step = tolerance * spans.sum() / max(1, np.count_nonzero(spans)) or 1.0
    best, choices = np.zeros(1), dict[int, tuple[Indices, NDArray[np.uint16]]]()
    narrow_first = sorted(range(len(kept)), key=spans.__getitem__)  # the recursion is as wide as their sum
    for layer in narrow_first:
        rows = kept[layer]
        shifts = np.rint((costs[layer][rows] - costs[layer][rows[0]]) / step).astype(np.intp)
        best, picks = _extended(best, shifts, losses[layer][rows])
        choices[layer] = shifts, picks
    indices = _traced(np.flatnonzero(np.isfinite(best)), choices, kept)
    cheapest = np.array([[rows[0] for rows in kept]], np.uint16)  # rounding may have put another in its place
    return _front(costs, losses, np.concatenate((cheapest, indices)))


def _undominated(costs: Floats, losses: Floats) -> Indices:
    """Positions from the cheapest to the one that loses least, of what nothing is better than or equal to."""
    order = np.lexsort((losses, costs))
    order = order[np.isfinite(losses[order])]
    least_before = np.minimum.accumulate(losses[order])[:-1]
    return order[np.concatenate(([True], losses[order][1:] < least_before))]


def _extended(best: Floats, shifts: Indices, losses: Floats) -> tuple[Floats, NDArray[np.uint16]]:
    """Least loss at every number of steps with one layer more, and which of its options is in it."""
    found = np.full(len(best) + shifts[-1], np.inf)
    picks = np.zeros(len(found), np.uint16)
    for position, (shift, loss) in enumerate(zip(shifts, losses, strict=True)):
        reach = slice(shift, shift + len(best))
        candidate = best + loss
        better = candidate < found[reach]
        np.copyto(found[reach], candidate, where=better)
        np.copyto(picks[reach], np.uint16(position), where=better)
    return found, picks


def _traced(
    ends: Indices, choices: dict[int, tuple[Indices, NDArray[np.uint16]]], kept: Sequence[Indices]
) -> NDArray[np.uint16]:
    """(n, L): the options of the plans that end at these steps, from the last layer added back to the first."""
    indices = np.empty((len(ends), len(kept)), np.uint16)
    for layer, (shifts, picks) in reversed(choices.items()):
        picked = picks[ends]
        indices[:, layer] = kept[layer][picked]
        ends = ends - shifts[picked]
    return indices


def _front(costs: Sequence[Floats], losses: Sequence[Floats], indices: NDArray[np.uint16]) -> Front:
    def summed(values: Sequence[Floats]) -> Floats:
        total = np.zeros(len(indices))
        for layer, of_layer in enumerate(values):
            total += of_layer[indices[:, layer]]
        return total

    all_costs, all_losses = summed(costs), summed(losses)
    rows = _undominated(all_costs, all_losses)
    return Front(costs=all_costs[rows], losses=all_losses[rows], indices=indices[rows])
