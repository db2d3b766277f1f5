"""Spatial SVD: a kh×kw convolution as kh×1 to R channels, then 1×kw.

    W (C·kh, N·kw) = U S Vᵀ;   first U √S: C → R, kh×1,   last √S Vᵀ: R → N, 1×kw

The first factor takes the vertical half of stride, padding and dilation, the last the horizontal half. Each group is
split by itself, so that a depthwise convolution becomes the SVD of every kh×kw kernel. The closest pair of this form
in the Frobenius norm: Tai, Xiao, Zhang, Wang, E 2016 (arXiv 1511.06067).

Cost: G·R·(I·kh + O·kw) parameters (+ N); G·R·I·kh MACs per position of the intermediate (output height × input
width), G·R·O·kw per output position. At most R = min(I·kh, O·kw).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors
from ranksearch.factorize.refusal import no_convolution, nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import balanced_svd, per_group, relative_tail, working_precision

__all__ = ["SpatialSVD"]


class SpatialSVD(Chain):
    name = "spatial_svd"
    takes_metric = True

    def refuses(self, shape: LayerShape) -> str | None:
        if not shape.is_convolution or len(shape.kernel_size) == 2:
            return no_convolution(shape)
        return nothing_to_mix(shape) or "its kernel has one dimension only; use channel_svd"

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        (outputs, inputs), (height, width) = shape.group_channels, shape.kernel_size
        return (min(inputs * height, outputs * width),)

    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        channels = shape.groups * ranks[0]
        return (
            replace(shape.along(0), out_channels=channels, bias=False),
            replace(shape.along(1), in_channels=channels),
        )

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        (outputs, inputs), (height, width) = shape.group_channels, shape.kernel_size
        weight_GOIHW = per_group(working_precision(weight), shape.groups)
        matrix_GPQ = weight_GOIHW.permute(0, 2, 3, 1, 4).reshape(shape.groups, inputs * height, outputs * width)
        left_GPR, values_GR, right_GRQ = balanced_svd(matrix_GPQ)
        last_GROW = right_GRQ.reshape(*values_GR.shape, outputs, width)
        return {
            "first": left_GPR.mT.reshape(*values_GR.shape, inputs, height, 1),  # (G, R, I, H, 1)
            "last": last_GROW.transpose(1, 2).flatten(0, 1).unsqueeze(2),  # (N, R, 1, W)
            "singular_values": values_GR,
        }

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        return relative_tail(factors["singular_values"], *ranks)

    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        (rank,) = ranks
        return factors["first"][:, :rank].flatten(0, 1), factors["last"][:, :rank]

    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        first_GRIH1, last_GOR1W = (per_group(w, shape.groups) for w in weights)
        return torch.einsum("grih,gorw->goihw", first_GRIH1[..., 0], last_GOR1W.squeeze(3)).flatten(0, 1)
