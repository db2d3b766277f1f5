"""Rank-1 filters against their definition, numpy, tensorly and the docstring."""

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac
from torch import nn

from ranksearch.factorize import METHODS, LayerShape
from tests.factorize.cases import decomposed, factorized, make_layer
from tests.factorize.test_cp import smooth_weight

METHOD = METHODS["rank1"]


@pytest.mark.parametrize("sizes", [(5, 12, 3), (3, 8, 5)])
@pytest.mark.parametrize("terms", [1, 2, 4])
def test_error_is_within_a_hundredth_of_the_best_of_ten_random_starts_of_every_filter(sizes, terms):
    weight = smooth_weight(*sizes, seed=sum(sizes))
    squares = [
        min(
            np.linalg.norm(filters - tensorly.cp_to_tensor(parafac(filters, terms, init="random", random_state=seed)))
            for seed in range(10)
        )
        ** 2
        for filters in weight
    ]
    shape = LayerShape.of(nn.Conv2d(sizes[1], sizes[0], sizes[2]))
    factors = METHOD.decompose(torch.from_numpy(weight), shape, (terms,))
    assert METHOD.error(factors, (terms,)) <= 1.01 * math.sqrt(sum(squares)) / np.linalg.norm(weight)


@pytest.mark.parametrize("layer", ["1d-3", "1d-all", "1x3", "3x1", "widening"])
def test_filters_that_are_matrices_have_the_smallest_error(layer):
    dense = make_layer(layer)
    weight = LayerShape.of(dense).canonical(dense.weight).detach().numpy()
    squares = np.stack([np.linalg.svd(np.squeeze(filters), compute_uv=False) ** 2 for filters in weight])
    assert METHOD.max_ranks(LayerShape.of(dense)) == (squares.shape[1],)
    for terms in range(1, squares.shape[1] + 1):
        expected = math.sqrt(squares[:, terms:].sum() / squares.sum())
        assert METHOD.error(decomposed(METHOD, dense, (terms,)), (terms,)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("layer", ["3x3", "groups", "up-2x2"])
def test_every_term_lowers_the_error(layer):
    dense = make_layer(layer)
    (most,) = METHOD.max_ranks(LayerShape.of(dense))
    errors = [METHOD.error(decomposed(METHOD, dense, (terms,)), (terms,)) for terms in range(1, most + 1)]
    assert all(more < fewer or more < 1e-12 for fewer, more in zip([1, *errors], errors, strict=False))
    assert errors[-1] == 0


@pytest.mark.parametrize("layer", ["3x5", "groups-all"])
def test_every_filter_is_a_sum_of_outer_products(layer):
    dense = make_layer(layer)
    small = factorized(METHOD, dense, (2,))
    t, p, q = (m.weight.detach().numpy().reshape(dense.out_channels, 2, -1) for m in small)
    found = METHOD.weight_of(small, LayerShape.of(dense)).detach().numpy()
    np.testing.assert_allclose(found, np.einsum("njc,njh,njw->nchw", t, p, q), atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    G=st.integers(1, 3), inp=st.integers(2, 9), out=st.integers(1, 9), kh=st.integers(1, 5), kw=st.integers(2, 5),
    stride=st.integers(1, 3), height=st.integers(9, 20), width=st.integers(9, 20), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_cost_is_the_formula_of_the_docstring(G, inp, out, kh, kw, stride, height, width, bias, data):
    shape = LayerShape.of(nn.Conv2d(G * inp, G * out, (kh, kw), stride, bias=bias, groups=G), ((height, width),))
    N, H, W = G * out, (height - kh) // stride + 1, (width - kw) // stride + 1
    most = inp * kh * kw // max(inp, kh, kw)
    assert METHOD.max_ranks(shape) == (most,)
    m = data.draw(st.integers(1, most))
    cost = METHOD.cost(shape, (m,))
    assert cost.parameters == N * m * (inp + kh + kw) + bias * N
    assert cost.macs == N * m * (inp * height * width + kh * H * width + kw * H * W)


def test_one_term_is_a_pointwise_and_two_depthwise_layers():
    small = METHOD.build(LayerShape.of(nn.Conv2d(6, 8, 3, stride=2, padding=1)), (1,))
    point, down, across = small
    assert (point.in_channels, point.out_channels, point.kernel_size, point.bias) == (6, 8, (1, 1), None)
    assert (down.groups, down.kernel_size, down.stride, down.padding) == (8, (3, 1), (2, 1), (1, 0))
    assert (across.groups, across.kernel_size, across.stride, across.padding) == (8, (1, 3), (1, 2), (0, 1))
    assert len(METHOD.build(LayerShape.of(nn.Conv1d(6, 8, 3)), (2,))) == 2


def test_factors_have_one_norm_and_the_precision_of_the_work():
    weight = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    for dtype, worked in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        factors = METHOD.decompose(weight.to(dtype), LayerShape.of(nn.Conv2d(5, 4, 3)), (3,))
        parts = METHOD.parts(factors, (3,))
        assert {part.dtype for part in parts} == {worked}
        assert len({round(float(part.norm()), 3) for part in parts}) == 1
