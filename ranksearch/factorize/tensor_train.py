"""Tensor train: a weight as a tensor with four modes, stored as four cores in a row.

    W[i0, i1, i2, i3] = G0[i0] · G1[i1] · G2[i2] · G3[i3],   Gk[ik] a matrix r(k-1) × r(k),   r(-1) = r(3) = 1

Its ranks r0, r1, r2 are those of the weight unfolded behind the first, second and third mode. The subclasses say what
the modes are: spatial ones first, then channel modes, each of an input factor times an output factor (Oseledets 2011;
Novikov, Podoprikhin, Osokin, Vetrov 2015, arXiv 1509.06569, sections 3 and 4; Garipov, Podoprikhin, Novikov, Vetrov
2016, arXiv 1611.03214, section 4).

The decomposition cuts from both ends, by orthogonal projections, and then by one SVD in the middle, so that the losses
add up squared. The first and the last mode keep their leading singular vectors. Where the SVD is small, the last mode
may instead keep those that it has once the modes before it are cut, for eight fixed cuts of them: the closest of the
nine is taken. In each of the nine the projections are nested, thus the error never rises with a rank. A quasi-optimum:
none of the three cuts by singular vectors loses more than the closest train does, so the error is at most √3 times the
smallest, the bound that TT-SVD from left to right has too.

Cost: Σ r(k-1)·nk·r(k) parameters (+ N), nk the size of mode k. MACs are those of the form that needs fewer on a large
input: of the dense layer, or contracted, spatial cores on every input channel and then channel mode by channel mode.

Shape letters: T taps, Ck and Sk input and output factors of channel mode k, B examples, P positions.
"""

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from itertools import pairwise, product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranksearch.factorize.method import Factors, Method
from ranksearch.factorize.rebuilt import ContractibleLayer, layout_of
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import working_precision
from ranksearch.records import Cost

__all__ = ["Modes", "TensorTrain", "TensorTrainLayer", "balanced_factors"]

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch.linalg and tensordot are not annotated)

LARGE = 256  # positions a side of the input on which rebuilt and contracted are compared
SMALL = 256  # the smaller side of the matrix in the middle, up to which nine of them are decomposed for one train


@cache
def balanced_factors(number: int, count: int, smallest: int = 2) -> tuple[int, ...]:
    """`count` ascending factors of 2 or more, as equal as possible (the smallest sum); none where it has fewer."""
    if count == 1:
        return (number,) if number >= smallest else ()
    splits = [
        (factor, *rest)
        for factor in range(smallest, math.isqrt(number) + 1)
        if number % factor == 0 and (rest := balanced_factors(number // factor, count - 1, factor))
    ]
    return min(splits, key=lambda factors: (sum(factors), max(factors)), default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Modes:
    """How a layer's weight is a tensor with four modes.

    One spatial mode for each layer of `spatial`, whose channels mean nothing, then one for each pair of input and
    output factors; the channel index is theirs in C order.
    """

    spatial: tuple[LayerShape, ...] = ()
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        channels = (c * s for c, s in zip(self.inputs, self.outputs, strict=True))
        return (*(layer.taps for layer in self.spatial), *channels)

    def stages(self, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        """The spatial cores as layers; the first takes each input channel by itself."""
        bonds = zip(self.spatial, pairwise((1, *ranks)), strict=False)
        return tuple(replace(s, in_channels=left, out_channels=right, bias=False) for s, (left, right) in bonds)

    def channel_cores(self, ranks: tuple[int, ...]) -> tuple[tuple[int, int, int, int], ...]:
        """(r, Ck, Sk, r') for each channel mode."""
        bonds = list(pairwise((1, *ranks, 1)))[len(self.spatial) :]
        return tuple((r, c, s, q) for (r, q), c, s in zip(bonds, self.inputs, self.outputs, strict=True))

    def contracted_macs(self, shape: LayerShape, ranks: tuple[int, ...]) -> int:
        sizes, macs = shape.input_sizes, 0
        for stage in self.stages(ranks):
            sized = replace(stage, input_sizes=sizes)
            macs, sizes = macs + shape.in_channels * sized.cost().macs, sized.output_sizes
        positions = sum(math.prod(size) for size in sizes)
        around = (math.prod(self.outputs[:k]) * math.prod(self.inputs[k + 1 :]) for k in range(len(self.inputs)))
        return macs + positions * sum(
            map(math.prod, zip(around, map(math.prod, self.channel_cores(ranks)), strict=True))
        )

    def are_contracted(self, shape: LayerShape, ranks: tuple[int, ...]) -> bool:
        """Whether that needs fewer MACs than the dense layer, for a large input: the same for all input sizes."""
        large = replace(shape, input_sizes=((LARGE,) * max(1, len(shape.kernel_size)),))
        return self.contracted_macs(large, ranks) < large.cost().macs

    def interleave(self, weight: Tensor) -> Tensor:
        """The tensor of `sizes` from the weight (N, C, *kernel)."""
        d = len(self.inputs)
        channels = [axis for k in range(d) for axis in (d + k, k)]
        return weight.reshape(*self.outputs, *self.inputs, -1).permute(2 * d, *channels).reshape(self.sizes)


class TensorTrainLayer(ContractibleLayer):
    """A layer that holds the cores of its weight: spatial ones (r', r, *kernel), then channel ones (r, Ck, Sk, r')."""

    def __init__(
        self,
        shape: LayerShape,
        modes: Modes,
        ranks: tuple[int, ...],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, device=device, dtype=dtype)
        self.modes = modes
        self.stages = modes.stages(ranks)
        self.contracted = modes.are_contracted(shape, ranks)
        sizes = [*(stage.weight_shape for stage in self.stages), *modes.channel_cores(ranks)]
        self.cores = nn.ParameterList(torch.empty(size, device=device, dtype=dtype) for size in sizes)
        self._initialise(math.prod(ranks))

    @torch.no_grad()
    def _initialise(self, paths: int) -> None:
        """Cores drawn so that the dense weight has the root mean square of a fresh PyTorch layer's.

        It is a sum over the paths through the bonds, right on average; a draw of few numbers is off, hence the scale.
        """
        fan_in = self.shape.taps * (self.shape.out_channels if self.shape.is_transposed else self.shape.in_channels)
        wanted, share = (3 * fan_in) ** -0.5, 1 / len(self.cores)
        for core in self.cores:
            nn.init.normal_(core, std=(wanted * paths**-0.5) ** share)
        found = self.dense_weight().float().square().mean().sqrt()
        for core in self.cores:
            core.mul_((wanted / found) ** share)

    @property
    def spatial_cores(self) -> list[Tensor]:
        return list(self.cores)[: len(self.stages)]

    @property
    def channel_cores(self) -> list[Tensor]:
        return list(self.cores)[len(self.stages) :]

    def dense_weight(self) -> Tensor:
        d = len(self.modes.inputs)
        cores = [*self._kernel(), *self.channel_cores]
        train = reduce(partial(torch.tensordot, dims=1), cores)  # (T, C1, S1, …, Cd, Sd, 1)
        outputs, inputs = range(2, 2 * d + 1, 2), range(1, 2 * d, 2)
        return train.permute(*outputs, *inputs, 0, 2 * d + 1).reshape(self.shape.weight_shape)

    def _kernel(self) -> list[Tensor]:
        """(T, R): the product of the spatial cores, where there are any."""
        if not self.stages:
            return []
        kernel_R1x = reduce(lambda first, then: torch.einsum("qr...,ro...->qo...", then, first), self.spatial_cores)
        return [kernel_R1x.flatten(1).mT]

    def contract(self, x: Tensor) -> Tensor:
        if not self.shape.is_convolution:
            return self._mix(x.unsqueeze(-1))
        first = x.dim() - len(self.shape.kernel_size)  # spatial dimension
        batch, sizes = x.shape[: first - 1], x.shape[first:]
        y_X1x = x.reshape(math.prod(x.shape[:first]), 1, *sizes)
        for stage, core in zip(self.stages, self.spatial_cores, strict=True):
            y_X1x = stage.apply(y_X1x, core, None)
        y_BCRP = y_X1x.unflatten(0, (-1, self.shape.in_channels)).flatten(3)
        y_BNP = self._mix(y_BCRP.permute(0, 3, 1, 2)).mT
        return y_BNP.reshape(*batch, self.shape.out_channels, *y_X1x.shape[2:]).contiguous(memory_format=layout_of(x))

    def _mix(self, x: Tensor) -> Tensor:
        """(…, C, r) to (…, N): each core takes its input factor and the bond, and appends its output factor."""
        y = x.reshape(math.prod(x.shape[:-2]), *self.modes.inputs, x.shape[-1])
        for core in self.channel_cores:
            y = y.movedim(1, -1).flatten(-2) @ core.flatten(2).flatten(0, 1)
            y = y.unflatten(-1, core.shape[2:])
        return y.reshape(*x.shape[:-2], self.shape.out_channels)


class TensorTrain(Method):
    """The methods that build a TensorTrainLayer. They say what the modes are."""

    is_standard = False

    @abc.abstractmethod
    def modes(self, shape: LayerShape) -> Modes:
        """Four of them."""

    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        sizes = self.modes(shape).sizes
        return tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))

    def cost(self, shape: LayerShape, ranks: tuple[int, ...]) -> Cost:
        self.check(shape, ranks)
        modes = self.modes(shape)
        cores = sum(r * n * q for n, (r, q) in zip(modes.sizes, pairwise((1, *ranks, 1)), strict=True))
        contracted = modes.are_contracted(shape, ranks)
        macs = modes.contracted_macs(shape, ranks) if contracted else shape.cost().macs
        return Cost(parameters=cores + shape.bias * shape.out_channels, macs=macs)

    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        """The tensor in the singular vectors of its first and last mode, and bases of the last one to choose from."""
        weight = working_precision(weight)
        tensor = self.modes(shape).interleave(weight.double())
        n0, n1, n2, n3 = tensor.shape
        first = _basis(tensor.reshape(n0, -1))[:, : n1 * n2 * n3]
        last = _basis(tensor.reshape(-1, n3).mT)[:, : n0 * n1 * n2]
        middle = ((first.mT @ tensor.flatten(1)).reshape(-1, n3) @ last).reshape(-1, n1, n2, last.shape[1])
        factors = {"first": first, "middle": middle, "last": last}
        turns = torch.stack(list(_turns(middle)))  # in float64: they are compared, and losses add up where orthogonal
        return {name: factor.to(weight.dtype) for name, factor in factors.items()} | {"turns": turns}

    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        r0, r1, r2 = ranks
        middle = factors["middle"].double()
        turned = middle[:r0] @ _best_turn(middle, factors["turns"], ranks)
        lost = (middle[r0:], turned[..., r2:], _singular_values(turned[..., :r2])[r1:])
        total = middle.square().sum()
        return float((sum(part.square().sum() for part in lost) / total).sqrt()) if total > 0 else 0.0

    def build(
        self,
        shape: LayerShape,
        ranks: tuple[int, ...],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TensorTrainLayer:
        self.check(shape, ranks)
        return TensorTrainLayer(shape, self.modes(shape), ranks, device=device, dtype=dtype)

    @torch.no_grad()
    def assign(self, module: nn.Module, factors: Factors, ranks: tuple[int, ...], bias: Tensor | None) -> None:
        layer = cast("TensorTrainLayer", module)
        cores = _of_one_norm(_cores(factors, ranks))
        for core, found_RnQ in zip(layer.spatial_cores, cores, strict=False):
            core.copy_(found_RnQ.permute(2, 0, 1).reshape(core.shape))
        for core, found_RnQ in zip(layer.channel_cores, cores[len(layer.stages) :], strict=True):
            core.copy_(found_RnQ.reshape(core.shape))
        if bias is not None:
            cast("Tensor", layer.bias).copy_(bias)

    def weight_of(self, module: nn.Module, shape: LayerShape) -> Tensor:
        return cast("TensorTrainLayer", module).dense_weight()

    def bias_of(self, module: nn.Module) -> Tensor | None:
        return cast("TensorTrainLayer", module).bias


def _basis(matrix: Tensor) -> Tensor:
    """(P, P): the left singular vectors of (P, Q), those of the largest singular values first."""
    return torch.linalg.eigh(matrix @ matrix.mT).eigenvectors.flip(1)


def _matrix(middle: Tensor) -> Tensor:
    """Unfolded at the middle bond."""
    return middle.flatten(2).flatten(0, 1)


def _turns(middle: Tensor) -> Iterator[Tensor]:
    """Bases of the last mode: its singular vectors, then those after cuts of the first rank and of the second."""
    size0, size1, size2, last = middle.shape
    yield torch.eye(last, dtype=middle.dtype, device=middle.device)
    if min(size0 * size1, size2 * last) > SMALL:
        return
    for rank0, rank1 in list(product(_shares(size0), _shares(size0 * size1)))[1:]:
        matrix = _matrix(middle[:rank0])
        yield _basis((_basis(matrix)[:, :rank1].mT @ matrix).reshape(-1, last).mT)


def _shares(number: int) -> list[int]:
    return [round(number ** (share / 3)) for share in (3, 2, 1)]


def _best_turn(middle: Tensor, turns: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """The basis of the last mode with which most is kept at these ranks."""
    r0, r1, r2 = ranks
    best, most = turns[0], -1.0
    for turn in turns if len(turns) > 1 and r2 < middle.shape[3] else ():
        turned = middle[:r0] @ turn[:, :r2]
        if turned.square().sum() > most:  # else it cannot be more after the cut in the middle
            kept = float(_singular_values(turned)[:r1].square().sum())
            best, most = (turn, kept) if kept > most else (best, most)
    return best


def _singular_values(middle: Tensor) -> Tensor:
    """Of the matrix at the middle bond."""
    matrix = _matrix(middle)
    tall = matrix if matrix.shape[0] > matrix.shape[1] else matrix.mT
    return torch.linalg.svdvals(torch.linalg.qr(tall, mode="r").R)


def _cores(factors: Factors, ranks: tuple[int, ...]) -> list[Tensor]:
    """The four cores (r, n, r')."""
    r0, r1, r2 = ranks
    middle = factors["middle"]
    turn = _best_turn(middle.double(), factors["turns"], ranks).to(middle)[:, :r2]
    left, right = _split(_matrix(middle[:r0] @ turn), r1)
    missing = r1 - left.shape[1]  # a bond may be wider than its neighbours let it be useful
    left, right = functional.pad(left, (0, missing)), functional.pad(right, (0, 0, 0, missing))
    return [
        factors["first"][None, :, :r0],
        left.reshape(r0, -1, r1),
        right.reshape(r1, -1, r2),
        (factors["last"] @ turn).mT[:, :, None],
    ]


def _split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the closest matrix of this rank, from the eigenvectors of its smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _split(matrix.mT, rank)
        return left.mT, right.mT
    basis = _basis(matrix.double())[:, :rank].to(matrix)
    return basis, basis.mT @ matrix


def _of_one_norm(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same product from factors that learn at the same pace."""
    norms = torch.stack([core.norm() for core in cores])
    if not norms.all():
        return list(cores)
    return [core * scale for core, scale in zip(cores, norms.log().mean().exp() / norms, strict=True)]
