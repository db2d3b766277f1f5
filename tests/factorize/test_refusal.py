"""A refused layer is told why, and what takes it instead: what is advised does take it."""

import re

import pytest
from torch import nn

from ranksearch.factorize import METHODS, LayerShape
from tests.factorize.cases import LAYERS, make_layer

SHAPES = {name: LayerShape.of(make_layer(name)) for name in LAYERS}


@pytest.mark.parametrize("method", ["cp", "rank1", "separable"])
@pytest.mark.parametrize("layer", LAYERS)
def test_some_take_convolutions_that_mix_channels_over_a_kernel(method, layer):
    shape = SHAPES[layer]
    reason = METHODS[method].refuses(shape)
    assert (reason is None) == (shape.is_convolution and shape.taps > 1 and not shape.is_depthwise)
    if reason:
        word = "no convolution" if not shape.is_convolution else "1×1" if shape.taps == 1 else "depthwise"
        assert word in reason


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_advised_takes_the_layer(method, layer):
    reason = METHODS[method].refuses(SHAPES[layer])
    if reason:
        advised = [METHODS[word] for word in re.findall(r"\w+", reason.partition("; use ")[2]) if word in METHODS]
        takers = [other for other in METHODS.values() if other.refuses(SHAPES[layer]) is None]
        assert bool(advised) == bool(takers)
        assert not advised or set(advised) & set(takers)


def test_a_depthwise_layer_of_one_dimension_has_no_taker():
    shape = LayerShape.of(nn.Conv1d(8, 8, 3, groups=8))
    reasons = {name: method.refuses(shape) for name, method in METHODS.items()}
    assert all(reason and "; use " not in reason for reason in reasons.values())
