"""Rank-1: every filter of a convolution as m outer products of a vector over channels, one down and one across.

    W[n, c, h, w] = Σ_j t[n, j, c] · p[n, j, h] · q[n, j, w]
    first t: C → N·m, 1×1,   p: N·m depthwise, kh×1,   last q: m → 1 for every n, 1×kw, which sums the terms

One dimension has t and q alone, and is the truncated SVD of every filter. The last two take stride, padding and
dilation, each of its side; the first keeps the groups. Else alternating least squares, not an optimum: see polyadic.py.
Source: Kim, Yoon, Jeong, Lee 2018 (arXiv 1808.04303) for m = 1; more terms are ours.

Cost: N·m·(I + kh + kw) parameters (+ N); N·m·I MACs per input position, N·m·kh per position of the intermediate
(output height × input width), N·m·kw per output position. At most m = I·kh·kw / max(I, kh, kw), which is exact: in a
layer of many channels, a term for every tap.
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
from ranksearch.factorize.truncation import working_precision

__all__ = ["Rank1"]

SWEEPS = 100  # a rung; filters are small, and near the exact rank convergence is slow


class Rank1(Chain):
    name = "rank1"
    rank_names = ("terms",)
    is_sliced = False

    def refuses(self, shape: LayerShape) -> str | None:
        return no_convolution(shape) or no_kernel(shape) or nothing_to_mix(shape)

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        return (largest_rank(shape.weight_shape[1:]),)

    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        channels = shape.out_channels * ranks[0]
        wide = replace(shape, in_channels=channels, out_channels=channels, groups=channels, bias=False)
        *inner, last = range(len(shape.kernel_size))
        return (
            shape.pointwise(shape.in_channels, channels, bias=False),
            *(wide.along(dim) for dim in inner),
            replace(shape.along(last), in_channels=channels, groups=shape.out_channels),
        )

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        weight_NIx = working_precision(weight)
        (terms,) = ranks
        factors, error = polyadic(weight_NIx, terms, SWEEPS)
        t_NmI, *sides = (factor.mT.to(weight_NIx.dtype) for factor in factors)
        parts = {"first": t_NmI.reshape(-1, t_NmI.shape[2], *[1] * len(sides))}
        if len(sides) == 2:
            parts["down"] = sides[0].reshape(-1, 1, shape.kernel_size[0], 1)
        parts["last"] = sides[-1].reshape(len(weight), -1, *[1] * (len(sides) - 1), shape.kernel_size[-1])
        return parts | {"error": torch.tensor(error, dtype=torch.float64)}

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        return float(factors["error"])

    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(factors[name] for name in ("first", "down", "last") if name in factors)

    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        *inner, last_Nmx = weights
        terms: Tensor = reduce(mul, inner)
        terms_NmIx = terms.reshape(*last_Nmx.shape[:2], *terms.shape[1:])
        return (terms_NmIx * last_Nmx[:, :, None]).sum(1)
