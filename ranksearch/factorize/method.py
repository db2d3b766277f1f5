"""Method: one way of replacing a layer by a smaller one, and the laws that every one of them obeys."""

import abc
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from ranksearch.errors import SpaceError
from ranksearch.factorize.shape import LayerShape
from ranksearch.records import Cost

__all__ = ["Factors", "Method"]

Factors: TypeAlias = Mapping[str, Tensor]


class Method(abc.ABC):
    """A factorization method. It keeps nothing: what it needs to know comes in, what it computes goes out.

    `ranks` holds one integer per entry of `rank_names`. In a grouped convolution ranks are those of one group.
    Weights are (N, I, *kernel) everywhere, those of transposed layers too: `LayerShape.canonical` makes them so.

    Laws (tests/factorize/test_laws.py runs them for every method, on every kind of layer that it takes):

    1. Full rank is exact: where `exact_at_full_rank`, building at `max_ranks` and assigning reproduces the layer.
    2. `error` is the relative Frobenius distance between the weight and `weight_of` the assigned layer, it never
       rises with a rank by more than `rise`, and no other factors of the same form are closer (a quasi-optimum where
       the docstring of the method says so).
    3. `cost` equals the parameters of the built layer and the MACs it runs in eval mode, on any `input_sizes`.
    4. The built layer, as a function and in its gradients, equals the dense layer with the weight `weight_of` and
       the bias `bias_of`.
    5. Gradients reach every parameter of the built layer.
    6. The built layer has the asked dtype and device. Where `is_standard` it holds standard modules and nothing of
       ranksearch.
    """

    name: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    exact_at_full_rank: ClassVar[bool] = True
    is_standard: ClassVar[bool] = True
    is_sliced: ClassVar[bool] = True  # one decomposition, at full rank, serves all ranks
    rise: ClassVar[float] = 0.0  # by how much a quasi-optimum may err more at a larger rank
    takes_metric: ClassVar[bool] = False  # a Chain whose parts "first" and "last" a Metric can be put through

    @abc.abstractmethod
    def refuses(self, shape: LayerShape) -> str | None:
        """Why this method cannot take such a layer, to be read after the method's name; None where it can."""

    @abc.abstractmethod
    def max_ranks(self, shape: LayerShape) -> tuple[int, ...]:
        """The largest useful ranks: more would add cost and no accuracy."""

    @abc.abstractmethod
    def cost(self, shape: LayerShape, ranks: tuple[int, ...]) -> Cost:
        """Parameters, and MACs on `shape.input_sizes`, of what `build` builds. Raises SpaceError as `check` does."""

    @abc.abstractmethod
    def decompose(self, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        """Factors of a weight (N, I, *kernel), on its device, for `assign` to take.

        They are those of full rank, to be cut for any ranks, where `is_sliced`; else those of these ranks.
        Computed and returned in float64 where the weight is float64, else in float32. The weight must be finite.
        """

    @abc.abstractmethod
    def error(self, factors: Factors, ranks: tuple[int, ...]) -> float:
        """‖W − W̃‖ / ‖W‖ at these ranks, in [0, 1]; 0 for a weight of zeros."""

    @abc.abstractmethod
    def build(
        self,
        shape: LayerShape,
        ranks: tuple[int, ...],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """The small layer, initialised to train from scratch, from its shape. Raises SpaceError as `check` does."""

    @abc.abstractmethod
    def assign(self, module: nn.Module, factors: Factors, ranks: tuple[int, ...], bias: Tensor | None) -> None:
        """Copies factors, cut to `ranks`, and the dense layer's bias into a layer that `build` built."""

    @abc.abstractmethod
    def weight_of(self, module: nn.Module, shape: LayerShape) -> Tensor:
        """The dense weight (N, I, *kernel) that a built layer stands for, differentiable in its parameters."""

    @abc.abstractmethod
    def bias_of(self, module: nn.Module) -> Tensor | None:
        """The dense bias (N,) that a built layer stands for."""

    def check(self, shape: LayerShape, ranks: tuple[int, ...]) -> None:
        """Raises SpaceError where the method refuses the layer, or the ranks are too many, too few, or out of range."""
        if reason := self.refuses(shape):
            raise SpaceError(f"{self.name} cannot take {shape}: {reason}")
        largest = self.max_ranks(shape)
        if len(ranks) != len(largest):
            raise SpaceError(
                f"{self.name} got ranks {ranks}; it takes {len(largest)} ({', '.join(self.rank_names)}): "
                f"write {self.name}:{'x'.join(map(str, largest))} or less"
            )
        for name, rank, most in zip(self.rank_names, ranks, largest, strict=True):
            if not 1 <= rank <= most:
                raise SpaceError(f"{self.name} got {name} {rank} for {shape}; choose 1 to {most}")
