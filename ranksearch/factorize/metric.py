"""Metric: what an error in a layer's weight costs, told by what enters the layer and by what the loss asks of it.

    minimise ‖B^½ (W − W̃) A^½‖;   A (Q, Q) = Σ x xᵀ of the windows x that the first factor reads,
                                  B (O, O) = Σ g gᵀ of the loss's gradients g with respect to what leaves the layer

With A = L Lᵀ and B = K Kᵀ (Cholesky) that is the plain error of Kᵀ W L: a method decomposes this weight as any other,
then L⁻¹ goes into the factor that reads the input and K⁻ᵀ into the one that writes the output. What is optimal in the
Frobenius norm so is optimal in this one, and a quasi-optimum stays one. Where the first factor reads a part of the
kernel's taps (spatial_svd: one column, tucker2: one position) the others count as uncorrelated with it.

What goes back into the factors leaves them of very different sizes, and a gradient step then moves the small one much
and the large one little. So the channels between two factors are scaled until both have the same norm: the layer is the
same one, and trains as one of a plain decomposition does.

Either side may be absent; scale means nothing. A moment of fewer samples than it has rows, or of dead channels, is
singular: both sides get λ times their mean diagonal, and ten times that until Cholesky succeeds.

Sources: B Martens and Grosse 2015 (K-FAC, arXiv 1503.05671) and Grosse and Martens 2016 (arXiv 1602.01407), whose
approximation of the Fisher information this is; A alone Zhang, Zou, He, Sun 2016.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ranksearch.errors import ModelError
from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.truncation import per_group, working_precision

__all__ = ["Conditioning", "Metric", "Window", "window_of"]

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch.linalg is not annotated)

_PARTS = ("first", "core", "last")  # of the factors, what the small layer holds
BALANCING_ROUNDS = 4

Window: TypeAlias = tuple[int, ...]  # how many positions the first factor reads at once, per spatial dimension


class Conditioning(NamedTuple):
    number: float  # largest over smallest eigenvalue, after damping
    damping: float  # the λ that it took


def window_of(method: Chain, shape: LayerShape) -> Window:
    return method.stages(shape, method.max_ranks(shape))[0].kernel_size


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """The metric of one layer. Raises ModelError where a moment is not finite.

    inputs: window -> (G, Q, Q), Q = I·window; a window that is not there counts as white. outputs: (G, O, O) or None.
    """

    inputs: Mapping[Window, Tensor] = field(default_factory=dict[Window, Tensor])
    outputs: Tensor | None = None
    damping: float = 1e-3

    def __post_init__(self) -> None:
        if not all(moment.sum().isfinite() for moment in self._moments.values()):  # half the time of all()
            raise ModelError("its inputs or gradients are NaN or infinite; check the calibration data and the weights")

    @property
    def _moments(self) -> dict[str, Tensor]:
        named = {f"inputs {'×'.join(map(str, window))}".strip(): self.inputs[window] for window in sorted(self.inputs)}
        return named if self.outputs is None else named | {"outputs": self.outputs}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all numbers, computed once."""
        digest = hashlib.sha256(str(self.damping).encode())
        for name, moment in self._moments.items():
            digest.update(f"{name} {moment.dtype}".encode())
            digest.update(moment.cpu().contiguous().numpy().data)
        return digest.digest()

    def conditioning(self) -> dict[str, Conditioning]:
        """By side: `inputs 3×3`, `inputs` (of a linear layer), `outputs`. Eigenvalues cost more than decompositions."""
        return {name: _conditioning(moment, self.damping) for name, moment in self._moments.items()}

    def decompose(self, method: Chain, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        """`method.decompose` with errors measured in this metric, computed in float64, the weight on the CPU."""
        window = window_of(method, shape)
        L_GQQ = _root(self.inputs[window], self.damping)[0] if window in self.inputs else None
        K_GOO = None if self.outputs is None else _root(self.outputs, self.damping)[0]
        factors = dict(method.decompose(_whitened(weight.double(), shape, L_GQQ, K_GOO), shape, ranks))
        factors["first"] = _read_through(factors["first"], L_GQQ)
        factors["last"] = _written_through(factors["last"], K_GOO)
        _balance(factors, shape.groups)
        precision = working_precision(weight[:0]).dtype
        return {name: part.to(precision) if name in _PARTS else part for name, part in factors.items()}


def _balance(factors: Factors, groups: int) -> None:
    """In place. The last factor is (G·O, R, …), so that its channels are those of a view (G, O, R, …)."""
    first_GSx, last_GORx = factors["first"], per_group(factors["last"], groups)
    core_GRSx = factors.get("core")
    if core_GRSx is None:
        _even_out(first_GSx, 1, last_GORx, 2)
        return
    for _ in range(BALANCING_ROUNDS):  # the core has channels on both sides
        _even_out(first_GSx, 1, core_GRSx, 2)
        _even_out(core_GRSx, 1, last_GORx, 2)


def _even_out(before: Tensor, channel: int, behind: Tensor, same_channel: int) -> None:
    """(G, …) both; a channel in which either is 0 stays as it is."""
    norms_GC, others_GC = _norms(before, channel), _norms(behind, same_channel)
    scale_GC = torch.where((norms_GC > 0) & (others_GC > 0), others_GC / norms_GC, 1.0).sqrt()
    before *= _along(scale_GC, before, channel)
    behind /= _along(scale_GC, behind, same_channel)


def _norms(part: Tensor, channel: int) -> Tensor:
    return part.transpose(1, channel).flatten(2).norm(dim=2)


def _along(scale_GC: Tensor, part: Tensor, channel: int) -> Tensor:
    return scale_GC.reshape([n if i in (0, channel) else 1 for i, n in enumerate(part.shape)])


def _root(moment_GQQ: Tensor, damping: float) -> tuple[Tensor, float]:
    """(lower Cholesky factors of the moment with a mean diagonal of 1 and damped, the λ that it took)."""
    scale = float(moment_GQQ.diagonal(dim1=-2, dim2=-1).double().mean()) or 1.0
    while True:
        # In place, since Q² float64 are hundreds of megabytes. LAPACK's matrices lie column by column, as the transpose
        # of one of ours does; the moment is symmetric.
        root_GQQ = moment_GQQ.to(torch.float64, copy=True).div_(scale).mT
        root_GQQ.diagonal(dim1=-2, dim2=-1).add_(damping)
        info = torch.empty(root_GQQ.shape[:-2], dtype=torch.int32, device=root_GQQ.device)
        torch.linalg.cholesky_ex(root_GQQ, out=(root_GQQ, info))
        if not info.any():
            return root_GQQ, damping
        damping = max(10 * damping, 1e-12)


def _conditioning(moment_GQQ: Tensor, damping: float) -> Conditioning:
    root_GQQ, damping = _root(moment_GQQ, damping)
    values_GQ = torch.linalg.svdvals(root_GQQ)
    return Conditioning(float((values_GQ[:, 0] / values_GQ[:, -1]).max()) ** 2, damping)


def _whitened(weight: Tensor, shape: LayerShape, L_GQQ: Tensor | None, K_GOO: Tensor | None) -> Tensor:
    """Kᵀ W L, of the weight's shape: a window is the front of its dimensions (I, *kernel)."""
    weight_GOx = per_group(weight.flatten(1), shape.groups)
    if L_GQQ is not None:
        weight_GOQx = weight_GOx.unflatten(2, (L_GQQ.shape[-1], -1))
        weight_GOx = torch.einsum("goqx,gqp->gopx", weight_GOQx, L_GQQ).flatten(2)
    if K_GOO is not None:
        weight_GOx = K_GOO.mT @ weight_GOx
    return weight_GOx.reshape(weight.shape)


def _read_through(first_GRx: Tensor, L_GQQ: Tensor | None) -> Tensor:
    if L_GQQ is None:
        return first_GRx
    solved = torch.linalg.solve_triangular(L_GQQ, first_GRx.flatten(2), upper=False, left=False)
    return solved.reshape(first_GRx.shape)


def _written_through(last_NRx: Tensor, K_GOO: Tensor | None) -> Tensor:
    if K_GOO is None:
        return last_NRx
    last_GOx = per_group(last_NRx.flatten(1), len(K_GOO))
    return torch.linalg.solve_triangular(K_GOO.mT, last_GOx, upper=True).reshape(last_NRx.shape)
