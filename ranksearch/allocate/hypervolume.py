"""Hypervolume of (cost, score) points, cost to be small and score to be large, and the order that gains it fastest.

    HV(S) = area of the union of [cost, reference cost] × [reference score, score] over S

Greedy order: always the point that adds most. Hypervolume is submodular, so any first k of that order have at least
1 − 1/e of the most that k points can have (Nemhauser, Wolsey, Fisher 1978; Guerreiro, Fonseca, Paquete 2016).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ranksearch.allocate.table import Floats

__all__ = ["hypervolume", "hypervolume_gains", "order_by_hypervolume"]


def hypervolume_gains(points: ArrayLike, chosen: ArrayLike, reference: tuple[float, float]) -> Floats:
    """(n,): what each of `points` (n, 2), by itself, adds to the hypervolume of `chosen` (m, 2)."""
    costs, scores = _columns(points)
    edges, levels = _staircase(chosen, reference)
    widths = (edges[1:] - np.maximum(edges[:-1], costs[:, None])).clip(0)
    return (widths * (scores[:, None] - levels).clip(0)).sum(1)


def hypervolume(points: ArrayLike, reference: tuple[float, float]) -> float:
    edges, levels = _staircase(points, reference)
    return float((np.diff(edges)[1:] * (levels[1:] - reference[1])).sum())


def order_by_hypervolume(points: ArrayLike, reference: tuple[float, float]) -> list[int]:
    """The positions of `points` (n, 2), each the one that adds most to those before it; then the rest as they stand."""
    costs, scores = _columns(points)
    order: list[int] = []
    rest: Sequence[int] = range(len(costs))
    while rest:
        gains = hypervolume_gains(_rows(costs, scores, rest), _rows(costs, scores, order), reference)
        if gains.max() <= 0:
            break
        order.append(rest[int(gains.argmax())])
        rest = [position for position in rest if position != order[-1]]
    return [*order, *rest]


def _staircase(points: ArrayLike, reference: tuple[float, float]) -> tuple[Floats, Floats]:
    """The best score to be had up to a cost: levels (k,) on the intervals between edges (k + 1,), the first from −∞."""
    costs, scores = _columns(points)
    order = np.argsort(costs)
    edges = np.concatenate(([-np.inf], np.minimum(costs[order], reference[0]), [reference[0]]))
    return edges, np.maximum.accumulate(np.concatenate(([reference[1]], scores[order])))


def _columns(points: ArrayLike) -> tuple[Floats, Floats]:
    table = np.asarray(points, float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _rows(costs: Floats, scores: Floats, positions: Sequence[int]) -> Floats:
    return np.stack((costs, scores), 1)[list(positions)]
