"""TT-linear: modes, the formula of the docstring, the published layers, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS, LayerShape

METHOD = METHODS["tt_linear"]


@pytest.mark.parametrize(
    ("layer", "inputs", "outputs", "rank", "parameters"),
    [
        (nn.Linear(8192, 1536), (8, 8, 8, 16), (4, 6, 8, 8), 40, 32 * 32 + 32 * 48 * 40 + 40 * 64 * 40 + 40 * 128),
        (nn.Linear(1536, 512), (4, 6, 8, 8), (4, 4, 4, 8), 30, 16 * 16 + 16 * 24 * 30 + 30 * 32 * 30 + 30 * 64),
    ],
)
def test_the_published_layers_at_their_published_ranks(layer, inputs, outputs, rank, parameters):
    """Garipov et al.; the first rank is clamped to the size of the first mode, which loses nothing."""
    shape = LayerShape.of(layer)
    modes = METHOD.modes(shape)
    assert (modes.inputs, modes.outputs) == (inputs, outputs)
    ranks = tuple(min(rank, most) for most in METHOD.max_ranks(shape))
    assert ranks == (inputs[0] * outputs[0], rank, rank)
    assert METHOD.cost(shape, ranks).parameters == parameters + layer.out_features


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([(2, 2, 2, 2), (2, 2, 2, 3), (2, 3, 3, 5), (4, 6, 8, 8)]),
    m=st.sampled_from([(2, 2, 2, 2), (2, 2, 2, 3), (2, 3, 3, 5), (4, 6, 8, 8)]),
    positions=st.integers(1, 9), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_cost_is_the_formula_of_the_docstring(n, m, positions, bias, data):
    (n1, n2, n3, n4), (m1, m2, m3, m4) = n, m
    inputs, outputs = n1 * n2 * n3 * n4, m1 * m2 * m3 * m4
    shape = LayerShape.of(nn.Linear(inputs, outputs, bias, device="meta"), ((positions,),))
    r1, r2, r3 = ranks = tuple(data.draw(st.integers(1, most)) for most in METHOD.max_ranks(shape))
    cores = [n1 * m1 * r1, r1 * n2 * m2 * r2, r2 * n3 * m3 * r3, r3 * n4 * m4]
    cost = METHOD.cost(shape, ranks)
    assert cost.parameters == sum(cores) + bias * outputs
    contracted = n2 * n3 * n4 * cores[0] + m1 * n3 * n4 * cores[1] + m1 * m2 * n4 * cores[2] + m1 * m2 * m3 * cores[3]
    assert cost.macs == positions * min(contracted, inputs * outputs)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(16, 16, 3), "a convolution; use tt_conv, tucker2 or spatial_svd"),
        (nn.Linear(512, 10), "its 10 output features .* four .* use svd"),
        (nn.Linear(13, 16), "its 13 input features .* four .* use svd"),
    ],
)
def test_what_is_refused_raises_the_reason(layer, reason):
    for use in (METHOD.cost, METHOD.build):
        with pytest.raises(SpaceError, match=f"tt_linear cannot take .*{reason}"):
            use(LayerShape.of(layer), (1, 1, 1))
