"""TT-conv, proposed and naive: modes, the formulas of the docstring, the published nets, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS, LayerShape
from tests.factorize.cases import make_layer

TT, NAIVE = METHODS["tt_conv"], METHODS["tt_conv_naive"]


@pytest.mark.parametrize(
    ("layer", "inputs", "outputs", "sizes"),
    [
        (nn.Conv2d(64, 128, 3), (4, 4, 4), (4, 8, 4), (9, 16, 32, 16)),
        (nn.Conv1d(8, 12, 5), (2, 2, 2), (2, 3, 2), (5, 4, 6, 4)),
        (nn.ConvTranspose2d(30, 27, (2, 3)), (2, 5, 3), (3, 3, 3), (6, 6, 15, 9)),
    ],
)
def test_channels_split_with_the_largest_factor_in_the_middle(layer, inputs, outputs, sizes):
    modes = TT.modes(LayerShape.of(layer))
    assert (modes.inputs, modes.outputs, modes.sizes) == (inputs, outputs, sizes)


def test_the_naive_modes_are_height_width_and_channels():
    shape = LayerShape.of(nn.Conv2d(7, 11, (3, 5)))
    assert NAIVE.modes(shape).sizes == (3, 5, 7, 11)
    assert NAIVE.max_ranks(shape) == (3, 15, 11)


@settings(max_examples=60, deadline=None)
@given(
    C=st.sampled_from([(2, 2, 2), (2, 3, 2), (3, 5, 3), (4, 8, 4)]),
    S=st.sampled_from([(2, 2, 2), (2, 3, 2), (3, 5, 3), (4, 8, 4)]),
    kh=st.integers(1, 5), kw=st.integers(1, 5), stride=st.integers(1, 3), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_costs_are_the_formulas_of_the_docstring(C, S, kh, kw, stride, bias, data):
    (C1, C2, C3), (S1, S2, S3) = C, S
    inputs, outputs = C1 * C2 * C3, S1 * S2 * S3
    shape = LayerShape.of(nn.Conv2d(inputs, outputs, (kh, kw), stride, bias=bias), ((20, 23),))
    H, W = (20 - kh) // stride + 1, (23 - kw) // stride + 1
    dense_macs = inputs * outputs * kh * kw * H * W

    r0, r1, r2 = ranks = tuple(data.draw(st.integers(1, most)) for most in TT.max_ranks(shape))
    cores = [r0 * C1 * S1 * r1, r1 * C2 * S2 * r2, r2 * C3 * S3]
    cost = TT.cost(shape, ranks)
    assert cost.parameters == kh * kw * r0 + sum(cores) + bias * outputs
    contracted = inputs * kh * kw * r0 + C2 * C3 * cores[0] + S1 * C3 * cores[1] + S1 * S2 * cores[2]
    assert cost.macs == (H * W * contracted if TT.build(shape, ranks).contracted else dense_macs)

    r0, r1, r2 = ranks = tuple(data.draw(st.integers(1, most)) for most in NAIVE.max_ranks(shape))
    cost = NAIVE.cost(shape, ranks)
    assert cost.parameters == kh * r0 + r0 * kw * r1 + r1 * inputs * r2 + r2 * outputs + bias * outputs
    contracted = inputs * kh * r0 * H * 23 + (inputs * r0 * kw * r1 + r1 * inputs * r2 + r2 * outputs) * H * W
    assert cost.macs == (contracted if NAIVE.build(shape, ranks).contracted else dense_macs)


def test_the_published_net_at_its_published_ranks():
    """Garipov et al.: six convolutions of a CIFAR-10 net, the five wide ones as trains, 3.25 times fewer numbers.

    Its r0 of 20 and more exceeds the nine taps; there the rank is clamped, which loses nothing.
    """
    published = {
        (64, 64): (22, 20, 20),
        (64, 128): (27, 22, 22),
        (128, 128): (23, 23, 23),
    }
    layers = [(64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    others = (3 * 64 * 9) + (128 * 10)
    asked = clamped = dense = others
    for channels in layers:
        shape = LayerShape.of(nn.Conv2d(*channels, 3, bias=False))
        _, n1, n2, n3 = TT.modes(shape).sizes
        r0, r1, r2 = published[channels]
        dense += shape.cost().parameters
        asked += 9 * r0 + r0 * n1 * r1 + r1 * n2 * r2 + r2 * n3
        ranks = tuple(min(rank, most) for rank, most in zip(published[channels], TT.max_ranks(shape), strict=True))
        assert ranks == (9, r1, min(r2, n3))
        clamped += TT.cost(shape, ranks).parameters
    assert dense / asked == pytest.approx(3.25, abs=0.05)
    assert dense / clamped > dense / asked


@pytest.mark.parametrize(
    ("method", "layer", "reason"),
    [
        ("tt_conv", nn.Linear(8, 8), "no convolution; use tt_linear or svd"),
        ("tt_conv", nn.Conv2d(3, 64, 3), "its 3 input channels .* three .* use tucker2"),
        ("tt_conv", nn.Conv2d(64, 10, 3), "its 10 output channels .* three .* use tucker2"),
        ("tt_conv", nn.Conv2d(127, 127, 3), "its 127 input channels"),
        ("tt_conv", nn.Conv2d(8, 8, 3, groups=8), "depthwise.*; use spatial_svd"),
        ("tt_conv", nn.Conv2d(16, 16, 3, groups=2), "groups; use tucker2"),
        ("tt_conv_naive", nn.Linear(8, 8), "no convolution; use tt_linear or svd"),
        ("tt_conv_naive", nn.Conv1d(8, 8, 3), "one dimension; use tucker2"),
        ("tt_conv_naive", nn.Conv2d(8, 8, 3, groups=8), "depthwise.*; use spatial_svd"),
        ("tt_conv_naive", nn.Conv2d(16, 16, 3, groups=2), "groups; use tucker2"),
    ],
)
def test_what_is_refused_names_a_method_that_takes_it(method, layer, reason):
    shape = LayerShape.of(layer)
    for use in (METHODS[method].cost, METHODS[method].build):
        with pytest.raises(SpaceError, match=f"{method} cannot take .*{reason}"):
            use(shape, (1, 1, 1))
    said = METHODS[method].refuses(shape) or ""
    assert any(METHODS[word].refuses(shape) is None for word in METHODS if word in said.split("use ")[1])


def test_layers_of_other_shapes_are_taken():
    assert TT.refuses(LayerShape.of(make_layer("composite-all"))) is None
    assert TT.refuses(LayerShape.of(make_layer("1d-composite"))) is None
    assert NAIVE.refuses(LayerShape.of(make_layer("up-4x4"))) is None


def test_ranks_out_of_range_say_what_is_allowed():
    shape = LayerShape.of(nn.Conv2d(64, 64, 3))
    with pytest.raises(SpaceError, match=r"tt_conv got rank_0 22 for 64→64 3×3; choose 1 to 9"):
        TT.build(shape, (22, 20, 16))
    with pytest.raises(SpaceError, match=r"takes 3 \(rank_0, rank_1, rank_2\): write tt_conv:9x144x16 or less"):
        TT.cost(shape, (3,))
