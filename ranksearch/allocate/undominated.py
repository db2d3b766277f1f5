"""Undominated: of every layer the options that nothing beats in what the study optimises, the dense one among them.

What an option loses counts in every study, and beside it each of latency, MACs and parameters (for bytes, too) that is
an objective. Of options that are equal in all of them one is kept: the dense one, or else the first.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ranksearch.allocate.table import Floats, cost_of, losses_of, measured
from ranksearch.records import LayerRecord, OptionProfile, Profile

__all__ = ["undominated"]

# In the order in which options are sorted by them, with what an option may be that the dense layer is not.
BETTER = {"latency": "faster", "macs": "cheaper", "parameters": "smaller"}


def undominated(
    layers: Sequence[LayerRecord], profile: Profile, objectives: Sequence[str], noise: float = 0.0
) -> tuple[LayerRecord, ...]:
    """The same layers, each with the options left; where that is the dense one alone, with the reason and none at all.

    Options are ordered by what is measured, latency where that is an objective, so that a step of the ordered variable
    is a step in time; of equal ones the more exact comes later; dense is last.

    noise: a change of the network's latency ratio that means nothing; an option that changes it by less counts as fast
    as the dense layer.
    """
    wanted = {"parameters" if objective == "bytes" else objective for objective in objectives}
    costs = [objective for objective in BETTER if objective in wanted]
    searched = [layer for layer in layers if layer.options]
    kept = {
        layer.name: _reduced(layer, _values(rows, costs, noise), costs)
        for layer, rows in zip(searched, measured(searched, profile), strict=True)
    }
    return tuple(kept.get(layer.name, layer) for layer in layers)


def _values(rows: Sequence[OptionProfile], costs: Sequence[str], noise: float) -> Floats:
    """(options, 1 + costs): the loss, then the costs."""
    values = np.array([[cost_of(row, cost) for cost in costs] for row in rows])
    if "latency" in costs:
        latency = values[:, costs.index("latency")]
        latency[abs(latency) < noise] = 0.0
    return np.column_stack((*losses_of([rows]), values))


def _reduced(layer: LayerRecord, values: Floats, costs: Sequence[str]) -> LayerRecord:
    kept = [index for index in _nondominated(values) if index < len(layer.options) - 1]
    if not kept:
        better = " or ".join(BETTER[cost] for cost in costs)
        return replace(layer, options=(), skipped=f"nothing here is {better} than dense")
    kept.sort(key=lambda index: (values[index, 1], -values[index, 0]))
    return replace(layer, options=tuple(layer.options[index] for index in [*kept, -1]))


def _nondominated(values: Floats) -> list[int]:
    """The dense row is the last; it wins against its equals, then the first does."""
    turn = np.roll(np.arange(len(values)), -1)
    no_worse = (values[:, None] <= values).all(2)  # [i, j]: i is nowhere worse than j
    better = (values[:, None] < values).any(2) | (turn[:, None] < turn)
    return np.flatnonzero(~(no_worse & better).any(0)).tolist()
