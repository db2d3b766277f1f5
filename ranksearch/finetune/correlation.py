"""LinearConv's regulariser: keeps the primary filters of a layer from resembling each other.

    Σ_layers Σ_groups Σ_ij |corr(P)_ij − δ_ij|      P (primary, Q): a row a filter

corr is the matrix of Pearson's correlations of the rows. A constant row, which has none, counts as correlated with no
other. Source: Kahatapitiya, Rodrigo 2021 (arXiv 1907.11432), section 3.3, with a weight of 0.01 on every tenth batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranksearch.factorize.linearconv_layer import LinearConvLayer
from ranksearch.factorize.truncation import per_group

__all__ = ["primary_correlation"]


def primary_correlation(model: nn.Module) -> Tensor | float:
    """The sum over all LinearConvLayers of the model, differentiable; 0.0 where it has none."""
    return sum(_of_layer(module) for module in model.modules() if isinstance(module, LinearConvLayer))


def _of_layer(layer: LinearConvLayer) -> Tensor:
    filters_GPQ = per_group(layer.primary, layer.shape.groups).flatten(2)
    unit_GPQ = functional.normalize(filters_GPQ - filters_GPQ.mean(-1, keepdim=True), dim=-1)
    correlation_GPP = unit_GPQ @ unit_GPQ.mT
    return (correlation_GPP - torch.eye(correlation_GPP.shape[-1]).to(correlation_GPP)).abs().sum()
