"""CP: a convolution as 1×1 to R channels, each of these by itself along the kernel's sides, then 1×1.

    W[n, c, h, w] = Σ_r A[n, r] · B[c, r] · P[h, r] · Q[w, r]
    first Bᵀ: C → R,   Pᵀ: R depthwise, kh×1,   Qᵀ: R depthwise, 1×kw,   last A: R → N

One dimension has three factors. The depthwise ones take stride, padding and dilation, each of its side; each group is
split by itself. Alternating least squares, not an optimum: see polyadic.py. Source: Lebedev, Ganin, Rakhuba, Oseledets,
Lempitsky 2015 (arXiv 1412.6553), section 3; terms kept small as Phan et al. 2020 (arXiv 2008.05441) find necessary.

Cost: G·R·(I + kh + kw + O) parameters (+ N); G·R·I MACs per input position, G·R·kh per position of the intermediate
(output height × input width), G·R·(kw + O) per output position. At most R = O·I·kh·kw / max(O, I, kh, kw), which is
exact: a term for every tap and channel.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors
from ranksearch.factorize.polyadic import largest_rank, polyadic
from ranksearch.factorize.refusal import no_convolution, no_kernel, nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import per_group, working_precision

__all__ = ["CP"]

SWEEPS = 150  # a rung; 20 were measured to end 1 to 2 % above the best of ten random starts, in a fifth of the time


class CP(Chain):
    name = "cp"
    is_sliced = False

    def refuses(self, shape: LayerShape) -> str | None:
        return no_convolution(shape) or no_kernel(shape) or nothing_to_mix(shape)

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        return (largest_rank((*shape.group_channels, *shape.kernel_size)),)

    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        channels = shape.groups * ranks[0]
        depthwise = replace(shape, in_channels=channels, out_channels=channels, groups=channels, bias=False)
        return (
            shape.pointwise(shape.in_channels, channels, bias=False),
            *(depthwise.along(dim) for dim in range(len(shape.kernel_size))),
            shape.pointwise(channels, shape.out_channels, bias=shape.bias),
        )

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        weight_GOIx = per_group(working_precision(weight), shape.groups)
        (rank,) = ranks
        (last_GOR, *inner), error = polyadic(weight_GOIx, rank, SWEEPS)
        channels, point = shape.groups * rank, [1] * len(shape.kernel_size)
        factors = {"first": inner[0].mT.reshape(channels, -1, *point)}
        for dim, side_GHR in enumerate(inner[1:]):
            sizes = [size if i == dim else 1 for i, size in enumerate(shape.kernel_size)]
            factors[f"along_{dim}"] = side_GHR.mT.reshape(channels, 1, *sizes)
        factors["last"] = last_GOR.reshape(len(weight), -1, *point)
        parts = {name: factor.to(weight_GOIx.dtype) for name, factor in factors.items()}
        return parts | {"error": torch.tensor(error, dtype=torch.float64)}

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        return float(factors["error"])

    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(factors[name] for name in ("first", "along_0", "along_1", "last") if name in factors)

    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        *inner, last = weights
        terms_GRIx = per_group(reduce(mul, inner), shape.groups)
        return torch.einsum("gor,gr...->go...", per_group(last, shape.groups).flatten(2), terms_GRIx).flatten(0, 1)
