"""Layers that can run in two ways run the way that is faster here."""

import statistics
from collections.abc import Hashable, MutableMapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.factorize.rebuilt import ContractibleLayer
from ranksearch.inputs import Inputs, forward

__all__ = ["choose_forwards"]

ROUNDS = 5  # one of each way, in turn; the first warms up
ROUND_SECONDS = 4e-3  # calls of a round last at least this long


@torch.no_grad()
def choose_forwards(
    model: nn.Module, inputs: Inputs, known: MutableMapping[Hashable, bool] | None = None
) -> dict[str, bool]:
    """Let every layer that has two forwards keep the faster one, timed on what enters it; in place.

    `model` is in eval mode, on its device. `known` holds what was found before, under the layer's form and the shape,
    dtype and device of its input, and takes what is found now. Returns layer name -> whether it is contracted now.
    """
    known = {} if known is None else known
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ContractibleLayer)}
    entered = _entering(model, layers, inputs) if layers else {}
    for name, x in entered.items():
        layer = layers[name]
        key = (layer.form, tuple(x.shape), x.dtype, x.device)
        if key not in known:
            known[key] = _is_faster_contracted(layer, x)
        layer.contracted = known[key]
    return {name: layer.contracted for name, layer in layers.items()}


def _entering(model: nn.Module, layers: dict[str, ContractibleLayer], inputs: Inputs) -> dict[str, Tensor]:
    """The last input of each layer that is called."""
    entered: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def record(_layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                entered[name] = args[0]

            hooks.callback(layer.register_forward_pre_hook(record).remove)
        forward(model, inputs)
    return entered


def _is_faster_contracted(layer: ContractibleLayer, x: Tensor) -> bool:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for contracted, found in seconds.items():
            layer.contracted = contracted
            found.append(_seconds_a_call(layer, x))
    return statistics.median(seconds[True][1:]) < statistics.median(seconds[False][1:])


def _seconds_a_call(layer: ContractibleLayer, x: Tensor) -> float:
    layer(x)  # keeps the rebuilt weight, as in the long run
    _wait(x.device)
    start, calls = perf_counter(), 0
    while (elapsed := perf_counter() - start) < ROUND_SECONDS or not calls:
        layer(x)
        _wait(x.device)
        calls += 1
    return elapsed / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
