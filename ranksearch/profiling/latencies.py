"""What every option of every layer adds to the network's latency or takes from it, one layer at a time.

    effect = (time of the option − time of the dense layer) / time of the dense network

A layer is timed alone, but as it runs inside the network (probes.py). All options of all layers take turns with the
dense network (rounds.py), on a clock that knows GPUs (clock.py). Where one thread of the CPU works, its CPU time
counts, which leaves out the time in which others had the core.

What was found before of a layer of the same shape, in whatever net, is taken over: the ratio of the option to the dense
layer, which were timed in the same rounds. The dense layer is timed anew, and so is the fastest option that is known;
where its ratio is not what it was, nothing is taken over for that shape.

What the options of a layer do to its neighbours (memory, fusion across layers) is left out; attention that a plan takes
apart runs without its fused path, which is left out, too. `PROBE` versions this protocol: it is lighter than that of
`latency.measure`, and the two are never mixed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from ranksearch import latency
from ranksearch.latency.quiet import deployed_kernels
from ranksearch.profiling.probes import Item, Probes
from ranksearch.profiling.rounds import MIN_ROUNDS, Ratio, Rounds
from ranksearch.records import DENSE, LayerChoice, LayerLatency, LayerRecord, MeasureConfig
from ranksearch.threads import threads
from ranksearch.workbench import Workbench

__all__ = ["PROBE", "Effect", "Latencies", "measure_latencies"]

PROBE = 1  # raise it when a change here, in probes or in rounds can change a number
# A ratio that differs by more than a share of it, and by more than so many standard errors, is another than it was.
SAME, DOUBT = 0.1, 3.0
MAX_ROUNDS = (
    40  # more would sharpen the median by little: a small net on an unsteady machine need not take all its time
)

Known = Mapping[Item, LayerLatency]
Progress = Callable[[float], None]  # the part that is done, 0 to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """value: latency ratio of the network with this choice alone, less 1; deviation: standard error of that."""

    value: float
    deviation: float
    layer_ms: float  # of the layer by itself
    is_measured: bool = True  # otherwise its ratio to the dense layer was taken over


@dataclass(frozen=True, slots=True)
class Latencies:
    """effects: layer and choice -> what it does. shapes: layer -> its shape and what enters it, in words."""

    dense_ms: float
    effects: Mapping[tuple[str, LayerChoice], Effect]
    shapes: Mapping[str, str]
    num_rounds: int

    @property
    def noise(self) -> float:
        """Standard error of the latency ratio of a plan that takes the least certain option timed of every layer."""
        return self._noise(are_measured=True)

    @property
    def noise_taken_over(self) -> float:
        """The same of options that were taken over, which more rounds do not lower."""
        return self._noise(are_measured=False)

    def _noise(self, *, are_measured: bool) -> float:
        worst: dict[str, float] = {}
        for (layer, _), effect in self.effects.items():
            if effect.is_measured is are_measured:
                worst[layer] = max(worst.get(layer, 0.0), effect.deviation)
        return math.sqrt(sum(deviation**2 for deviation in worst.values()))


def measure_latencies(
    bench: Workbench,
    layers: Sequence[LayerRecord],
    measure: MeasureConfig,
    *,
    seconds: float = 60.0,
    noise: float = 0.002,
    seed: int = 0,
    known: Sequence[LayerLatency] = (),
    progress: Progress = lambda _: None,
) -> Latencies:
    """Rounds over all options of all layers, until what a plan's latency ratio is predicted with has a standard error
    of `noise`, or for `seconds`, or forty times, but at least five times.

    known: what was found before under the same identity, to be taken over; half of its standard error is then enough.

    The device lock is held exclusively for a second or less at a time (longer only where ten passes of the dense
    network take longer). Raises MeasurementError where the backend cannot run a layer.
    """
    start = perf_counter()
    config, searched = latency.resolve(measure, bench.device), [layer for layer in layers if layer.options]
    with bench.lock.shared(), threads(config.threads), deployed_kernels(), torch.inference_mode():
        probes = Probes(bench, searched, config)
        taken = {item: found for found in known if (item := (found.shape, found.choice)) in set(probes.items)}
        items = _to_time(probes.items, taken)
        probes.prepare(items)
    rounds: Rounds[Item | None] = Rounds(items=items, reference=None, visit=probes.visit, alone=probes.alone, seed=seed)
    while True:
        rounds.run()
        elapsed, measured = perf_counter() - start, rounds.num_rounds - 1  # the first warmed up
        progress(min(1.0, elapsed / max(seconds, 1e-9)))
        if measured < MIN_ROUNDS:
            continue
        if measured == MIN_ROUNDS and (others := _others(rounds.result(), taken)):
            same, left = [found for found in known if found.shape not in others], max(0.0, seconds - elapsed)
            return measure_latencies(
                bench, layers, measure, seconds=left, noise=noise, seed=seed, known=same, progress=progress
            )
        found = _latencies(searched, probes.shapes, rounds, taken)
        is_over = elapsed >= seconds or measured >= MAX_ROUNDS
        if is_over or found.noise <= max(noise, found.noise_taken_over / 2):
            return found


def _to_time(items: Sequence[Item], taken: Known) -> list[Item]:
    """What is not taken over, and what tells whether the rest may be."""
    checked = set(_fastest(taken).values())
    return [item for item in items if item not in taken or item in checked]


def _fastest(taken: Known) -> dict[str, Item]:
    """Shape -> the fastest option of what is known of it."""
    found: dict[str, Item] = {}
    for item in sorted(taken, key=lambda item: taken[item].ratio):
        found.setdefault(item[0], item)
    return found


def _others(ratios: Mapping[Item | None, Ratio], taken: Known) -> set[str]:
    """Shapes whose fastest option has another ratio to the dense layer now than it had."""
    found: set[str] = set()
    for shape, item in _fastest(taken).items():
        before, option, dense = taken[item], ratios[item], ratios[shape, DENSE]
        ratio = option.value / dense.value
        deviation = ratio * math.hypot(option.deviation / option.value, dense.deviation / dense.value)
        doubt = DOUBT * math.hypot(deviation, before.ratio_deviation)
        if abs(ratio - before.ratio) > max(SAME * before.ratio, doubt):
            found.add(shape)
    return found


def _latencies(
    layers: Sequence[LayerRecord], shapes: Mapping[str, str], rounds: Rounds[Item | None], taken: Known
) -> Latencies:
    ratios, network_ms = rounds.result(), median(rounds.reference_ms)

    def effect(shape: str, choice: LayerChoice) -> Effect:
        dense, option = ratios[shape, DENSE], ratios.get((shape, choice))
        if choice.is_dense:
            return Effect(value=0.0, deviation=0.0, layer_ms=dense.value * network_ms)
        if option is None:
            return _taken_over(taken[shape, choice], dense, network_ms)
        deviation = math.hypot(option.deviation, dense.deviation)
        return Effect(value=option.value - dense.value, deviation=deviation, layer_ms=option.value * network_ms)

    return Latencies(
        dense_ms=network_ms,
        effects={
            (layer.name, option.choice): effect(shapes[layer.name], option.choice)
            for layer in layers
            for option in layer.options
        },
        shapes=shapes,
        num_rounds=rounds.num_rounds - 1,
    )


def _taken_over(known: LayerLatency, dense: Ratio, network_ms: float) -> Effect:
    change = known.ratio - 1
    return Effect(
        value=change * dense.value,
        deviation=math.hypot(known.ratio_deviation * dense.value, change * dense.deviation),
        layer_ms=known.ratio * dense.value * network_ms,
        is_measured=False,
    )
