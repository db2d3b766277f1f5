"""RebuiltLayer: a layer that stores few numbers and computes its dense weight from them.

It pays in parameters and bytes. Where nothing is trained the weight is computed once and kept, so that the layer runs
as fast as the dense one and no faster.
"""

import abc
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.factorize.shape import LayerShape

__all__ = ["ContractibleLayer", "RebuiltLayer", "layout_of"]


class RebuiltLayer(nn.Module, abc.ABC):
    """A layer of a given shape; subclasses hold the parameters and say how the weight follows from them."""

    def __init__(
        self,
        shape: LayerShape,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = replace(shape, input_sizes=())
        self.bias = nn.Parameter(torch.zeros(shape.out_channels, device=device, dtype=dtype)) if shape.bias else None
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None  # (of which numbers, the weight)

    @abc.abstractmethod
    def dense_weight(self) -> Tensor:
        """(N, I, *kernel), differentiable in the parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return self.shape.apply(x, self._weight(layout_of(x)), self.bias)

    def extra_repr(self) -> str:
        return str(self.shape)

    def _weight(self, layout: torch.memory_format) -> Tensor:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None
            return self._computed()
        numbers = (*self.parameters(), *self.buffers())
        state = layout, *((n.data_ptr(), 0 if n.is_inference() else n._version, n.dtype) for n in numbers)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, _laid_out(self._computed(), layout))  # else every call would copy it
        return self._kept[1]

    def _computed(self) -> Tensor:
        """In the parameters' own precision: autocast does not know all that it takes, and few numbers cost little."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.dense_weight()

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles compute it again
        return {**self.__dict__, "_kept": None}


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where x is that and nothing else."""
    return torch.channels_last if x.dim() == 4 and not x.is_contiguous() else torch.contiguous_format


def _laid_out(weight: Tensor, layout: torch.memory_format) -> Tensor:
    return weight.contiguous(memory_format=layout if weight.dim() == 4 else torch.contiguous_format)


class ContractibleLayer(RebuiltLayer):
    """A rebuilt layer that can do without its dense weight: `contracted` says whether it does.

    Both ways compute the same function. Which is faster depends on shapes and device and is for the owner to measure;
    what was chosen is kept in the state dict.
    """

    contracted: bool = False

    @property
    def form(self) -> tuple[Any, ...]:
        """Equal for layers that compute with equal shapes, whatever their numbers."""
        return (type(self), self.shape, *(tuple(parameter.shape) for parameter in self.parameters()))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.contracted)

    def set_extra_state(self, state: Tensor) -> None:
        self.contracted = bool(state)

    @abc.abstractmethod
    def contract(self, x: Tensor) -> Tensor:
        """What the layer without its bias makes of x, one parameter after the other."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.contracted:
            return super().forward(x)
        y = self.contract(x)
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(self.shape.kernel_size))

    def extra_repr(self) -> str:
        return f"{self.shape}, {'contracted' if self.contracted else 'rebuilt'}"
