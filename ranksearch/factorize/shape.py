"""LayerShape: what a layer is, apart from the numbers in its weight.

Shape letters, here and in every file of this folder: G groups, O and I output and input channels of one group,
N = G·O and C = G·I those of the layer, H and W the kernel's height and width, R a rank of one group.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from ranksearch.records import Cost, Record

__all__ = ["LayerShape"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape(Record):
    """A Conv2d or Linear layer without its numbers.

    Kernel, stride, padding and dilation hold one number per spatial dimension and are empty for a linear layer.
    `padding` may be the word "same"; "valid" is read as zeros.

    `input_sizes` holds one entry per call in a forward pass of one example: (height, width) of what enters a
    convolution, (number of positions,) for a linear layer. It decides MACs and nothing else; it may be empty.
    """

    kind: str  # conv2d | linear
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: str | tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"
    input_sizes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.padding == "valid":
            object.__setattr__(self, "padding", (0,) * len(self.kernel_size))
        elif not isinstance(self.padding, str):
            object.__setattr__(self, "padding", tuple(self.padding))  # JSON has lists

    @classmethod
    def of(cls, module: nn.Conv2d | nn.Linear, input_sizes: tuple[tuple[int, ...], ...] = ()) -> Self:
        """The shape of a module of the standard classes."""
        if isinstance(module, nn.Linear):
            return cls(
                kind="linear",
                in_channels=module.in_features,
                out_channels=module.out_features,
                bias=module.bias is not None,  # pyright: ignore[reportUnnecessaryComparison]
                input_sizes=input_sizes,
            )
        return cls(
            kind="conv2d",
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel_size=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
            input_sizes=input_sizes,
        )

    @property
    def group_channels(self) -> tuple[int, int]:
        """(O, I): output and input channels of one group."""
        return self.out_channels // self.groups, self.in_channels // self.groups

    @property
    def taps(self) -> int:
        """Weights between one input and one output channel: kernel height × width, 1 for a linear layer."""
        return math.prod(self.kernel_size)

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.in_channels > 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(N, I, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_sizes(self) -> tuple[tuple[int, ...], ...]:
        """What leaves the layer, one entry per entry of `input_sizes`."""
        return tuple(tuple(self._output_size(size)) for size in self.input_sizes)

    def _output_size(self, size: Iterable[int]) -> Iterator[int]:
        if self.kind == "linear" or self.padding == "same":  # "same" allows no stride
            return iter(size)
        dims: Iterable[Any] = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return ((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in dims)

    def cost(self) -> Cost:
        """N·I·kernel (+ N) parameters; N·I·kernel MACs for each position of each output."""
        weight = math.prod(self.weight_shape)
        positions = sum(math.prod(size) for size in self.output_sizes)
        return Cost(parameters=weight + self.bias * self.out_channels, macs=weight * positions)

    def pointwise(self, in_channels: int, out_channels: int, *, bias: bool) -> Self:
        """The layer of the same kind and groups that mixes channels at one position: a 1×1 convolution or a linear."""
        spatial = len(self.kernel_size)
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=(1,) * spatial,
            stride=(1,) * spatial,
            padding=(0,) * spatial,
            dilation=(1,) * spatial,
            padding_mode="zeros",
            bias=bias,
        )

    def build(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Conv2d | nn.Linear:
        """A fresh layer of this shape, initialised as PyTorch does."""
        if self.kind == "linear":
            return nn.Linear(self.in_channels, self.out_channels, self.bias, device=device, dtype=dtype)
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            self.bias,
            self.padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )

    def __str__(self) -> str:
        """`64→128 3×3/2 d2 g4`; stride, dilation and groups only where they are not 1."""
        words = [f"{self.in_channels}→{self.out_channels}"]
        if self.kernel_size:
            words.append("×".join(map(str, self.kernel_size)) + _unless_one("/", self.stride))
            words.append(_unless_one("d", self.dilation))
        words.append(_unless_one("g", (self.groups,)))
        return " ".join(word for word in words if word)


def _unless_one(letter: str, numbers: tuple[int, ...]) -> str:
    """`/2`, `/2×1`, or nothing where all are 1."""
    distinct = set(numbers)
    return "" if distinct == {1} else letter + "×".join(map(str, numbers[:1] if len(distinct) == 1 else numbers))
