"""Knapsack seeds: the plans that a profile predicts to be best, in an order that is good wherever it is broken off.

Latencies and losses of single options add up, nearly, so the knapsack of a profile's table predicts the whole front.
Of it, those plans are taken, one after the other, that add most hypervolume to those before. For that a predicted loss
is mapped to a score, the share of its accuracy that a briefly fine-tuned network keeps:

    score = 1 / (1 + (loss / half)ᵖ)
"""

from collections.abc import Sequence

import numpy as np

from ranksearch.allocate.hypervolume import order_by_hypervolume
from ranksearch.allocate.knapsack import knapsack
from ranksearch.allocate.sweep import sweep
from ranksearch.allocate.table import Floats, Table
from ranksearch.records import LayerRecord, Profile, SeedPlan

__all__ = ["HALF_LOSS", "kept_share", "knapsack_seeds"]

# As the fronts of studies are compared: what is faster than dense and keeps more than half of its accuracy counts.
REFERENCE = (1.0, 0.5)

# In nats, and its power: of 181 plans of a ResNet-9 on CIFAR-10, tuned for 0 to 80 steps, half = 4.7 and p = 0.74.
# What other nets say: benchmarks.half_loss.
HALF_LOSS, POWER = 4.7, 0.75
FINENESS = 10  # as many plans of the front are looked at for each that is taken


def knapsack_seeds(
    layers: Sequence[LayerRecord],
    profile: Profile,
    num: int = 30,
    cost: str = "latency",
    half_loss: float = HALF_LOSS,
) -> tuple[SeedPlan, ...]:
    """At most `num` plans, `seed:knapsack-RATIO` with the ratio that is predicted: of the network's latency, or where
    `cost` is macs, parameters or bytes of the searched layers' sum of it. The dense plan is not among them.

    half_loss: the summed loss at which a network is taken to keep half of its accuracy, in the profile's unit: nats,
    or errors where losses are missing.
    """
    table = Table.of(layers, profile, cost)
    front = knapsack(table.costs, table.losses)
    budgets = _spaced(float(front.costs[0]), table.budget(1.0), FINENESS * num)
    positions = sorted({front.at(budget) for budget in budgets})
    ratios = np.array([table.ratio(c) for c in front.costs[positions]])
    order = order_by_hypervolume(np.stack((ratios, kept_share(front.losses[positions], half_loss)), 1), REFERENCE)
    return sweep((f"knapsack-{ratios[i]:.3f}", table.plan(front.indices[positions[i]].tolist())) for i in order[:num])


def kept_share(losses: Floats, half_loss: float) -> Floats:
    """Of the accuracy, after a brief fine-tuning; 0 to 1."""
    return 1 / (1 + (losses.clip(0) / half_loss) ** POWER)


def _spaced(first: float, last: float, num: int) -> list[float]:
    """Evenly from the first on, the last left out."""
    return [first + (last - first) * i / num for i in range(num)]
