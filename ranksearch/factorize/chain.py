"""Chain: the methods whose small layer is a chain of ordinary convolutions or linear layers.

Such a method says which layers follow each other, how the weight splits, and how the parts multiply out again;
cost, layer and folding follow. The bias of the dense layer goes to the last one, the earlier ones have none.
"""

import abc
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ranksearch.factorize.method import Factors, Method
from ranksearch.factorize.shape import LayerShape, StandardLayer
from ranksearch.records import Cost

__all__ = ["Chain"]


class Chain(Method):
    """Law 7: `parts`, taken at full rank and composed, give the decomposed weight back."""

    @abc.abstractmethod
    def stages(self, shape: LayerShape, ranks: tuple[int, ...]) -> tuple[LayerShape, ...]:
        """The layers in order; their input sizes mean nothing. Choices with equal stages are one and the same layer."""

    @abc.abstractmethod
    def parts(self, factors: Factors, ranks: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The weight of each stage: `factors` cut to `ranks`, views where possible."""

    @abc.abstractmethod
    def compose(self, weights: Sequence[Tensor], shape: LayerShape) -> Tensor:
        """The dense weight (N, I, *kernel) from the weights of the stages."""

    def cost(self, shape: LayerShape, ranks: tuple[int, ...]) -> Cost:
        self.check(shape, ranks)
        parameters = macs = 0
        sizes = shape.input_sizes
        for stage in self.stages(shape, ranks):
            sized = replace(stage, input_sizes=sizes)
            cost, sizes = sized.cost(), sized.output_sizes
            parameters, macs = parameters + cost.parameters, macs + cost.macs
        return Cost(parameters=parameters, macs=macs)

    def build(
        self,
        shape: LayerShape,
        ranks: tuple[int, ...],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Sequential:
        self.check(shape, ranks)
        return nn.Sequential(*(stage.build(device=device, dtype=dtype) for stage in self.stages(shape, ranks)))

    @torch.no_grad()
    def assign(self, module: nn.Module, factors: Factors, ranks: tuple[int, ...], bias: Tensor | None) -> None:
        for layer, part in zip(_layers(module), self.parts(factors, ranks), strict=True):
            layer.weight.copy_(LayerShape.of(layer).native(part))
        if bias is not None:
            cast("Tensor", self.bias_of(module)).copy_(bias)

    def weight_of(self, module: nn.Module, shape: LayerShape) -> Tensor:
        return self.compose([LayerShape.of(layer).canonical(layer.weight) for layer in _layers(module)], shape)

    def bias_of(self, module: nn.Module) -> Tensor | None:
        return _layers(module)[-1].bias


def _layers(module: nn.Module) -> list[StandardLayer]:
    return [cast("StandardLayer", layer) for layer in module.children()]
