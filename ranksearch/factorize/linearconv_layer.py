"""LinearConvLayer: the module that `linearconv` and its variants build, and the coefficients it holds.

Shape letters, besides those of shape.py: P primary filters of a group, S = O − P others, Q inputs times taps.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranksearch.factorize.rebuilt import RebuiltLayer
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import per_group

__all__ = ["Coefficients", "LinearConvLayer", "LowRankCoefficients", "SparseCoefficients", "packed"]


class LinearConvLayer(RebuiltLayer):
    """`primary` (G·P, I, *kernel), `coefficients` (None where all filters are primary), `permutation` (N,).

    The permutation holds, for each filter of the layer, where it is among the primary and the other filters of all
    groups, group by group.
    """

    permutation: Tensor

    def __init__(
        self,
        shape: LayerShape,
        primary: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, device=device, dtype=dtype)
        size = (shape.groups * primary, *shape.weight_shape[1:])
        self.primary = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        fan_in = shape.taps * (shape.group_channels[0] if shape.is_transposed else shape.group_channels[1])
        nn.init.uniform_(self.primary, -(fan_in**-0.5), fan_in**-0.5)  # as PyTorch's layers are
        self.coefficients: nn.Module | None = None
        self.register_buffer("permutation", torch.arange(shape.out_channels, device=device, dtype=torch.int32))

    def dense_weight(self) -> Tensor:
        filters_GPQ = per_group(self.primary, self.shape.groups).flatten(2)
        if self.coefficients is not None:
            filters_GPQ = torch.cat((filters_GPQ, self.coefficients(filters_GPQ)), 1)
        return filters_GPQ.flatten(0, 1).index_select(0, self.permutation).reshape(self.shape.weight_shape)


class Coefficients(nn.Module):
    """A (G, S, P): filters (G, P, Q) to others (G, S, Q). Untrained, these have the variance of the former.

    Here and in the variants, `like` has the dtype and device that the parameters shall have.
    """

    def __init__(self, G: int, S: int, P: int, like: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(like.new_empty(G, S, P).normal_(std=P**-0.5))

    def forward(self, primary_GPQ: Tensor) -> Tensor:
        return self.values @ primary_GPQ


class LowRankCoefficients(nn.Module):
    """A = column (G, S, R) · row (G, R, P)."""

    def __init__(self, G: int, S: int, R: int, P: int, like: Tensor) -> None:
        super().__init__()
        deviation = (R * P) ** -0.25
        self.column = nn.Parameter(like.new_empty(G, S, R).normal_(std=deviation))
        self.row = nn.Parameter(like.new_empty(G, R, P).normal_(std=deviation))

    def forward(self, primary_GPQ: Tensor) -> Tensor:
        return self.column @ (self.row @ primary_GPQ)


class SparseCoefficients(nn.Module):
    """A (G, S, P) by the values of its kept entries, in order, and `bits`, which says of every entry if it is kept.

    The parameters are the kept values only. `bits` is a mask of booleans, eight to a byte: an entry costs an eighth of
    a byte, a kept one its value more. To drop entries, take the values where `kept` and pack the smaller mask.
    """

    bits: Tensor

    def __init__(self, G: int, S: int, P: int, nonzeros: int, like: Tensor) -> None:
        super().__init__()
        self.size = (G, S, P)
        counts_S = torch.tensor([nonzeros // S + (s < nonzeros % S) for s in range(S)])  # rows differ by one at most
        deviations = counts_S.rsqrt().repeat_interleave(counts_S).repeat(G)
        self.values = nn.Parameter(like.new_empty(G * nonzeros).normal_() * deviations.to(like))
        places_GSP = torch.rand(self.size, device=like.device).argsort(-1).argsort(-1)
        self.register_buffer("bits", packed(places_GSP < counts_S[:, None].to(like.device)))

    @property
    def kept(self) -> Tensor:
        """Which entries of A are kept: booleans (G, S, P)."""
        bits = self.bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=self.bits.device) & 1
        return bits.flatten()[: math.prod(self.size)].view(self.size).bool()

    def forward(self, primary_GPQ: Tensor) -> Tensor:
        return self.values.new_zeros(self.size).masked_scatter(self.kept, self.values) @ primary_GPQ


def packed(kept: Tensor) -> Tensor:
    """Booleans as bytes, the first one in the lowest bit of the first byte."""
    eights = functional.pad(kept.flatten().byte(), (0, -kept.numel() % 8)).view(-1, 8)
    return (eights * 2 ** torch.arange(8, device=kept.device)).sum(1).byte()
