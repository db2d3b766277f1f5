"""Table: of every searched layer what each option costs and what it loses; both add up over the layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranksearch.records import LayerRecord, OptionProfile, Plan, Profile

__all__ = ["Floats", "Table", "cost_of", "losses_of", "measured"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Table:
    """costs, losses: an array per layer in the order of its options, dense last. An infinite loss: not to be taken.

    whole: the cost that is 1 of the ratios: of the network's latency where costs are latency ratios, else of the
    layers here when all are dense.
    """

    layers: tuple[LayerRecord, ...]
    costs: tuple[Floats, ...]
    losses: tuple[Floats, ...]
    whole: float

    @classmethod
    def of(cls, layers: Sequence[LayerRecord], profile: Profile, cost: str = "latency") -> "Table":
        """Measured losses against an objective: latency, macs, parameters or bytes (as parameters)."""
        searched = tuple(layer for layer in layers if layer.options)
        rows = measured(searched, profile)
        costs = tuple(np.array([cost_of(row, cost) for row in of_layer]) for of_layer in rows)
        return cls(
            layers=searched,
            costs=costs,
            losses=tuple(losses_of(rows)),
            whole=1.0 if cost == "latency" else float(sum(of_layer[-1] for of_layer in costs)),
        )

    def plan(self, indices: Sequence[int]) -> Plan:
        """One option index per layer."""
        return Plan(
            {layer.name: layer.options[index].choice for layer, index in zip(self.layers, indices, strict=True)}
        )

    def cost(self, indices: Sequence[int]) -> float:
        return float(sum(costs[index] for costs, index in zip(self.costs, indices, strict=True)))

    def ratio(self, cost: float) -> float:
        """A summed cost as a share of the dense network's."""
        return 1 + (cost - self._dense) / self.whole

    def budget(self, ratio: float) -> float:
        return self._dense + (ratio - 1) * self.whole

    @property
    def _dense(self) -> float:
        return float(sum(of_layer[-1] for of_layer in self.costs))


def measured(layers: Sequence[LayerRecord], profile: Profile) -> list[list[OptionProfile]]:
    """Of every layer what its options do, in their order; of the dense one what it does by definition."""
    known = {(row.layer, row.choice): row for row in profile.options}
    return [[*(known[layer.name, option.choice] for option in layer.options[:-1]), _dense(layer)] for layer in layers]


def _dense(layer: LayerRecord) -> OptionProfile:
    dense = layer.options[-1]
    return OptionProfile(layer=layer.name, choice=dense.choice, cost=dense.cost, latency=0.0, error=0.0, loss=0.0)


def cost_of(row: OptionProfile, objective: str) -> float:
    if objective == "latency":
        return row.latency
    return float(row.cost.macs if objective == "macs" else row.cost.parameters)


def losses_of(layers: Sequence[Sequence[OptionProfile]]) -> list[Floats]:
    """Measured losses where all of them are known, else errors: one unit for all that are compared."""
    if any(row.loss is None for rows in layers for row in rows):
        return [np.array([row.error for row in rows]) for rows in layers]
    return [np.array([row.loss for row in rows], float) for rows in layers]
