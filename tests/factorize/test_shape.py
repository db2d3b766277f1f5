"""LayerShape: sizes and costs against the layers themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.factorize import LayerShape
from tests.factorize.cases import LAYERS, any_layer, example_for, make_layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=200, deadline=None)
@given(layer=any_layer(), lengths=st.lists(st.integers(12, 15), min_size=1, max_size=3))
def test_output_sizes_and_cost_are_those_of_the_layer(layer, lengths):
    one = example_for(layer, 1)
    dim = 1 if isinstance(layer, nn.Linear) else -1
    inputs = [torch.zeros_like(one).index_select(dim, torch.zeros(n, dtype=torch.long)) for n in lengths]
    shape = LayerShape.of(layer, tuple(_size(layer, x) for x in inputs))
    with FlopCounterMode(display=False) as counter:
        outputs = [layer(x) for x in inputs]
    assert shape.output_sizes == tuple(_size(layer, y) for y in outputs)
    assert shape.cost().macs == counter.get_total_flops() / 2
    assert shape.cost().parameters == sum(p.numel() for p in layer.parameters())
    for x in map(torch.randn_like, inputs):
        torch.testing.assert_close(shape.apply(x, shape.canonical(layer.weight), layer.bias), layer(x))
    assert shape.canonical(layer.weight).shape == shape.weight_shape
    assert torch.equal(shape.native(shape.canonical(layer.weight)), layer.weight)


def _size(layer, tensor):
    return (tensor.shape[1],) if isinstance(layer, nn.Linear) else tuple(tensor.shape[2:])


def test_cost_of_a_linear_layer():
    layer = nn.Linear(13, 7)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 5, 13))
        layer(torch.zeros(1, 3, 2, 13))
    shape = LayerShape.of(layer, ((5,), (6,)))
    assert shape.output_sizes == shape.input_sizes
    assert shape.cost().macs == counter.get_total_flops() / 2
    assert shape.cost().parameters == 13 * 7 + 7


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_built_from_the_shape_is_the_layer(name):
    layer = make_layer(name)
    built = LayerShape.of(layer).build(dtype=torch.float64)
    assert type(built) is type(layer)
    assert LayerShape.of(layer).canonical(built.weight).shape == LayerShape.of(layer).weight_shape
    built.load_state_dict(layer.state_dict())
    x = example_for(layer)
    torch.testing.assert_close(built(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_shape_travels_as_json(name):
    shape = LayerShape.of(make_layer(name), ((5, 6), (7, 8)))
    assert LayerShape.from_json(shape.to_json()) == shape


def test_valid_padding_is_no_padding():
    assert LayerShape.of(nn.Conv2d(1, 1, 3, padding="valid")) == LayerShape.of(nn.Conv2d(1, 1, 3, padding=0))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(64, 128, 3, 2, groups=4), "64→128 3×3/2 g4"),
        (nn.Conv2d(64, 64, (3, 5), (2, 1), dilation=2), "64→64 3×5/2×1 d2"),
        (nn.Conv2d(64, 64, 1), "64→64 1×1"),
        (nn.Linear(512, 10), "512→10"),
    ],
)
def test_a_shape_reads_well(layer, text):
    assert str(LayerShape.of(layer)) == text
