"""What all layers share that compute their dense weight."""

import pytest
import torch
from torch import nn

from ranksearch.factorize import METHODS, LayerShape

REBUILDING = [method for method in METHODS.values() if not method.is_standard]


def built(method, layer):
    shape = LayerShape.of(layer)
    if method.refuses(shape):
        pytest.skip(method.refuses(shape))
    return method.build(shape, tuple((most + 1) // 2 for most in method.max_ranks(shape))).eval()


@pytest.mark.parametrize("method", REBUILDING, ids=lambda m: m.name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_kept_weight_lies_in_memory_as_the_input_does(method, layout):
    """A convolution copies a weight that does not, at every call."""
    layer = built(method, nn.Conv2d(8, 12, 3))
    layer.contracted = False
    with torch.no_grad():
        layer(torch.randn(2, 8, 9, 9).to(memory_format=layout))
    assert layer._kept[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("method", REBUILDING, ids=lambda m: m.name)
@pytest.mark.parametrize("dense", [nn.Conv2d(8, 12, 3), nn.Linear(16, 24)], ids=["conv", "linear"])
def test_the_weight_is_kept_while_the_numbers_stay_and_computed_where_gradients_are(method, dense):
    layer = built(method, dense)
    layer.contracted = False
    x = torch.randn(2, 8, 9, 9) if isinstance(dense, nn.Conv2d) else torch.randn(2, 16)
    with torch.no_grad():
        before = layer(x)
        kept = layer._kept[1]
        torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
        assert layer._kept[1] is kept
        for parameter in layer.parameters():
            parameter.mul_(2)
        assert not torch.allclose(layer(x), before)
    layer(x)
    assert layer._kept is None
