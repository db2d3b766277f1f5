"""The laws in Method's docstring, for every method on every kind of layer that it takes."""

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.factorize import KINDS, METHODS, LayerShape, Method, StandardLayer
from tests.factorize.cases import any_layer, decomposed, example_for, factorized, make_layer, pairs, pairs_on_devices

PAIRS = pytest.mark.parametrize(("method", "layer"), pairs())
ON_DEVICES = pytest.mark.parametrize(("method", "layer", "device"), pairs_on_devices())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True, scope="module")
def few_sweeps():
    """The laws hold however far the methods that iterate have come, so that here they need not come far."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranksearch.factorize.cp.SWEEPS", 3)
        patch.setattr("ranksearch.factorize.rank1.SWEEPS", 3)
        yield


@pytest.fixture(autouse=True, scope="module")
def whole_float32():
    """By default cuDNN may round float32 to TF32's 11 bits, which changes an output by 3e-4, where 1e-5 is the law."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield


def some_ranks(method: Method, shape: LayerShape) -> list[tuple[int, ...]]:
    """Smallest, a middle and largest of every rank, in all combinations."""
    return list(itertools.product(*({1, (1 + most) // 2, most} for most in method.max_ranks(shape))))


def rank_values(method: Method, shape: LayerShape, most: int = 300) -> list[list[int]]:
    """Of each rank all values, or where that makes too many combinations the smallest, the largest, some between."""
    largest = method.max_ranks(shape)
    if math.prod(largest) <= most:
        return [list(range(1, last + 1)) for last in largest]
    count = int(most ** (1 / len(largest)))
    return [sorted({round(1 + (last - 1) * k / (count - 1)) for k in range(count)}) for last in largest]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def check_full_rank_is_exact(method: Method, layer: StandardLayer) -> None:
    small = factorized(method, layer, method.max_ranks(LayerShape.of(layer)))
    x = example_for(layer)
    assert distance(small(x), layer(x)) <= TOLERANCE[layer.weight.dtype]


def check_error_is_the_distance(method: Method, layer: StandardLayer) -> None:
    shape = LayerShape.of(layer)
    weight = shape.canonical(layer.weight)
    for ranks in some_ranks(method, shape):
        reconstructed = method.weight_of(factorized(method, layer, ranks), shape)
        assert reconstructed.shape == weight.shape
        found = method.error(decomposed(method, layer, ranks), ranks)
        assert found == pytest.approx(distance(reconstructed, weight), abs=TOLERANCE[layer.weight.dtype])


def check_cost(method: Method, layer: StandardLayer) -> None:
    one, positions = example_for(layer, 1), -2 if isinstance(layer, nn.Linear) else -1
    calls = [one, one.repeat_interleave(2, dim=positions)]
    sizes = tuple((c.shape[1],) if isinstance(layer, nn.Linear) else tuple(c.shape[2:]) for c in calls)
    shape = LayerShape.of(layer, sizes)
    for ranks in some_ranks(method, shape):
        small = method.build(shape, ranks, dtype=torch.float64).eval()
        with torch.no_grad():
            small(calls[0])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for x in calls:
                small(x)
        cost = method.cost(shape, ranks)
        assert cost.parameters == sum(p.numel() for p in small.parameters())
        assert cost.macs == counter.get_total_flops() / 2


def check_it_is_the_dense_layer_of_its_weight(method: Method, layer: StandardLayer) -> None:
    shape = LayerShape.of(layer)
    ranks = some_ranks(method, shape)[len(some_ranks(method, shape)) // 2]
    small = factorized(method, layer, ranks)
    parameters = list(small.parameters())
    bias = method.bias_of(small)
    assert (bias is None) == (layer.bias is None)
    dense = {"weight": shape.native(method.weight_of(small, shape))} | ({} if bias is None else {"bias": bias})
    x = example_for(layer).requires_grad_()
    small_y, dense_y = small(x), functional_call(layer, dense, x)
    torch.testing.assert_close(small_y, dense_y)
    direction = torch.linspace(-1, 1, small_y.numel(), dtype=x.dtype, device=x.device).reshape(small_y.shape)
    gradients = torch.autograd.grad(small_y, [x, *parameters], direction)
    for found, expected in zip(gradients, torch.autograd.grad(dense_y, [x, *parameters], direction), strict=True):
        torch.testing.assert_close(found, expected)


CHECKS = [
    check_full_rank_is_exact,
    check_error_is_the_distance,
    check_cost,
    check_it_is_the_dense_layer_of_its_weight,
]


@ON_DEVICES
@DTYPES
def test_full_rank_reproduces_the_layer(method, layer, dtype, device):
    check_full_rank_is_exact(METHODS[method], make_layer(layer, dtype, device))


@ON_DEVICES
@DTYPES
def test_error_is_the_relative_distance_to_the_weight(method, layer, dtype, device):
    check_error_is_the_distance(METHODS[method], make_layer(layer, dtype, device))


@PAIRS
def test_error_never_rises_with_a_rank(method, layer):
    method, dense = METHODS[method], make_layer(layer, torch.float32)
    shape = LayerShape.of(dense)
    values = rank_values(method, shape, 300 if method.is_sliced else 6)
    sliced = decomposed(method, dense) if method.is_sliced else None
    errors = {r: method.error(sliced or decomposed(method, dense, r), r) for r in itertools.product(*values)}
    for ranks, error in errors.items():
        assert 0 <= error < 1
        for i, rank in enumerate(ranks):
            for larger in values[i][values[i].index(rank) + 1 :]:
                assert errors[(*ranks[:i], larger, *ranks[i + 1 :])] <= error + max(method.rise, 1e-14)  # rounding
    assert errors[method.max_ranks(shape)] == 0


@PAIRS
def test_cost_is_that_of_the_built_layer(method, layer):
    check_cost(METHODS[method], make_layer(layer))


@ON_DEVICES
def test_layer_and_its_gradients_are_those_of_the_dense_layer_with_its_weight(method, layer, device):
    check_it_is_the_dense_layer_of_its_weight(METHODS[method], make_layer(layer, device=device))


@PAIRS
def test_gradients_reach_every_parameter(method, layer):
    dense = make_layer(layer)
    small = factorized(METHODS[method], dense, METHODS[method].max_ranks(LayerShape.of(dense)))
    small(example_for(dense)).square().sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.flatten(1 if parameter.dim() > 1 else 0).abs().sum(-1).all(), name


@ON_DEVICES
def test_built_layer_has_the_asked_dtype_and_device_and_is_standard_where_declared(method, layer, device):
    shape = LayerShape.of(make_layer(layer))
    ranks = METHODS[method].max_ranks(shape)
    small = METHODS[method].build(shape, ranks, device=device, dtype=torch.bfloat16)
    assert {(p.dtype, p.device.type) for p in small.parameters()} == {(torch.bfloat16, device)}
    if METHODS[method].is_standard:
        assert {type(m) for m in small.modules()} <= {nn.Sequential, *KINDS}
        assert b"ranksearch" not in pickle.dumps(small)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=150, deadline=None)
@given(layer=any_layer(), data=st.data())
def test_laws_hold_for_any_layer(method, layer, data):
    if method.refuses(LayerShape.of(layer)):
        return
    check = data.draw(st.sampled_from(CHECKS))
    check(method, layer)
