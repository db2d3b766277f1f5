"""CP against its definition, tensorly and its docstring."""

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac
from torch import nn

from ranksearch.factorize import METHODS, LayerShape
from ranksearch.factorize.polyadic import polyadic
from tests.factorize.cases import decomposed, factorized, make_layer

METHOD = METHODS["cp"]


def smooth_weight(outputs: int, inputs: int, size: int, seed: int) -> np.ndarray:
    """Like trained filters: few smooth patterns mixed, and noise."""
    random = np.random.default_rng(seed)
    patterns = random.normal(size=(6, size, size)).cumsum(1).cumsum(2)
    mixed = np.einsum("rhw,orx,irx->oihw", patterns, *(random.normal(size=(n, 6, 2)) for n in (outputs, inputs)))
    return mixed / np.linalg.norm(mixed) + 0.5 / np.sqrt(mixed.size) * random.normal(size=mixed.shape)


@pytest.mark.parametrize("sizes", [(16, 12, 3), (12, 20, 3), (10, 6, 5)])
@pytest.mark.parametrize("rank", [1, 4, 10])
def test_error_is_within_a_hundredth_of_the_best_of_ten_random_starts(sizes, rank):
    weight = smooth_weight(*sizes, seed=sum(sizes))
    shape = LayerShape.of(nn.Conv2d(sizes[1], sizes[0], sizes[2]))
    starts = (parafac(weight, rank, init="random", random_state=seed) for seed in range(10))
    best = min(np.linalg.norm(weight - tensorly.cp_to_tensor(start)) for start in starts) / np.linalg.norm(weight)
    factors = METHOD.decompose(torch.from_numpy(weight), shape, (rank,))
    assert METHOD.error(factors, (rank,)) <= 1.01 * best


def test_terms_do_not_grow_and_cancel():
    """Without a ridge their squared norms add up to 58 times that of this weight, and the error is that of before."""
    weight = torch.from_numpy(smooth_weight(16, 12, 3, seed=31))
    factors, _ = polyadic(weight[None], 16, 200)
    squares = torch.stack([f.square().sum(1) for f in factors]).prod(0).sum()
    assert squares < 6 * weight.square().sum()


@pytest.mark.parametrize("layer", ["3x3", "groups", "1d-3", "up-3x3", "widening"])
def test_every_rank_errs_less_than_the_one_before(layer):
    dense = make_layer(layer)
    (most,) = METHOD.max_ranks(LayerShape.of(dense))
    errors = [METHOD.error(decomposed(METHOD, dense, (rank,)), (rank,)) for rank in range(1, min(most, 9) + 1)]
    assert all(more < fewer or more < 1e-12 for fewer, more in zip([1, *errors], errors, strict=False))
    assert METHOD.error(decomposed(METHOD, dense), (most,)) == 0


def test_the_weight_is_the_sum_of_outer_products_of_every_group():
    dense = make_layer("groups-all")
    small = factorized(METHOD, dense, (3,))
    first, down, across, last = (layer.weight.detach().numpy() for layer in small)
    groups = zip(np.split(last, 2), *(np.split(w, 2) for w in (first, down, across)), strict=True)
    expected = [np.einsum("or,ri,rh,rw->oihw", *(w.reshape(len(w), -1) for w in group)) for group in groups]
    found = METHOD.weight_of(small, LayerShape.of(dense)).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-14)


def test_groups_are_decomposed_by_themselves():
    dense = make_layer("groups-all")
    weight, shape = dense.weight.detach(), LayerShape.of(dense)
    one = LayerShape.of(nn.Conv2d(3, 2, (3, 5)))
    whole = METHOD.error(METHOD.decompose(weight, shape, (4,)), (4,)) ** 2 * weight.square().sum()
    parts = [METHOD.error(METHOD.decompose(w, one, (4,)), (4,)) ** 2 * w.square().sum() for w in weight.chunk(2)]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=0.03)  # started from other random numbers


@settings(max_examples=40, deadline=None)
@given(
    G=st.integers(1, 3), inp=st.integers(2, 9), out=st.integers(1, 9), kh=st.integers(1, 5), kw=st.integers(2, 5),
    stride=st.integers(1, 3), height=st.integers(9, 20), width=st.integers(9, 20), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_cost_is_the_formula_of_the_docstring(G, inp, out, kh, kw, stride, height, width, bias, data):
    shape = LayerShape.of(nn.Conv2d(G * inp, G * out, (kh, kw), stride, bias=bias, groups=G), ((height, width),))
    H, W = (height - kh) // stride + 1, (width - kw) // stride + 1
    most = out * inp * kh * kw // max(out, inp, kh, kw)
    assert METHOD.max_ranks(shape) == (most,)
    R = data.draw(st.integers(1, most))
    cost = METHOD.cost(shape, (R,))
    assert cost.parameters == G * R * (inp + kh + kw + out) + bias * G * out
    assert cost.macs == G * R * (inp * height * width + kh * H * width + (kw + out) * H * W)


def test_three_factors_for_one_dimension():
    shape = LayerShape.of(nn.Conv1d(8, 6, 3))
    assert METHOD.cost(shape, (5,)).parameters == 5 * (8 + 3 + 6) + 6


def test_factors_have_one_norm_and_the_precision_of_the_work():
    shape = LayerShape.of(nn.Conv2d(5, 4, 3))
    weight = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    for dtype, worked in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        parts = METHOD.parts(METHOD.decompose(weight.to(dtype), shape, (6,)), (6,))
        assert {part.dtype for part in parts} == {worked}
        assert len({round(float(part.norm()), 3) for part in parts}) == 1
