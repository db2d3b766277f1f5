"""Statistics re-estimated after layers were replaced. Costs a forward pass over a few hundred examples."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the common ancestor of BatchNorm1d, 2d, 3d and SyncBatchNorm

from ranksearch.inputs import Inputs, forward

__all__ = ["reestimate_batchnorm"]


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Replace every BatchNorm's running mean and variance by the average over `batches`, in place.

    The average is exact and cumulative (every batch weighs the same), so give batches of one size. Affine parameters,
    momenta and train or eval mode are left as they were. Returns how many layers were re-estimated; a model without
    BatchNorm costs nothing.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    training = model.training
    momenta = [layer.momentum for layer in layers]
    model.eval()  # dropout and their like stay off
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        for batch in batches:
            forward(model, batch)
    finally:
        model.train(training)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return len(layers)
