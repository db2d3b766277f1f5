"""ATCD, alternating tensor compose and decompose, for every method: train the composed weight, decompose it again.

    W ← W − η ∂loss/∂W                  a step of the dense twin, whose layers hold the composed weights
    W ← compose(decompose(W, ranks))    every period

The optimizer's momentum and weight decay act on the dense weights. At full rank nothing is projected, and it is the
training of the dense model. Composing inside autograd instead gives the factors the gradient of W, pulled back, which
is what they get in ordinary training: `atcd="autograd"` is no more than that. A projection is as good as the method's
decomposition: one that is no optimum (CP, LinearConv's low-rank and sparse variants) moves even a weight of its own
form, and a long period suits it better.
Source: Kim, Yoon, Jeong, Lee 2018 (arXiv 1808.04303), section 4, for filters of rank one.
"""

from collections.abc import Iterable

from torch import nn

from ranksearch.compress import compress, fold
from ranksearch.errors import ModelError, NonFiniteError
from ranksearch.layers import FoundLayer
from ranksearch.records import Plan

__all__ = ["Composed"]


class Composed:
    """`dense` is the twin of a compressed model: what is trained in its stead."""

    def __init__(self, small: nn.Module, plan: Plan, layers: Iterable[FoundLayer]) -> None:
        self.small, self.plan, self.layers = small, plan, tuple(layers)
        self.dense = fold(small, plan, self.layers)

    def project(self) -> None:
        """The layers of the twin become what their methods can express at the plan's ranks; the rest stays.

        Raises NonFiniteError where a weight is NaN or infinite.
        """
        self.dense.load_state_dict(fold(self._decomposed(), self.plan, self.layers).state_dict())

    def write(self) -> None:
        """The twin, decomposed, into the compressed model. Which forward a layer runs stays as it was chosen."""
        chosen = {name: state for name, state in self.small.state_dict().items() if name.endswith("_extra_state")}
        self.small.load_state_dict(self._decomposed().state_dict() | chosen)

    def _decomposed(self) -> nn.Module:
        try:
            return compress(self.dense, self.plan, layers=self.layers)
        except ModelError as error:
            raise NonFiniteError(f"a composed weight cannot be decomposed: {error}") from error
