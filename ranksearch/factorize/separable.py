"""Separable: a convolution as a depthwise one with m filters a channel, then 1×1; m = 1 is the block of MobileNet.

    W[:, c] (O, kh·kw) = U S Vᵀ;   first √S Vᵀ: 1 → m of every channel c, kh×kw,   last U √S: C·m → N, 1×1

The input channels share nothing, so that each is split by itself, at any m as closely as the form allows (Eckart and
Young 1936). Stride, padding and dilation go to the first factor; the last keeps the groups. Source: Guo, Li, Lin, Chen,
Li 2018 (Network decoupling: from regular to depthwise separable convolutions, arXiv 1808.05517), section 3.

Cost: C·m·(kh·kw + O) parameters (+ N); as many MACs per output position. At most m = min(O, kh·kw).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors
from ranksearch.factorize.refusal import no_convolution, no_kernel, nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import balanced_svd, per_group, relative_tail, working_precision

__all__ = ["Separable"]


class Separable(Chain):
    name = "separable"
    rank_names = ("terms",)

    def refuses(self, shape: LayerShape) -> str | None:
        return no_convolution(shape) or no_kernel(shape) or nothing_to_mix(shape)

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        return (min(shape.group_channels[0], shape.taps),)

    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        channels = shape.in_channels * ranks[0]
        return (
            replace(shape, out_channels=channels, groups=shape.in_channels, bias=False),
            shape.pointwise(channels, shape.out_channels, bias=shape.bias),
        )

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        weight_GOIT = per_group(working_precision(weight), shape.groups).flatten(3)
        matrix_COT = weight_GOIT.transpose(1, 2).flatten(0, 1)
        left_COR, values_CR, right_CRT = balanced_svd(matrix_COT)
        return {
            "first": right_CRT.reshape(*values_CR.shape, 1, *shape.kernel_size),
            "last": per_group(left_COR, shape.groups).transpose(1, 2).flatten(0, 1),  # (N, I, R)
            "singular_values": values_CR,
        }

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        return relative_tail(factors["singular_values"], *ranks)

    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        (terms,) = ranks
        first_CR1x, last_NIR = factors["first"][:, :terms], factors["last"][:, :, :terms]
        point = [1] * (first_CR1x.dim() - 3)
        return first_CR1x.flatten(0, 1), last_NIR.reshape(len(last_NIR), -1, *point)

    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        outputs, inputs = shape.group_channels
        first_GIRx = weights[0].reshape(shape.groups, inputs, -1, *shape.kernel_size)
        last_GOIR = weights[1].reshape(shape.groups, outputs, inputs, -1)
        return torch.einsum("goir,gir...->goi...", last_GOIR, first_GIRx).flatten(0, 1)
