"""What every option of every layer adds to the network's latency or takes from it, one layer at a time.

    effect = (time of the option − time of the dense layer) / time of the dense network

A layer is timed alone, but as it runs inside the network: called once, its input just written, its weights not touched
since the last round, as the layers before and behind leave them there. All options of all layers take turns with the
dense network (rounds.py), on a clock that knows GPUs (clock.py). Where one thread of the CPU works, its CPU time
counts, which leaves out the time in which others had the core. Layers of equal shape and input are timed once, for all
of them.

What the options of a layer do to its neighbours (memory, fusion across layers) is left out; attention that a plan takes
apart runs without its fused path, which is left out, too. `PROBE` versions this protocol: it is lighter than that of
`latency.measure`, and the two are never mixed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from ranksearch import latency
from ranksearch.attention import unpacked
from ranksearch.compress import compress
from ranksearch.factorize import LayerShape, StandardLayer
from ranksearch.forwards import choose_forwards
from ranksearch.inputs import forward
from ranksearch.latency.backends import BACKENDS
from ranksearch.latency.backends.backend import Call
from ranksearch.latency.folding import fold_batchnorm
from ranksearch.latency.quiet import deployed_kernels, quiet
from ranksearch.layers import evaluating
from ranksearch.profiling.clock import layer_backend, make_clock
from ranksearch.profiling.rounds import MIN_ROUNDS, Ratio, Rounds
from ranksearch.records import DENSE, LayerChoice, LayerRecord, MeasureConfig
from ranksearch.threads import threads
from ranksearch.workbench import Workbench

__all__ = ["PROBE", "Latencies", "measure_latencies"]

PROBE = 1  # raise it when a change here can change a number

Key = tuple[LayerShape, tuple[torch.Size, ...]]  # a layer without its numbers, and what enters it, call by call
Item = tuple[Key, LayerChoice]
Progress = Callable[[float], None]  # the part that is done, 0 to 1


@dataclass(frozen=True, slots=True)
class Latencies:
    """effects: layer and choice -> latency ratio of the network with this choice alone, less 1, and its standard
    error."""

    dense_ms: float
    effects: Mapping[tuple[str, LayerChoice], Ratio]
    num_rounds: int


def measure_latencies(
    bench: Workbench,
    layers: Sequence[LayerRecord],
    measure: MeasureConfig,
    *,
    seconds: float = 60.0,
    noise: float = 0.002,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Latencies:
    """Rounds over all options of all layers, until what a plan's latency ratio is predicted with has a standard error
    of `noise`, or for `seconds`, but at least five times.

    The device lock is held exclusively for a second or less at a time (longer only where ten passes of the dense
    network take longer). Raises MeasurementError where the backend cannot run a layer.
    """
    start = perf_counter()
    config = latency.resolve(measure, bench.device)
    with bench.lock.shared(), threads(config.threads), deployed_kernels(), torch.inference_mode():
        probes = _Probes(bench, [layer for layer in layers if layer.options], config)
    rounds: Rounds[Item | None] = Rounds(
        items=list(probes.items), reference=None, visit=probes.visit, alone=probes.alone, seed=seed
    )
    while True:
        rounds.run()
        measured = rounds.num_rounds - 1  # the first warmed up
        found = probes.latencies(rounds) if measured >= MIN_ROUNDS else None
        elapsed = perf_counter() - start
        progress(min(1.0, elapsed / max(seconds, 1e-9)))
        if found and (elapsed >= seconds or _noise(found) <= noise):
            return found


def _noise(found: Latencies) -> float:
    """Standard error of the latency ratio of a plan that takes the least certain option of every layer."""
    worst: dict[str, float] = {}
    for (layer, _), effect in found.effects.items():
        worst[layer] = max(worst.get(layer, 0.0), effect.deviation)
    return math.sqrt(sum(deviation**2 for deviation in worst.values()))


class _Probes:
    """What is timed: the dense network under None, and every option of every distinct layer."""

    def __init__(self, bench: Workbench, layers: Sequence[LayerRecord], config: MeasureConfig) -> None:
        self._bench, self._config, self._layers = bench, config, layers
        dense, inputs = bench.measuring(config)
        dense = fold_batchnorm(dense, inputs) if config.fold_batchnorm else dense
        twin = unpacked(dense, {layer.name for layer in layers})
        entered = _entering(twin, [layer.name for layer in layers], inputs)
        modules = {name: cast("StandardLayer", twin.get_submodule(name)) for name in entered}
        self._keys = {name: (LayerShape.of(modules[name]), tuple(x.shape for x in xs)) for name, xs in entered.items()}
        first = {self._keys[name]: name for name in reversed(entered)}
        self._entered = {key: entered[name] for key, name in first.items()}
        self._calls: dict[Item, list[Call]] = {}
        for layer in layers:
            key = self._keys[layer.name]
            for choice in (option.choice for option in layer.options):
                if (key, choice) not in self._calls:
                    self._calls[key, choice] = self._prepare(modules[layer.name], choice, self._entered[key])
        timed: dict[Any, Callable[[], object]] = {
            item: _one_after_another(calls) for item, calls in self._calls.items()
        }
        timed[None] = BACKENDS[config.backend].prepare(dense, inputs, config, bench.device)
        self._clock = make_clock(timed, config, bench.device)

    @property
    def items(self) -> list[Item]:
        return list(self._calls)

    def visit(self, item: Item | None) -> float:
        """Milliseconds of one call, of an input that was just written."""
        for x in self._entered[item[0]] if item else ():
            x.mul_(1)
        return self._clock(item)

    @contextmanager
    def alone(self) -> Iterator[None]:
        device = self._bench.device
        with self._bench.lock.exclusive(), quiet(self._config, device), deployed_kernels(), torch.inference_mode():
            yield

    def latencies(self, rounds: Rounds[Item | None]) -> Latencies:
        ratios = rounds.result()
        return Latencies(
            dense_ms=median(rounds.reference_ms),
            effects={
                (layer.name, option.choice): _difference(
                    ratios[self._keys[layer.name], option.choice], ratios[self._keys[layer.name], DENSE]
                )
                for layer in self._layers
                for option in layer.options
            },
            num_rounds=rounds.num_rounds - 1,
        )

    def _prepare(self, dense: StandardLayer, choice: LayerChoice, entered: Sequence[Tensor]) -> list[Call]:
        """Numbers decide no time, so that nothing is decomposed."""
        small = (
            compress(nn.Sequential(dense), {"0": choice}, init="random").get_submodule("0").eval().requires_grad_(False)
        )
        choose_forwards(nn.Sequential(small), entered[0], self._bench.forwards)
        backend = BACKENDS[layer_backend(self._config)]
        return [backend.prepare(small, x, self._config, self._bench.device) for x in entered]


def _difference(option: Ratio, dense: Ratio) -> Ratio:
    if option is dense:
        return Ratio(0.0, 0.0)
    return Ratio(option.value - dense.value, math.hypot(option.deviation, dense.deviation))


def _one_after_another(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]

    def run() -> None:
        for call in calls:
            call()

    return run


def _entering(model: nn.Module, names: Sequence[str], inputs: Any) -> dict[str, list[Tensor]]:
    """Copies of what enters each of these layers in one pass, call by call."""
    entered: dict[str, list[Tensor]] = {name: [] for name in names}
    with evaluating(model), ExitStack() as hooks:
        for name in names:

            def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                entered[name].append((*args, *kwargs.values())[0].clone(memory_format=torch.preserve_format))

            hooks.callback(model.get_submodule(name).register_forward_pre_hook(record, with_kwargs=True).remove)
        forward(model, inputs)
    return entered
