"""How wide the steps are in which a layer's latency rises with the rank, found by timing it at many ranks.

Kernels work on so many channels at a time, so that the next rank costs as much as a whole step of them. Of the widths s
that are looked for, the one counts with which a + b·⌈rank/s⌉ comes closest to what was timed, where that leaves at most
half of the squares that a straight line leaves.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ranksearch.factorize import METHODS, LayerShape
from ranksearch.profiling.latencies import measure_latencies
from ranksearch.records import LayerChoice, LayerRecord, MeasureConfig, Option, Staircase
from ranksearch.workbench import Workbench

__all__ = ["measure_staircase", "step_of"]

STEPS = (4, 8, 16, 32)
# The last rank of every narrowest step and the first one of the next.
RANKS = tuple(rank for last in range(8, 65, 4) for rank in (last, last + 1))
METHODS_WITH_STAIRS = ("spatial_svd", "channel_svd", "svd")  # of one rank, whose layers it gives their channels
UNEXPLAINED = 0.5


def measure_staircase(
    bench: Workbench, layers: Sequence[LayerRecord], measure: MeasureConfig, *, seconds: float = 3.0, seed: int = 0
) -> Staircase | None:
    """Of the layer with the most multiply-accumulates among those that have the ranks; None where none has.

    At least five rounds. Raises MeasurementError where the backend cannot run a layer.
    """
    shapes = {found.name: found.shape for found in bench.layers}
    costly_first = sorted((layer for layer in layers if layer.options), key=lambda layer: -layer.cost.macs)
    for layer in costly_first:
        shape = shapes[layer.name]
        method = _method(shape) if shape else None
        if shape and method:
            return _measured(bench, layer, shape, method, measure, seconds, seed)
    return None


def _method(shape: LayerShape) -> str | None:
    for name in METHODS_WITH_STAIRS:
        method = METHODS[name]
        if method.refuses(shape) is None and method.max_ranks(shape)[0] >= RANKS[-1]:
            return name
    return None


def _measured(
    bench: Workbench,
    layer: LayerRecord,
    shape: LayerShape,
    method: str,
    measure: MeasureConfig,
    seconds: float,
    seed: int,
) -> Staircase:
    options = [
        Option(choice=LayerChoice(method=method, ranks=(rank,)), cost=METHODS[method].cost(shape, (rank,)))
        for rank in RANKS
    ]
    alone = replace(layer, options=(*options, layer.options[-1]))
    found = measure_latencies(bench, [alone], measure, seconds=seconds, seed=seed)
    latency_ms = tuple(found.effects[layer.name, option.choice].layer_ms for option in options)
    return Staircase(
        shape=found.shapes[layer.name],
        method=method,
        ranks=RANKS,
        latency_ms=latency_ms,
        step=step_of(RANKS, latency_ms),
    )


def step_of(ranks: Sequence[int], latency_ms: Sequence[float]) -> int:
    """The width of the steps among 4, 8, 16 and 32; 1 where there are none."""
    left = {step: _squares_left(ranks, latency_ms, step) for step in (1, *STEPS)}
    best = min(STEPS, key=lambda step: left[step])
    return best if left[best] <= UNEXPLAINED * left[1] else 1


def _squares_left(ranks: Sequence[int], latency_ms: Sequence[float], step: int) -> float:
    stairs = -(-np.array(ranks) // step)
    design = np.stack((np.ones(len(ranks)), stairs), 1)
    fitted = design @ np.linalg.lstsq(design, np.array(latency_ms), rcond=None)[0]
    return float(((np.array(latency_ms) - fitted) ** 2).sum())
