"""The layers that the laws are tried on: each option of a layer by itself, some together, and arbitrary mixtures."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from ranksearch.factorize import METHODS, Factors, LayerShape, Method, StandardLayer

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]

# Channel counts are prime where groups allow it, so that nothing divides by accident, but for the composite ones, which
# are there for the methods that split channels into factors.
CONVOLUTIONS = {
    "1x1": {"kernel_size": 1},
    "1x1-stride": {"kernel_size": 1, "stride": 2},
    "1x1-padding": {"kernel_size": 1, "padding": 1, "bias": False},
    "3x3": {"kernel_size": 3},
    "3x3-no-bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "5x5": {"kernel_size": 5, "padding": 2},
    "3x5": {"kernel_size": (3, 5), "padding": (1, 2)},
    "1x3": {"kernel_size": (1, 3)},
    "3x1": {"kernel_size": (3, 1)},
    "2x4": {"kernel_size": (2, 4), "padding": 1},
    "narrowing": {"in_channels": 23, "out_channels": 2, "kernel_size": 3},
    "widening": {"in_channels": 1, "out_channels": 31, "kernel_size": 3},
    "stride-2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride-2x1": {"kernel_size": 3, "stride": (2, 1), "padding": (0, 1)},
    "stride-1x3": {"kernel_size": (5, 3), "stride": (1, 3), "padding": (2, 0)},
    "dilation": {"kernel_size": 3, "dilation": (1, 2), "padding": (1, 2)},
    "dilation-stride": {"kernel_size": 3, "dilation": (3, 2), "stride": (2, 3), "padding": (0, 2)},
    "same": {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 1)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 2, "stride": 2, "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    "circular-same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    "groups": {"in_channels": 10, "out_channels": 35, "kernel_size": 3, "groups": 5, "padding": 1},
    "groups-1x1": {"in_channels": 21, "out_channels": 6, "kernel_size": 1, "groups": 3, "stride": 2},
    "groups-all": {
        "in_channels": 6, "out_channels": 4, "kernel_size": (3, 5), "groups": 2, "stride": (2, 1), "padding": (3, 1),
        "dilation": (1, 2), "padding_mode": "reflect", "bias": False,
    },
    "depthwise": {"in_channels": 7, "out_channels": 7, "kernel_size": 3, "groups": 7, "padding": 1},
    "depthwise-stride": {"in_channels": 5, "out_channels": 5, "kernel_size": (5, 3), "groups": 5, "stride": 2},
    "depthwise-multiplier": {"in_channels": 5, "out_channels": 15, "kernel_size": 3, "groups": 5, "bias": False},
    "composite": {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 1},
    "composite-1x1": {"in_channels": 12, "out_channels": 8, "kernel_size": 1, "stride": 2, "bias": False},
    "composite-narrowing": {"in_channels": 27, "out_channels": 8, "kernel_size": 3, "padding": "same"},
    "composite-all": {
        "in_channels": 8, "out_channels": 12, "kernel_size": (2, 3), "stride": (2, 1), "padding": (3, 1),
        "dilation": (1, 2), "padding_mode": "reflect", "bias": False,
    },
}  # fmt: skip
LINEARS = {
    "linear": {"in_features": 13, "out_features": 7},
    "linear-widening": {"in_features": 3, "out_features": 17, "bias": False},
    "linear-composite": {"in_features": 16, "out_features": 24},
}
CONVOLUTIONS_1D = {
    "1d-1": {"kernel_size": 1},
    "1d-3": {"kernel_size": 3, "padding": 1, "bias": False},
    "1d-all": {
        "in_channels": 6, "out_channels": 4, "kernel_size": 4, "groups": 2, "stride": 2, "padding": 3, "dilation": 2,
        "padding_mode": "replicate",
    },
    "1d-same": {"kernel_size": 5, "padding": "same", "padding_mode": "circular"},
    "1d-depthwise": {"in_channels": 5, "out_channels": 10, "kernel_size": 3, "groups": 5},
    "1d-composite": {"in_channels": 8, "out_channels": 12, "kernel_size": 4, "stride": 2, "padding": 3},
}  # fmt: skip
TRANSPOSED = {
    "up-1x1": {"kernel_size": 1, "stride": 2, "output_padding": 1},
    "up-2x2": {"kernel_size": 2, "stride": 2},
    "up-3x3": {"kernel_size": 3, "padding": 1, "bias": False},
    "up-4x4": {"in_channels": 11, "out_channels": 7, "kernel_size": 4, "stride": 2, "padding": 1},
    "up-all": {
        "in_channels": 6, "out_channels": 4, "kernel_size": (3, 5), "groups": 2, "stride": (3, 2), "padding": (1, 3),
        "dilation": (1, 2), "output_padding": (2, 1), "bias": False,
    },
    "up-depthwise": {"in_channels": 5, "out_channels": 10, "kernel_size": 3, "groups": 5, "stride": 2},
    "up-composite": {
        "in_channels": 12, "out_channels": 8, "kernel_size": (3, 2), "stride": (3, 2), "padding": (1, 2),
        "dilation": (1, 2), "output_padding": (2, 1),
    },
}  # fmt: skip
LAYERS = {**CONVOLUTIONS, **CONVOLUTIONS_1D, **TRANSPOSED, **LINEARS}


def make_layer(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> StandardLayer:
    torch.manual_seed(math.prod(name.encode()) % 2**31)
    if name in LINEARS:
        return nn.Linear(**LINEARS[name], dtype=dtype, device=device)
    convolution = nn.Conv1d if name in CONVOLUTIONS_1D else nn.ConvTranspose2d if name in TRANSPOSED else nn.Conv2d
    return convolution(**{"in_channels": 7, "out_channels": 11, **LAYERS[name]}, dtype=dtype, device=device)


def example_for(layer: StandardLayer, batch_size: int = 2) -> torch.Tensor:
    """A batch with two positions for a linear layer, of 11×12 (or 12) for a convolution."""
    sizes = (2, layer.in_features) if isinstance(layer, nn.Linear) else (layer.in_channels, 11, 12)
    if isinstance(layer, nn.Conv1d):
        sizes = (layer.in_channels, 12)
    values = torch.randn(batch_size, *sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values.to(layer.weight)


def decomposed(method: Method, layer: StandardLayer, ranks: tuple[int, ...] | None = None) -> Factors:
    """The factors of a layer, for the largest ranks unless told otherwise."""
    shape = LayerShape.of(layer)
    return method.decompose(shape.canonical(layer.weight), shape, ranks or method.max_ranks(shape))


def factorized(method: Method, layer: StandardLayer, ranks: tuple[int, ...]) -> nn.Module:
    """The small layer with the factors of a layer."""
    small = method.build(LayerShape.of(layer), ranks, device=layer.weight.device, dtype=layer.weight.dtype)
    method.assign(small, decomposed(method, layer, ranks), ranks, layer.bias)
    return small


def pairs() -> list[tuple[str, str]]:
    """(method, layer) for every layer that the method takes."""
    return [
        (method.name, layer)
        for method in METHODS.values()
        for layer in LAYERS
        if method.refuses(LayerShape.of(make_layer(layer))) is None
    ]


def pairs_on_devices() -> list[Any]:
    """(method, layer, device): all on the CPU, one layer of each sort on a GPU too."""
    on_gpu = [
        "3x3",
        "dilation-stride",
        "circular-same",
        "groups-all",
        "depthwise",
        "1x1-stride",
        "1d-all",
        "up-all",
        "linear",
        "composite-all",
        "up-composite",
        "linear-composite",
    ]
    return [(method, layer, "cpu") for method, layer in pairs()] + [
        pytest.param(method, layer, "cuda", marks=GPU) for method, layer in pairs() if layer in on_gpu
    ]


@st.composite
def any_layer(draw: st.DrawFn) -> StandardLayer:
    """Any layer of any kind, in float64, convolutions such that they fit the example."""
    kind = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, nn.Conv1d, nn.ConvTranspose2d, nn.Linear]))
    channels = draw(st.sampled_from([range(1, 6), range(1, 6), (16, 24) if kind is nn.Linear else (8, 12)]))
    inputs, outputs, bias = draw(st.sampled_from(channels)), draw(st.sampled_from(channels)), draw(st.booleans())
    if kind is nn.Linear:
        layer = nn.Linear(inputs, outputs, bias, dtype=torch.float64)
    else:
        layer = draw(_convolutions(kind, inputs, outputs, bias))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer


@st.composite
def _convolutions(draw: st.DrawFn, kind: Any, inputs: int, outputs: int, bias: bool) -> StandardLayer:
    dims = 1 if kind is nn.Conv1d else 2
    groups = draw(st.integers(1, 4)) if inputs < 8 else 1
    options = {"bias": bias, "groups": groups, "dtype": torch.float64}

    def sides(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, dilation = sides(1, 7), sides(1, 2)
    if kind is nn.ConvTranspose2d:
        stride = sides(1, 3)
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        options |= {"stride": stride, "padding": sides(0, 3), "output_padding": extra}
    else:
        padding = draw(st.sampled_from(["same", sides(0, 3)]))
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        options |= {"stride": 1 if padding == "same" else sides(1, 4), "padding": padding, "padding_mode": mode}
    layer = kind(groups * inputs, groups * outputs, kernel, dilation=dilation, **options)
    sizes = LayerShape.of(layer, (tuple(example_for(layer).shape[2:]),)).output_sizes
    assume(min(sizes[0]) > 0)
    return layer
