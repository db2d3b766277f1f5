"""LayerShape: what a layer is, apart from the numbers in its weight.

Shape letters, here and in every file of this folder: G groups, O and I output and input channels of one group,
N = G·O and C = G·I those of the layer, H and W the kernel's height and width, R a rank of one group.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranksearch.records import Cost, Record

__all__ = ["KINDS", "LayerShape", "StandardLayer"]

StandardLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d

KINDS: Mapping[type[nn.Module], str] = MappingProxyType(
    {nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.ConvTranspose2d: "conv_transpose2d"}
)
_CLASSES = {kind: cls for cls, kind in KINDS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape(Record):
    """A Linear, Conv1d, Conv2d or ConvTranspose2d layer without its numbers.

    Kernel, stride, padding and dilation hold one number per spatial dimension and are empty for a linear layer.
    `padding` may be the word "same"; "valid" is read as zeros. `output_padding` is empty but for transposed layers.

    `input_sizes` holds one entry per call in a forward pass of one example: (height, width) of what enters a
    2-D convolution, (length,) of a 1-D one, (number of positions,) for a linear layer. It decides MACs and nothing
    else; it may be empty.
    """

    kind: str  # one of KINDS.values()
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: str | tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"
    output_padding: tuple[int, ...] = ()
    input_sizes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.padding == "valid":
            object.__setattr__(self, "padding", (0,) * len(self.kernel_size))
        elif not isinstance(self.padding, str):
            object.__setattr__(self, "padding", tuple(self.padding))  # JSON has lists

    @classmethod
    def of(cls, module: StandardLayer, input_sizes: tuple[tuple[int, ...], ...] = ()) -> Self:
        """The shape of a module of the standard classes, or of a subclass."""
        kind = next(kind for standard, kind in KINDS.items() if isinstance(module, standard))
        if isinstance(module, nn.Linear):
            return cls(
                kind=kind,
                in_channels=module.in_features,
                out_channels=module.out_features,
                bias=module.bias is not None,  # pyright: ignore[reportUnnecessaryComparison]
                input_sizes=input_sizes,
            )
        return cls(
            kind=kind,
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel_size=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
            output_padding=module.output_padding if isinstance(module, nn.ConvTranspose2d) else (),
            input_sizes=input_sizes,
        )

    @property
    def is_convolution(self) -> bool:
        return self.kind != "linear"

    @property
    def is_transposed(self) -> bool:
        return self.kind == "conv_transpose2d"

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
        """(N, I, *kernel), the same for all kinds; a transposed layer stores it as (C, O, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_sizes(self) -> tuple[tuple[int, ...], ...]:
        """What leaves the layer, one entry per entry of `input_sizes`."""
        return tuple(tuple(self._output_size(size)) for size in self.input_sizes)

    def _output_size(self, size: Iterable[int]) -> Iterator[int]:
        if self.kind == "linear" or self.padding == "same":  # "same" allows no stride
            return iter(size)
        dims: Iterable[Any] = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        if self.is_transposed:
            return (
                (n - 1) * stride - 2 * pad + dilation * (k - 1) + extra + 1
                for (n, k, stride, pad, dilation), extra in zip(dims, self.output_padding, strict=True)
            )
        return ((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in dims)

    def cost(self) -> Cost:
        """N·I·kernel (+ N) parameters; N·I·kernel MACs for each position of each output (input, where transposed)."""
        weight = math.prod(self.weight_shape)
        positions = sum(math.prod(size) for size in (self.input_sizes if self.is_transposed else self.output_sizes))
        return Cost(parameters=weight + self.bias * self.out_channels, macs=weight * positions)

    def pointwise(self, in_channels: int, out_channels: int, *, bias: bool) -> Self:
        """The layer of the same groups that mixes channels at one position: a 1×1 convolution or a linear."""
        spatial = len(self.kernel_size)
        return replace(
            self,
            kind="conv2d" if self.is_transposed else self.kind,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=(1,) * spatial,
            stride=(1,) * spatial,
            padding=(0,) * spatial,
            dilation=(1,) * spatial,
            padding_mode="zeros",
            output_padding=(),
            bias=bias,
        )

    def along(self, dim: int) -> Self:
        """The layer with kernel, stride, padding and dilation of one spatial dimension, and none in the others."""

        def only(numbers: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(number if i == dim else neutral for i, number in enumerate(numbers))

        return replace(
            self,
            kernel_size=only(self.kernel_size, 1),
            stride=only(self.stride, 1),
            padding=self.padding if isinstance(self.padding, str) else only(self.padding, 0),
            dilation=only(self.dilation, 1),
            output_padding=only(self.output_padding, 0),
        )

    def build(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StandardLayer:
        """A fresh layer of this shape, initialised as PyTorch does."""
        if self.kind == "linear":
            return nn.Linear(self.in_channels, self.out_channels, self.bias, device=device, dtype=dtype)
        options: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias,
            "padding_mode": self.padding_mode,
        } | ({"output_padding": self.output_padding} if self.is_transposed else {})
        convolution = cast("type[nn.Conv2d]", _CLASSES[self.kind])
        return convolution(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            **options,
            device=device,
            dtype=dtype,
        )

    def canonical(self, weight: Tensor) -> Tensor:
        """(N, I, *kernel) of the weight that a layer of this shape stores: a view where possible."""
        return _transposed(weight, self.groups) if self.is_transposed else weight

    def native(self, weight: Tensor) -> Tensor:
        """The weight as a layer of this shape stores it, from (N, I, *kernel): the inverse of `canonical`."""
        return _transposed(weight, self.groups) if self.is_transposed else weight

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer with this weight (N, I, *kernel) and bias (N,) makes of x."""
        if self.kind == "linear":
            return functional.linear(x, weight, bias)
        if self.is_transposed:
            return functional.conv_transpose2d(
                x,
                self.native(weight),
                bias,
                self.stride,
                cast("tuple[int, ...]", self.padding),
                self.output_padding,
                self.groups,
                self.dilation,
            )
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self._borders(), self.padding_mode), 0
        convolve = functional.conv1d if self.kind == "conv1d" else functional.conv2d
        return convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]

    def _borders(self) -> list[int]:
        """What functional.pad takes: before and after, the last dimension first."""
        if isinstance(self.padding, str):
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(n // 2, n - n // 2) for n in total]
        else:
            sides = [(n, n) for n in self.padding]
        return [n for side in reversed(sides) for n in side]

    def __str__(self) -> str:
        """`64→128 3×3/2 d2 g4`, `64→32 4×4/2 transposed`; stride, dilation and groups only where they are not 1."""
        words = [f"{self.in_channels}→{self.out_channels}"]
        if self.kernel_size:
            words.append("×".join(map(str, self.kernel_size)) + _unless_one("/", self.stride))
            words.append(_unless_one("d", self.dilation))
        words.append(_unless_one("g", (self.groups,)))
        words.append("transposed" if self.is_transposed else "")
        return " ".join(word for word in words if word)


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """(G·X, Y, …) as (G·Y, X, …)."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def _unless_one(letter: str, numbers: tuple[int, ...]) -> str:
    """`/2`, `/2×1`, or nothing where all are 1."""
    distinct = set(numbers)
    return "" if distinct == {1} else letter + "×".join(map(str, numbers[:1] if len(distinct) == 1 else numbers))
