"""Tucker-2: a k×k convolution as 1×1 to rank_in channels, a k×k core to rank_out channels, 1×1.

    W[n, c] = Σ_o Σ_i U[n, o] · core[o, i] · V[c, i];   first Vᵀ: C → rank_in,   core,   last U: rank_out → N

U and V are the left singular vectors of W unfolded along its output and its input channels (higher-order SVD; De
Lathauwer, De Moor, Vandewalle 2000), and core = Uᵀ W V is computed once: leading slices of the three are the
truncated HOSVD at any ranks. A quasi-optimum: neither of the two cuts errs more than the closest layer of this form
does, so their error is at most √2 times the smallest. Stride, padding and dilation go to the core; each group is split
by itself. Source: Kim, Park, Yoo, Choi, Yang, Shin 2016 (arXiv 1511.06530).

Cost: G·(rank_in·I + rank_out·rank_in·kh·kw + O·rank_out) parameters (+ N); G·rank_in·I MACs per input position, the
rest per output position. At most rank_out = min(O, I·kh·kw), rank_in = min(I, O·kh·kw).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors
from ranksearch.factorize.refusal import no_convolution, nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import left_singular_vectors, per_group, working_precision

__all__ = ["Tucker2"]


class Tucker2(Chain):
    name = "tucker2"
    rank_names = ("rank_out", "rank_in")
    takes_metric = True

    def refuses(self, shape: LayerShape) -> str | None:
        return no_convolution(shape) or nothing_to_mix(shape)

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        outputs, inputs = shape.group_channels
        return min(outputs, inputs * shape.taps), min(inputs, outputs * shape.taps)

    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        inner_out, inner_in = (shape.groups * rank for rank in ranks)
        return (
            shape.pointwise(shape.in_channels, inner_in, bias=False),
            replace(shape, in_channels=inner_in, out_channels=inner_out, bias=False),
            shape.pointwise(inner_out, shape.out_channels, bias=shape.bias),
        )

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        weight_GOIx = per_group(working_precision(weight), shape.groups)
        U_GOR = left_singular_vectors(weight_GOIx.flatten(2))
        V_GIS = left_singular_vectors(weight_GOIx.transpose(1, 2).flatten(2))
        core_GRSx = torch.einsum("goi...,gor,gis->grs...", weight_GOIx, U_GOR, V_GIS)
        point = [1] * len(shape.kernel_size)
        return {
            "first": V_GIS.mT.reshape(*V_GIS.mT.shape, *point),  # (G, rank_in, I, 1, 1)
            "core": core_GRSx,
            "last": U_GOR.reshape(len(weight), -1, *point),  # (N, rank_out, 1, 1)
            "energy": core_GRSx.double().square().flatten(3).sum((0, 3)),  # (rank_out, rank_in)
        }

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        rank_out, rank_in = ranks
        energy = factors["energy"]
        cut = energy[rank_out:].sum() + energy[:rank_out, rank_in:].sum()
        total = energy.sum()
        return float((cut / total).sqrt()) if total > 0 else 0.0

    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        rank_out, rank_in = ranks
        return (
            factors["first"][:, :rank_in].flatten(0, 1),
            factors["core"][:, :rank_out, :rank_in].flatten(0, 1),
            factors["last"][:, :rank_out],
        )

    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        first_GSI, core_GRSx, last_GOR = (per_group(w, shape.groups) for w in weights)
        mixed_GRIx = torch.einsum("grs...,gsi->gri...", core_GRSx, first_GSI.flatten(2))
        return torch.einsum("gor,gri...->goi...", last_GOR.flatten(2), mixed_GRIx).flatten(0, 1)
