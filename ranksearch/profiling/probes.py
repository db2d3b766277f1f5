"""What is timed for a profile: layers as they run inside the network, and the network itself.

A layer is called once at a time, its input just written, its weights not touched since the last round, as the layers
before and behind leave them there. Layers of equal shape and input are one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

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
from ranksearch.records import LayerChoice, LayerRecord, MeasureConfig
from ranksearch.workbench import Workbench

__all__ = ["Item", "Probes"]

Item: TypeAlias = tuple[str, LayerChoice]  # a layer and what enters it, in words; and what becomes of it


class Probes:
    """items: every option of every distinct layer. shapes: layer -> its words. `prepare` some before `visit`."""

    def __init__(self, bench: Workbench, layers: Sequence[LayerRecord], config: MeasureConfig) -> None:
        self._bench, self._config = bench, config
        dense, self._inputs = bench.measuring(config)
        self._dense = fold_batchnorm(dense, self._inputs) if config.fold_batchnorm else dense
        names = [layer.name for layer in layers]
        twin = unpacked(self._dense, set(names))
        entered = _entering(twin, names, self._inputs)
        modules = {name: cast("StandardLayer", twin.get_submodule(name)) for name in names}
        self.shapes = {name: _in_words(LayerShape.of(modules[name]), entered[name]) for name in names}
        first = {self.shapes[name]: name for name in reversed(names)}
        self._layers = {shape: (modules[name], entered[name]) for shape, name in first.items()}
        self.items = list(
            dict.fromkeys((self.shapes[layer.name], option.choice) for layer in layers for option in layer.options)
        )

    def prepare(self, items: Iterable[Item]) -> None:
        """These, and under None the dense network."""
        backend = BACKENDS[self._config.backend]
        timed: dict[Any, Call] = {item: self._call(*item) for item in items}
        timed[None] = backend.prepare(self._dense, self._inputs, self._config, self._bench.device)
        self._clock = make_clock(timed, self._config, self._bench.device)

    def visit(self, item: Item | None) -> float:
        """Milliseconds of one call, of an input that was just written."""
        for x in self._layers[item[0]][1] if item else ():
            x.mul_(1)
        return self._clock(item)

    @contextmanager
    def alone(self) -> Iterator[None]:
        device = self._bench.device
        with self._bench.lock.exclusive(), quiet(self._config, device), deployed_kernels(), torch.inference_mode():
            yield

    def _call(self, shape: str, choice: LayerChoice) -> Call:
        """Numbers decide no time, so that nothing is decomposed."""
        dense, entered = self._layers[shape]
        small = (
            compress(nn.Sequential(dense), {"0": choice}, init="random").get_submodule("0").eval().requires_grad_(False)
        )
        choose_forwards(nn.Sequential(small), entered[0], self._bench.forwards)
        backend = BACKENDS[layer_backend(self._config)]
        return _one_after_another([backend.prepare(small, x, self._config, self._bench.device) for x in entered])


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


def _in_words(shape: LayerShape, entered: Sequence[Tensor]) -> str:
    """All that decides the time of a layer, to be read and to be compared:
    `conv2d 64→128 3×3/2, padding 1×1, no bias, on 8×64×56×56`."""
    padding = shape.padding if isinstance(shape.padding, str) else _times(shape.padding)
    words = [
        f"{shape.kind} {shape}",
        f"padding {padding}" if padding else "",
        "" if shape.padding_mode == "zeros" else f"padding mode {shape.padding_mode}",
        f"output padding {_times(shape.output_padding)}" if any(shape.output_padding) else "",
        "" if shape.bias else "no bias",
    ]
    calls = Counter(_times(x.shape) for x in entered)
    words += [f"on {size}" if count == 1 else f"{count} times on {size}" for size, count in calls.items()]
    return ", ".join(word for word in words if word)


def _times(numbers: Iterable[int]) -> str:
    return "×".join(map(str, numbers))
