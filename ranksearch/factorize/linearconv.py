"""LinearConv: a layer that stores some of its filters, the primary ones, and computes the others linearly from them.

    W (O, Q) = permutation of [P; A · P],   P (primary, Q),   A (O − primary, primary)

    linearconv            A is stored as it is
    linearconv_lowrank    A = column (O − primary, rank) · row (rank, primary)
    linearconv_sparse     A has `nonzeros` entries that are not zero; these are stored, and a bit for every entry

Q is a filter's inputs times its taps. One convolution with the dense weight, of the layer's own stride, padding and
bias: it saves parameters and bytes, not time. Each group by itself; ranks are those of one group. Rows of a linear
layer and the filters of a transposed one are as good as filters. Source: Kahatapitiya, Rodrigo 2021 (Exploiting the
redundancy in convolutional filters for parameter reduction, arXiv 1907.11432), where primary is half the filters.

The start from a trained layer is in redundancy.py. `linearconv` is the closest layer of its form, exact where W has
rank `primary`: W̃ is the truncated SVD. The other two are quasi-optima, found by a few exact minimisations in turn, and
equal to it where `rank` is min(primary, O − primary), or `nonzeros` is all. Their error may rise a little with a rank.

Cost: G·(primary·Q + coefficients) parameters (+ N), where coefficients is (O − primary)·primary, or rank·O, or
nonzeros; the MACs of the dense layer. From primary = Q on, `linearconv` is exact, and at primary = O all are: there is
no A then. The largest `rank` and `nonzeros` are those that the middle primary allows; where another allows less, all
that it allows is taken.
"""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ranksearch.factorize.linearconv_layer import (
    Coefficients,
    LinearConvLayer,
    LowRankCoefficients,
    SparseCoefficients,
    packed,
)
from ranksearch.factorize.method import Factors, Method
from ranksearch.factorize.redundancy import FilterBank, Redundancy
from ranksearch.factorize.refusal import nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import per_group, working_precision
from ranksearch.records import Cost

__all__ = ["LinearConv", "LowRankLinearConv", "SparseLinearConv"]


class LinearConv(Method):
    """Some filters are stored, the others are linear combinations of them."""

    name = "linearconv"
    rank_names = ("primary",)
    is_standard = False
    is_sliced = False

    def refuses(self, shape: LayerShape) -> str | None:
        return nothing_to_mix(shape)

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        return (shape.group_channels[0],)

    def num_coefficients(self, shape: LayerShape, ranks: tuple[int, ...]) -> int:
        """The parameters of A, of one group."""
        (primary,) = ranks
        return primary * _others(shape, primary)

    def coefficients(self, shape: LayerShape, ranks: tuple[int, ...], like: Tensor) -> nn.Module:
        """A, untrained, where not all filters are primary; of the dtype and device of `like`."""
        (primary,) = ranks
        return Coefficients(shape.groups, _others(shape, primary), primary, like)

    def fit(self, bank: FilterBank, ranks: tuple[int, ...]) -> Redundancy:
        return bank.full(*ranks)

    def stored(self, coefficients: tuple[Tensor, ...]) -> Factors:
        """The state of what `coefficients` builds, from (G, …) as `fit` gives them."""
        return {"values": coefficients[0]}

    def cost(self, shape: LayerShape, ranks: tuple[int, ...]) -> Cost:
        self.check(shape, ranks)
        filters = ranks[0] * math.prod(shape.weight_shape[1:])
        parameters = shape.groups * (filters + self.num_coefficients(shape, ranks)) + shape.bias * shape.out_channels
        return Cost(parameters=parameters, macs=shape.cost().macs)

    @torch.no_grad()
    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        weight = working_precision(weight)
        weight_GOQ = per_group(weight.flatten(1), shape.groups)
        banks = [FilterBank(weight_OQ) for weight_OQ in weight_GOQ]
        fits = [self.fit(bank, ranks) for bank in banks]
        parts = zip(weight_GOQ, banks, fits, strict=True)
        primary = torch.cat([fit.mixing.to(W_OQ) @ W_OQ[bank.order] for W_OQ, bank, fit in parts])
        squares = weight.double().square().sum(), sum(fit.squared_error for fit in fits)
        factors = {
            "primary": primary.reshape(-1, *weight.shape[1:]),
            "permutation": _places(banks),
            "error": (squares[1] / squares[0]).sqrt() if squares[0] > 0 else torch.zeros_like(squares[0]),
        }
        if ranks[0] == shape.group_channels[0]:
            return factors
        coefficients = tuple(torch.stack(group) for group in zip(*(f.coefficients for f in fits), strict=True))
        return factors | {
            f"coefficients.{name}": value if name == "bits" else value.to(weight)
            for name, value in self.stored(coefficients).items()
        }

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        return float(factors["error"])

    def build(
        self,
        shape: LayerShape,
        ranks: tuple[int, ...],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LinearConvLayer:
        self.check(shape, ranks)
        layer = LinearConvLayer(shape, ranks[0], device=device, dtype=dtype)
        if _others(shape, ranks[0]):
            layer.coefficients = self.coefficients(shape, ranks, layer.primary.data)
        return layer

    def assign(self, module: nn.Module, factors: Factors, ranks: tuple[int, ...], bias: Tensor | None) -> None:
        state: Mapping[str, Tensor] = {name: factor for name, factor in factors.items() if name != "error"}
        module.load_state_dict(state if bias is None else {**state, "bias": bias})

    def weight_of(self, module: nn.Module, shape: LayerShape) -> Tensor:
        return cast("LinearConvLayer", module).dense_weight()

    def bias_of(self, module: nn.Module) -> Tensor | None:
        return cast("LinearConvLayer", module).bias


class LowRankLinearConv(LinearConv):
    """LinearConv whose combinations go through a few filters of their own: A = column · row."""

    name = "linearconv_lowrank"
    rank_names = ("primary", "rank")
    rise = 0.02

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        outputs, inputs = shape.group_channels
        return outputs, max(1, min(outputs // 2, inputs * shape.taps))

    def num_coefficients(self, shape: LayerShape, ranks: tuple[int, ...]) -> int:
        return _useful_rank(shape, ranks) * shape.group_channels[0]

    def coefficients(self, shape: LayerShape, ranks: tuple[int, ...], like: Tensor) -> nn.Module:
        others, rank = _others(shape, ranks[0]), _useful_rank(shape, ranks)
        return LowRankCoefficients(shape.groups, others, rank, ranks[0], like)

    def fit(self, bank: FilterBank, ranks: tuple[int, ...]) -> Redundancy:
        return bank.low_rank(*ranks)

    def stored(self, coefficients: tuple[Tensor, ...]) -> Factors:
        return dict(zip(("column", "row"), coefficients, strict=True))


class SparseLinearConv(LinearConv):
    """LinearConv whose combinations have few terms: A has `nonzeros` entries that are not zero."""

    name = "linearconv_sparse"
    rank_names = ("primary", "nonzeros")
    rise = 0.02

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        outputs, _ = shape.group_channels
        return outputs, max(1, outputs**2 // 4)

    def num_coefficients(self, shape: LayerShape, ranks: tuple[int, ...]) -> int:
        primary, nonzeros = ranks
        return min(nonzeros, primary * _others(shape, primary))

    def coefficients(self, shape: LayerShape, ranks: tuple[int, ...], like: Tensor) -> nn.Module:
        nonzeros = self.num_coefficients(shape, ranks)
        return SparseCoefficients(shape.groups, _others(shape, ranks[0]), ranks[0], nonzeros, like)

    def fit(self, bank: FilterBank, ranks: tuple[int, ...]) -> Redundancy:
        return bank.sparse(*ranks)

    def stored(self, coefficients: tuple[Tensor, ...]) -> Factors:
        A_GSP, kept_GSP = coefficients
        return {"values": A_GSP[kept_GSP], "bits": packed(kept_GSP)}


def _others(shape: LayerShape, primary: int) -> int:
    return shape.group_channels[0] - primary


def _useful_rank(shape: LayerShape, ranks: tuple[int, ...]) -> int:
    primary, rank = ranks
    return min(rank, primary, _others(shape, primary))


def _places(banks: list[FilterBank]) -> Tensor:
    """(N,): where each filter is among those of all groups, primary ones of a group first."""
    firsts = (g * len(bank.order) for g, bank in enumerate(banks))
    return torch.cat([first + bank.order.argsort() for first, bank in zip(firsts, banks, strict=True)]).int()
