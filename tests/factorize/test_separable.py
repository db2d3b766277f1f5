"""Depthwise-separable layers against numpy, their definition and the docstring."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ranksearch.factorize import METHODS, LayerShape
from tests.factorize.cases import decomposed, factorized, make_layer, pairs

METHOD = METHODS["separable"]
TAKEN = pytest.mark.parametrize("layer", [layer for method, layer in pairs() if method == "separable"])


def channels_of(layer: nn.Module) -> list[np.ndarray]:
    """(O, kh·kw) of every input channel, group after group."""
    shape = LayerShape.of(layer)
    weight = shape.canonical(layer.weight).detach().numpy()
    return [
        group[:, i].reshape(len(group), -1) for group in np.split(weight, shape.groups) for i in range(group.shape[1])
    ]


@TAKEN
def test_error_is_the_smallest_that_is_possible(layer):
    dense = make_layer(layer)
    squares = np.stack([np.linalg.svd(channel, compute_uv=False) ** 2 for channel in channels_of(dense)])
    factors = decomposed(METHOD, dense)
    assert METHOD.max_ranks(LayerShape.of(dense)) == (squares.shape[1],)
    for terms in range(1, squares.shape[1] + 1):
        expected = math.sqrt(squares[:, terms:].sum() / squares.sum())
        assert METHOD.error(factors, (terms,)) == pytest.approx(expected, abs=1e-12)


@TAKEN
def test_both_factors_of_every_channel_have_one_norm(layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    most = METHOD.max_ranks(shape)
    first, last = METHOD.parts(decomposed(METHOD, dense), most)
    columns = torch.cat([group.flatten(1).T for group in last.chunk(shape.groups)])  # (C·m, O)
    torch.testing.assert_close(first.flatten(1).norm(dim=1), columns.norm(dim=1))


@pytest.mark.parametrize("layer", ["3x5", "groups-all"])
def test_every_output_channel_mixes_filters_of_every_input_channel(layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    small = factorized(METHOD, dense, (2,))
    outputs, inputs = shape.group_channels
    first, last = (m.weight.detach().numpy() for m in small)
    expected = np.zeros(shape.weight_shape)
    for n, c, j in np.ndindex(dense.out_channels, inputs, 2):
        expected[n, c] += last[n, c * 2 + j, 0, 0] * first[(n // outputs * inputs + c) * 2 + j, 0]
    np.testing.assert_allclose(METHOD.weight_of(small, shape).detach().numpy(), expected, atol=1e-14)


def test_one_term_is_the_block_of_mobilenet():
    depthwise, pointwise = METHOD.build(LayerShape.of(nn.Conv2d(6, 8, 3, stride=2, padding=1)), (1,))
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (6, 6, 6)
    assert (depthwise.kernel_size, depthwise.stride, depthwise.padding) == ((3, 3), (2, 2), (1, 1))
    assert (pointwise.in_channels, pointwise.out_channels, pointwise.groups) == (6, 8, 1)
    assert (pointwise.kernel_size, pointwise.stride, pointwise.padding) == ((1, 1), (1, 1), (0, 0))


@settings(max_examples=40, deadline=None)
@given(
    G=st.integers(1, 3), inp=st.integers(2, 9), out=st.integers(1, 9), kh=st.integers(1, 5), kw=st.integers(2, 5),
    stride=st.integers(1, 3), height=st.integers(9, 20), width=st.integers(9, 20), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_cost_is_the_formula_of_the_docstring(G, inp, out, kh, kw, stride, height, width, bias, data):
    shape = LayerShape.of(nn.Conv2d(G * inp, G * out, (kh, kw), stride, bias=bias, groups=G), ((height, width),))
    H, W = (height - kh) // stride + 1, (width - kw) // stride + 1
    m = data.draw(st.integers(1, min(out, kh * kw)))
    cost = METHOD.cost(shape, (m,))
    assert cost.parameters == G * inp * m * (kh * kw + out) + bias * G * out
    assert cost.macs == G * inp * m * (kh * kw + out) * H * W
