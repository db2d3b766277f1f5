"""SVD: a linear layer or 1×1 convolution through R channels.

    W (N, C) = U S Vᵀ;   first √S Vᵀ: C → R,   last U √S: R → N

Each group of a grouped convolution is split by itself. Stride and padding go to the first factor. At any rank it is
the closest pair in the Frobenius norm (Eckart and Young 1936); as network compression: Denton, Zaremba, Bruna, LeCun,
Fergus 2014 (arXiv 1404.0736), section 3.2.1.

Cost: G·R·(I·kernel + O) parameters (+ N); G·R·(I·kernel + O) MACs per output position.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors
from ranksearch.factorize.refusal import nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import balanced_svd, per_group, relative_tail, working_precision

__all__ = ["SVD"]


class SVD(Chain):
    name = "svd"
    takes_metric = True

    def refuses(self, shape: LayerShape) -> str | None:
        if shape.taps > 1:
            return nothing_to_mix(shape) or "its kernel is larger than 1×1; use spatial_svd, channel_svd or tucker2"
        return None

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        outputs, inputs = shape.group_channels
        return (min(outputs, inputs * shape.taps),)

    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        channels = shape.groups * ranks[0]
        return (
            replace(shape, out_channels=channels, bias=False),
            shape.pointwise(channels, shape.out_channels, bias=shape.bias),
        )

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        matrix_GOQ = per_group(working_precision(weight).flatten(1), shape.groups)
        left_GOR, values_GR, right_GRQ = balanced_svd(matrix_GOQ)
        return {
            "first": right_GRQ.reshape(*values_GR.shape, *weight.shape[1:]),  # (G, R, I, *kernel)
            "last": left_GOR.reshape(len(weight), -1, *[1] * len(shape.kernel_size)),  # (N, R, 1, 1) or (N, R)
            "singular_values": values_GR,
        }

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        return relative_tail(factors["singular_values"], *ranks)

    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        (rank,) = ranks
        return factors["first"][:, :rank].flatten(0, 1), factors["last"][:, :rank]

    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        first_GRIx, last_GOR = (per_group(w, shape.groups) for w in weights)
        return torch.einsum("gor,gr...->go...", last_GOR.flatten(2), first_GRIx).flatten(0, 1)
