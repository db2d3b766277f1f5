"""What each method computes, against oracles that share no code with it, and what it refuses."""

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker
from tensorly.decomposition._tucker import initialize_tucker
from torch import nn

from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS, LayerShape, StandardLayer, method_named
from tests.factorize.cases import LAYERS, LINEARS, decomposed, example_for, make_layer, pairs


def groups_of(layer: StandardLayer) -> list[np.ndarray]:
    """The weights (O, I, *kernel) of the groups."""
    weight = LayerShape.of(layer).canonical(layer.weight)
    return np.split(weight.detach().double().numpy(), getattr(layer, "groups", 1))


def flattened(weight_OIHW: np.ndarray) -> np.ndarray:
    return np.stack([filters.ravel() for filters in weight_OIHW])


def rows_by_columns(weight_OIHW: np.ndarray) -> np.ndarray:
    """(I·H, O·W), entry by entry."""
    outputs, inputs, height, width = weight_OIHW.shape
    matrix = np.empty((inputs * height, outputs * width))
    for o, i, h, w in np.ndindex(*weight_OIHW.shape):
        matrix[i * height + h, o * width + w] = weight_OIHW[o, i, h, w]
    return matrix


MATRIX = {"svd": flattened, "channel_svd": flattened, "spatial_svd": rows_by_columns}


def smallest_error(matrices: list[np.ndarray], rank: int) -> float:
    """Eckart and Young, by numpy: the relative error of the best approximations of this rank."""
    values = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices]
    return math.sqrt(sum((v[rank:] ** 2).sum() for v in values) / sum((v**2).sum() for v in values))


@pytest.mark.parametrize(("method", "layer"), [p for p in pairs() if p[0] in MATRIX])
def test_svd_methods_reach_the_smallest_error(method, layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    matrices = [MATRIX[method](weight) for weight in groups_of(dense)]
    factors = decomposed(METHODS[method], dense)
    (most,) = METHODS[method].max_ranks(shape)
    assert most == min(matrices[0].shape)
    for rank in range(1, most + 1):
        assert METHODS[method].error(factors, (rank,)) == pytest.approx(smallest_error(matrices, rank), abs=1e-12)


@pytest.mark.parametrize(("method", "layer"), [p for p in pairs() if p[0] in MATRIX])
def test_svd_methods_split_the_root_of_the_singular_values(method, layer):
    """Factors of one norm: neither learns faster than the other."""
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    ranks = METHODS[method].max_ranks(shape)
    first, last = METHODS[method].parts(decomposed(METHODS[method], dense), ranks)
    assert first.norm().item() == pytest.approx(last.norm().item())


@pytest.mark.parametrize("layer", [layer for method, layer in pairs() if method == "tucker2"])
def test_tucker2_is_the_truncated_hosvd(layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    method = METHODS["tucker2"]
    factors = decomposed(method, dense)
    most_out, most_in = method.max_ranks(shape)
    for ranks in {(1, 1), (most_out, 1), (1, most_in), ((most_out + 1) // 2, (most_in + 1) // 2)}:
        left = sum(
            np.linalg.norm(weight - tensorly.tenalg.multi_mode_dot(core, matrices, modes=[0, 1])) ** 2
            for weight in groups_of(dense)
            for core, matrices in [initialize_tucker(weight, list(ranks), [0, 1], random_state=0)]
        )
        expected = math.sqrt(left) / np.linalg.norm(dense.weight.detach().numpy())
        assert method.error(factors, ranks) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("layer", ["3x3", "3x5", "5x5"])
def test_tucker2_is_within_root_two_of_the_best_known(layer):
    """Higher-order orthogonal iteration starts from the HOSVD and improves it, by a factor of √2 at most."""
    dense = make_layer(layer)
    method, (weight,) = METHODS["tucker2"], groups_of(dense)
    factors = decomposed(method, dense)
    for ranks in [(2, 3), (5, 2), (6, 6)]:
        (core, matrices), _ = partial_tucker(weight, list(ranks), modes=[0, 1], tol=1e-12)
        best = np.linalg.norm(weight - tensorly.tenalg.multi_mode_dot(core, matrices, modes=[0, 1]))
        relative = best / np.linalg.norm(weight)
        assert relative * (1 - 1e-9) <= method.error(factors, ranks) <= math.sqrt(2) * relative


@settings(max_examples=60, deadline=None)
@given(
    G=st.integers(1, 3), inp=st.integers(1, 9), out=st.integers(1, 9), kh=st.integers(1, 5), kw=st.integers(1, 5),
    stride=st.integers(1, 3), height=st.integers(9, 20), width=st.integers(9, 20), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_costs_are_the_formulas_of_the_docstrings(G, inp, out, kh, kw, stride, height, width, bias, data):
    layer = nn.Conv2d(G * inp, G * out, (kh, kw), stride, bias=bias, groups=G)
    shape = LayerShape.of(layer, ((height, width),))
    H, W = (height - kh) // stride + 1, (width - kw) // stride + 1
    R = data.draw(st.integers(1, METHODS["spatial_svd"].max_ranks(shape)[0]))
    spatial = METHODS["spatial_svd"].cost(shape, (R,))
    assert spatial.parameters == G * R * (inp * kh + out * kw) + bias * G * out
    assert spatial.macs == G * R * (inp * kh * H * width + out * kw * H * W)
    if shape.is_depthwise:
        return
    R = data.draw(st.integers(1, min(out, inp * kh * kw)))
    channel = METHODS["channel_svd"].cost(shape, (R,))
    assert channel.parameters == G * R * (inp * kh * kw + out) + bias * G * out
    assert channel.macs == G * R * (inp * kh * kw + out) * H * W
    outer, inner = (
        data.draw(st.integers(1, min(out, inp * kh * kw))),
        data.draw(st.integers(1, min(inp, out * kh * kw))),
    )
    tucker = METHODS["tucker2"].cost(shape, (outer, inner))
    assert tucker.parameters == G * (inner * inp + outer * inner * kh * kw + out * outer) + bias * G * out
    assert tucker.macs == G * (inner * inp * height * width + (outer * inner * kh * kw + out * outer) * H * W)


def test_cost_of_a_factorized_linear_layer():
    cost = METHODS["svd"].cost(LayerShape.of(nn.Linear(13, 7), ((5,), (2,))), (3,))
    assert (cost.parameters, cost.macs) == (3 * (13 + 7) + 7, 3 * (13 + 7) * 7)


def test_weights_in_half_precision_are_decomposed_in_float32():
    dense = make_layer("3x3", torch.float32)
    shape = LayerShape.of(dense)
    for dtype in (torch.float16, torch.bfloat16):
        weight = dense.weight.detach().to(dtype)
        for method in (METHODS["spatial_svd"], METHODS["tucker2"]):
            factors = method.decompose(weight, shape, method.max_ranks(shape))
            assert all(f.dtype in (torch.float32, torch.float64) for f in factors.values())
            small = method.build(shape, method.max_ranks(shape))
            method.assign(small, factors, method.max_ranks(shape), dense.bias)
            torch.testing.assert_close(method.weight_of(small, shape), weight.float())


@pytest.mark.parametrize(("method", "layer"), pairs())
def test_a_weight_of_zeros_is_reproduced_without_nan(method, layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    method = METHODS[method]
    ranks = (1,) * len(method.rank_names)
    factors = method.decompose(torch.zeros(shape.weight_shape, dtype=torch.float64), shape, ranks)
    small = method.build(shape, ranks, dtype=torch.float64)
    method.assign(small, factors, ranks, dense.bias)
    assert method.error(factors, ranks) == 0
    assert not method.weight_of(small, shape).any()
    assert small(example_for(dense)).isfinite().all()


def svd_methods_for(name: str) -> set[str]:
    if name in LINEARS:
        return {"svd"}
    spatial = set() if name.startswith("1d") else {"spatial_svd"}
    mixing = set() if "depthwise" in name else {"channel_svd", "tucker2"}
    return spatial | mixing | ({"svd"} if "1x1" in name or name == "1d-1" else set())


@pytest.mark.parametrize("name", LAYERS)
def test_methods_take_the_layers_they_should_and_a_refusal_names_one_that_does(name):
    shape = LayerShape.of(make_layer(name))
    reasons = {method: METHODS[method].refuses(shape) for method in ("svd", "spatial_svd", "channel_svd", "tucker2")}
    takers = svd_methods_for(name)
    assert {method for method, reason in reasons.items() if reason is None} == takers
    for reason in filter(None, reasons.values() if takers else ()):  # a depthwise Conv1d has no taker
        assert any(METHODS[word].refuses(shape) is None for word in METHODS if word in reason), reason


@pytest.mark.parametrize(
    ("method", "layer", "word"),
    [
        ("svd", "3x3", "kernel"),
        ("spatial_svd", "linear", "no convolution"),
        ("channel_svd", "linear", "no convolution"),
        ("tucker2", "linear", "no convolution"),
        ("channel_svd", "depthwise", "depthwise"),
        ("channel_svd", "depthwise-multiplier", "depthwise"),
        ("tucker2", "depthwise", "depthwise"),
    ],
)
def test_what_is_refused_raises_the_reason(method, layer, word):
    shape = LayerShape.of(make_layer(layer))
    assert word in (METHODS[method].refuses(shape) or "")
    for use in (METHODS[method].cost, METHODS[method].build):
        with pytest.raises(SpaceError, match=f"{method} cannot take .*{word}"):
            use(shape, (1,) * len(METHODS[method].rank_names))


@pytest.mark.parametrize(
    ("method", "ranks", "message"),
    [
        ("channel_svd", (0,), "rank 0 for 7→11 3×3; choose 1 to 11"),
        ("channel_svd", (12,), "rank 12 for 7→11 3×3; choose 1 to 11"),
        ("channel_svd", (2, 2), "takes 1"),
        ("channel_svd", (), "takes 1"),
        ("tucker2", (12, 7), "rank_out 12 for 7→11 3×3; choose 1 to 11"),
        ("tucker2", (11, 8), "rank_in 8 for 7→11 3×3; choose 1 to 7"),
        ("tucker2", (4,), r"takes 2 \(rank_out, rank_in\): write tucker2:11x7 or less"),
    ],
)
def test_ranks_out_of_range_say_what_was_got_and_what_is_allowed(method, ranks, message):
    shape = LayerShape.of(make_layer("3x3"))
    for use in (METHODS[method].cost, METHODS[method].build):
        with pytest.raises(SpaceError, match=message):
            use(shape, ranks)


def test_a_method_is_found_by_name_and_a_typing_error_by_likeness():
    assert all(method_named(name) is method and method.name == name for name, method in METHODS.items())
    with pytest.raises(
        SpaceError, match=r"'spatal_svd' \(did you mean 'spatial_svd'\?\); choose one of svd, .*or dense"
    ):
        method_named("spatal_svd")
