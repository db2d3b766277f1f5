"""The layers that the laws are tried on: each option of a layer by itself, some together, and arbitrary mixtures."""

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from ranksearch.factorize import METHODS, LayerShape

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]

# Channel counts are prime where groups allow it, so that nothing divides by accident.
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
}  # fmt: skip
LINEARS = {
    "linear": {"in_features": 13, "out_features": 7},
    "linear-widening": {"in_features": 3, "out_features": 17, "bias": False},
}
LAYERS = {**CONVOLUTIONS, **LINEARS}


def make_layer(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> nn.Conv2d | nn.Linear:
    torch.manual_seed(math.prod(name.encode()) % 2**31)
    if name in LINEARS:
        return nn.Linear(**LINEARS[name], dtype=dtype, device=device)
    return nn.Conv2d(**{"in_channels": 7, "out_channels": 11, **CONVOLUTIONS[name]}, dtype=dtype, device=device)


def example_for(layer: nn.Conv2d | nn.Linear, batch_size: int = 2) -> torch.Tensor:
    """A batch with two positions for a linear layer, of 11×12 for a convolution."""
    sizes = (2, layer.in_features) if isinstance(layer, nn.Linear) else (layer.in_channels, 11, 12)
    values = torch.randn(batch_size, *sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values.to(layer.weight)


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
    on_gpu = ["3x3", "dilation-stride", "circular-same", "groups-all", "depthwise", "1x1-stride", "linear"]
    return [(method, layer, "cpu") for method, layer in pairs()] + [
        pytest.param(method, layer, "cuda", marks=GPU) for method, layer in pairs() if layer in on_gpu
    ]


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Any convolution that fits an 11×12 input, in float64."""
    groups = draw(st.integers(1, 4))
    inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    sides = st.tuples(st.integers(1, 4), st.integers(1, 4))
    padding = draw(st.just("same") | st.tuples(st.integers(0, 3), st.integers(0, 3)))
    layer = nn.Conv2d(
        groups * inputs,
        groups * outputs,
        draw(sides),
        stride=1 if padding == "same" else draw(sides),
        padding=padding,
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dtype=torch.float64,
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer
