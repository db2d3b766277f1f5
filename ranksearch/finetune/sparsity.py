"""LinearConv's sparsity schedule: `linearconv_sparse` begins with all its coefficients and loses the smallest ones.

    W = permutation of [P; (A ⊙ kept) · P]     A (S, P), at first all of it kept: the closest layer of that form
    |kept| = n + (S·P − n) · (1 − t/until)³    of a group, after each step; t is the part of the training that is done

n is the plan's `nonzeros`. What goes is the smallest |A_sp| · ‖P_p‖, what a coefficient adds to a filter, and it does
not come back; from `until` on `kept` stays as it is. Such a layer begins as what the dense one gives (as fresh numbers
in a training from scratch), whatever it was before.

Source: Kahatapitiya, Rodrigo 2021 (arXiv 1907.11432). There coefficients below a threshold go, which rises every 500
training steps, the slower the nearer a target is, beside an L1 penalty, and how many remain follows from the data. Here
a plan says how many, and the search relies on it: the count falls and the threshold follows, by the law of Zhu, Gupta
2017 (To prune, or not to prune, arXiv 1710.01878), without a penalty.
"""

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ranksearch.compress import compress
from ranksearch.factorize.linearconv_layer import Coefficients, LinearConvLayer, SparseCoefficients, packed
from ranksearch.factorize.truncation import per_group
from ranksearch.layers import FoundLayer
from ranksearch.records import LayerChoice, Plan

__all__ = ["Thinning"]


class Thinning:
    """`model` is the twin of a compressed model: what is trained in its stead."""

    def __init__(
        self, small: nn.Module, plan: Plan, layers: Iterable[FoundLayer], dense: nn.Module, *, until: float, init: str
    ) -> None:
        self.small, self.until = small, until
        sparse = {name: layer for name in plan if _is_sparse(layer := small.get_submodule(name))}
        full = {name: LayerChoice(method="linearconv", ranks=plan[name].ranks[:1]) for name in sparse}
        whole = compress(dense, full, layers=layers, init="random" if init == "random" else "decompose")
        self._layers = [_thinned(whole.get_submodule(name), layer) for name, layer in sparse.items()]
        replacements: dict[int, Any] = {id(old): new for old, new in zip(sparse.values(), self._layers, strict=True)}
        self.model = copy.deepcopy(small, replacements)

    def drop(self, progress: float) -> bool:
        """As many as shall be gone when this part of the training is done. Were there any?"""
        left = max(0.0, 1 - progress / self.until) ** 3
        return sum(_drop(layer, left) for layer in self._layers) > 0

    def write(self) -> None:
        """The twin, with no more coefficients than planned, into the compressed model."""
        self.drop(1.0)
        state = self.model.state_dict()
        for name, module in self.model.named_modules():
            if isinstance(module, _ThinnedCoefficients):
                kept = state.pop(f"{name}.kept")
                state |= {f"{name}.values": module.values[kept], f"{name}.bits": packed(kept)}
        self.small.load_state_dict(state)


class _ThinnedCoefficients(nn.Module):
    """A (G, S, P) of which some entries are `kept`, at last as many in a group as `nonzeros`; the others count as 0."""

    kept: Tensor

    def __init__(self, values: nn.Parameter, nonzeros: int) -> None:
        super().__init__()
        self.values, self.nonzeros = values, nonzeros
        self.register_buffer("kept", torch.ones_like(values, dtype=torch.bool))

    def forward(self, primary_GPQ: Tensor) -> Tensor:
        return (self.values * self.kept) @ primary_GPQ


def _is_sparse(layer: nn.Module) -> bool:
    """Where all filters are primary there are no coefficients."""
    return isinstance(layer, LinearConvLayer) and isinstance(layer.coefficients, SparseCoefficients)


def _thinned(full: nn.Module, sparse: nn.Module) -> LinearConvLayer:
    """The layer with all coefficients, to have as many as the sparse one in the end."""
    layer, old = cast("LinearConvLayer", full), cast("SparseCoefficients", cast("LinearConvLayer", sparse).coefficients)
    values = cast("Coefficients", layer.coefficients).values
    layer.coefficients = _ThinnedCoefficients(values, len(old.values) // len(values))
    return layer


@torch.no_grad()
def _drop(layer: LinearConvLayer, left: float) -> bool:
    """`left`: the part of those that must go in the end that may stay yet."""
    coefficients = cast("_ThinnedCoefficients", layer.coefficients)
    kept_GE = coefficients.kept.flatten(1)
    count = coefficients.nonzeros + int(left * (kept_GE.shape[1] - coefficients.nonzeros))
    if count == int(kept_GE[0].sum()):
        return False
    norms_G1P = per_group(layer.primary, layer.shape.groups).flatten(2).norm(dim=2)[:, None]
    scores_GE = (coefficients.values.abs() * norms_G1P).flatten(1).masked_fill(~kept_GE, -1.0)
    places = scores_GE.topk(count, dim=1).indices
    coefficients.kept.copy_(torch.zeros_like(kept_GE).scatter_(1, places, True).view_as(coefficients.kept))
    return True
