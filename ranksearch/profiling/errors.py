"""How far every option of a layer is from the layer, as its metric sees it (factorize/metric.py).

    error = ‖B^½ (W − W̃) A^½‖² / ‖B^½ W A^½‖²

One decomposition in the metric tells it at all ranks of a method that takes one, from singular values or core energies.
Of the other methods it is computed from the weight W̃ that the layer stands for, in the same metric: A of the largest
window that was gathered, both moments damped as the metric damps them. Without a metric A = B = 1: the squared relative
Frobenius error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ranksearch import memory
from ranksearch.attention import unpacked
from ranksearch.compress import compress
from ranksearch.factorize import LayerShape, StandardLayer, method_named
from ranksearch.factorize.metric import Metric
from ranksearch.factorize.truncation import per_group
from ranksearch.records import LayerChoice, LayerRecord
from ranksearch.workbench import Workbench

__all__ = ["option_errors"]


def option_errors(
    bench: Workbench, layers: Sequence[LayerRecord], metrics: Mapping[str, Metric] | None = None
) -> dict[tuple[str, LayerChoice], float]:
    """Layer and choice -> error of every option, 0 of the dense one.

    A layer without a metric counts plainly. Raises ModelError for a weight that is not finite.
    """
    searched = [layer for layer in layers if layer.options]
    twin = unpacked(bench.dense, {layer.name for layer in searched})
    errors: dict[tuple[str, LayerChoice], float] = {}
    for layer in searched:
        module = cast("StandardLayer", twin.get_submodule(layer.name))
        metric = (metrics or {}).get(layer.name)
        for choice in (option.choice for option in layer.options):
            errors[layer.name, choice] = 0.0 if choice.is_dense else _error(bench, module, choice, metric)
        memory.trim()
    return errors


def _error(bench: Workbench, module: StandardLayer, choice: LayerChoice, metric: Metric | None) -> float:
    method, shape = method_named(choice.method), LayerShape.of(module)
    if metric is not None and not method.takes_metric:
        return _weighted_error(bench, module, choice, metric)
    factors = bench.factors.factors(method, module.weight, shape, choice.ranks, metric)
    return method.error(factors, choice.ranks) ** 2


@torch.no_grad()
def _weighted_error(bench: Workbench, module: StandardLayer, choice: LayerChoice, metric: Metric) -> float:
    method, shape = method_named(choice.method), LayerShape.of(module)
    small = compress(nn.Sequential(module), {"0": choice}, cache=bench.factors).get_submodule("0")
    dense = shape.canonical(module.weight).double()
    found = method.weight_of(small, shape).double()
    total = _norm(dense, shape, metric)
    return _norm(dense - found, shape, metric) / total if total > 0 else 0.0


def _norm(weight: Tensor, shape: LayerShape, metric: Metric) -> float:
    """tr(B M A Mᵀ), summed over groups and over the taps that A's window does not have."""
    weight_GOx = per_group(weight.flatten(1), shape.groups)
    product_GOx = weight_GOx
    if metric.inputs:
        A_GQQ = _damped(metric.inputs[max(metric.inputs, key=math.prod)], metric.damping).to(weight)
        product_GOx = torch.einsum("goqx,gqp->gopx", weight_GOx.unflatten(2, (A_GQQ.shape[-1], -1)), A_GQQ).flatten(2)
    if metric.outputs is not None:
        product_GOx = _damped(metric.outputs, metric.damping).to(weight) @ product_GOx
    return float((product_GOx * weight_GOx).sum())


def _damped(moment_GQQ: Tensor, damping: float) -> Tensor:
    """With λ times its mean diagonal added to the diagonal."""
    damped_GQQ = moment_GQQ.double().clone()
    diagonal_GQ = damped_GQQ.diagonal(dim1=-2, dim2=-1)
    diagonal_GQ += damping * float(diagonal_GQ.mean())
    return damped_GQQ
