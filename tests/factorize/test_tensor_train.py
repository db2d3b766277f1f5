"""Tensor trains against tensorly, numpy and the dense layer: modes, closeness, both forms, what is kept of a layer."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train
from torch import nn
from torch.func import functional_call

from ranksearch.compress import compress, fold
from ranksearch.factorize import METHODS, LayerShape, StandardLayer
from ranksearch.factorize.tensor_train import TensorTrain, TensorTrainLayer, balanced_factors
from ranksearch.layers import list_layers
from ranksearch.records import LayerChoice, Plan
from tests.factorize.cases import decomposed, example_for, factorized, make_layer, pairs

TRAINS = [name for name, method in METHODS.items() if isinstance(method, TensorTrain)]
PAIRS = pytest.mark.parametrize(("method", "layer"), [p for p in pairs() if p[0] in TRAINS])


def larger(method: str) -> StandardLayer:
    """Large enough to be compressed, not square."""
    torch.manual_seed(0)
    if method == "tt_linear":
        return nn.Linear(192, 128)
    return nn.Conv2d(28, 64, 3, padding=1) if method == "tt_conv" else nn.Conv2d(28, 64, (3, 5), stride=2)


def middle_ranks(method: str, layer: StandardLayer) -> tuple[int, ...]:
    return tuple((1 + most) // 2 for most in METHODS[method].max_ranks(LayerShape.of(layer)))


def as_tensor(method: str, layer: StandardLayer) -> np.ndarray:
    """The tensor with four modes, entry by entry, from the definition."""
    shape = LayerShape.of(layer)
    modes = METHODS[method].modes(shape)
    weight = shape.canonical(layer.weight).detach().double().numpy().reshape(shape.out_channels, shape.in_channels, -1)
    taps = [stage.taps for stage in modes.spatial]
    tensor = np.empty(modes.sizes)
    for (n, c, x), value in np.ndenumerate(weight):
        pairs = zip(np.unravel_index(c, modes.inputs), np.unravel_index(n, modes.outputs), modes.outputs, strict=True)
        tensor[(*np.unravel_index(x, taps or [1])[: len(taps)], *(i * size + j for i, j, size in pairs))] = value
    return tensor


def tensorly_error(tensor: np.ndarray, ranks: tuple[int, ...]) -> float:
    train = tensor_train(tensor, [1, *ranks, 1])
    return float(np.linalg.norm(tensorly.tt_to_tensor(train) - tensor) / np.linalg.norm(tensor))


def trained_like(layer: StandardLayer, decay: float) -> StandardLayer:
    """A copy whose weight has singular values that fall as those of trained layers do."""
    copied = copy.deepcopy(layer)
    left, values, right = torch.linalg.svd(copied.weight.detach().flatten(1), full_matrices=False)
    falling = values * torch.arange(1, len(values) + 1) ** -decay
    with torch.no_grad():
        copied.weight.copy_((left * falling @ right).reshape(copied.weight.shape))
    return copied


@pytest.mark.parametrize(
    ("number", "factors"),
    [
        (64, (4, 4, 4)), (128, (4, 4, 8)), (512, (8, 8, 8)), (8, (2, 2, 2)), (27, (3, 3, 3)), (112, (4, 4, 7)),
        (8192, (8, 8, 8, 16)), (1536, (4, 6, 8, 8)), (512, (4, 4, 4, 8)), (16, (2, 2, 2, 2)), (768, (4, 4, 6, 8)),
    ],
)  # fmt: skip
def test_balanced_factors_are_the_published_ones(number, factors):
    assert balanced_factors(number, len(factors)) == factors


@settings(max_examples=150, deadline=None)
@given(number=st.integers(1, 400), count=st.integers(1, 4))
def test_balanced_factors_have_the_smallest_sum_of_all(number, count):
    divisors = [d for d in range(2, number + 1) if number % d == 0]
    every = [f for f in itertools.combinations_with_replacement(divisors, count) if math.prod(f) == number]
    found = balanced_factors(number, count)
    assert found in every if every else found == ()
    assert sum(found) == min(map(sum, every), default=0)


@PAIRS
def test_the_weight_is_the_tensor_train_of_the_cores(method, layer):
    """tensorly multiplies the cores; the channel index is that of the factors in C order."""
    dense = make_layer(layer)
    small = factorized(METHODS[method], dense, middle_ranks(method, dense))
    cores = [core.detach().numpy() for core in small.cores]
    spatial = len(small.stages)
    train = [c.reshape(*c.shape[:2], -1).transpose(1, 2, 0) for c in cores[:spatial]]
    train += [c.reshape(len(c), -1, c.shape[-1]) for c in cores[spatial:]]
    shape = LayerShape.of(dense)
    dense.weight.data = shape.native(small.dense_weight()).detach()
    np.testing.assert_allclose(tensorly.tt_to_tensor(train), as_tensor(method, dense), atol=1e-12)


@pytest.mark.parametrize(("decay", "tolerance"), [(0.0, 0.02), (0.5, 0.005), (1.0, 0.005)])
@pytest.mark.parametrize("method", TRAINS)
def test_error_is_about_that_of_tensorly_and_within_its_bound(method, decay, tolerance):
    """TT-SVD from left to right. Squared: at least the loss of each cut alone, at most that of all three together."""
    layer = trained_like(larger(method), decay)
    tensor, factors = as_tensor(method, layer), decomposed(METHODS[method], layer)
    largest = METHODS[method].max_ranks(LayerShape.of(layer))
    unfolded = [tensor.reshape(math.prod(tensor.shape[:k]), -1) for k in (1, 2, 3)]
    squares = [np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in unfolded]
    for shares in itertools.product([0.1, 0.4, 0.8], repeat=3):
        ranks = tuple(max(1, int(share * most)) for share, most in zip(shares, largest, strict=True))
        error = METHODS[method].error(factors, ranks)
        assert error <= (1 + tolerance) * tensorly_error(tensor, ranks)
        alone = [s[rank:].sum() / s.sum() for s, rank in zip(squares, ranks, strict=True)]
        assert max(alone) - 1e-6 <= error**2 <= sum(alone) + 1e-6


@PAIRS
def test_the_ranks_of_the_unfoldings_are_enough(method, layer):
    """A train is found again from the weight that it makes, at its own ranks."""
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    ranks = tuple(min(2, most) for most in METHODS[method].max_ranks(shape))
    with torch.no_grad():
        dense.weight.copy_(shape.native(METHODS[method].build(shape, ranks, dtype=torch.float64).dense_weight()))
    assert METHODS[method].error(decomposed(METHODS[method], dense), ranks) < 1e-12
    found = factorized(METHODS[method], dense, ranks).dense_weight()
    torch.testing.assert_close(found, shape.canonical(dense.weight))


def test_a_layer_too_large_for_a_choice_of_bases_obeys_the_same_bound():
    """Its matrix in the middle has 400 rows, and one basis serves all ranks."""
    torch.manual_seed(0)
    layer = trained_like(nn.Linear(4 * 4 * 4 * 4, 5 * 5 * 5 * 5, dtype=torch.float64), 0.5)
    method, factors = METHODS["tt_linear"], decomposed(METHODS["tt_linear"], layer)
    assert len(factors["turns"]) == 1
    weight = layer.weight.detach()
    for ranks in [(9, 40, 12), (20, 100, 20), (4, 400, 8)]:
        small = method.build(LayerShape.of(layer), ranks, dtype=torch.float64)
        method.assign(small, factors, ranks, layer.bias)
        found = float((small.dense_weight().detach() - weight).norm() / weight.norm())
        assert method.error(factors, ranks) == pytest.approx(found, abs=1e-10)


@PAIRS
def test_largest_ranks_are_those_of_the_unfoldings(method, layer):
    dense = make_layer(layer)
    tensor = as_tensor(method, dense)
    ranks = [np.linalg.matrix_rank(tensor.reshape(math.prod(tensor.shape[:k]), -1)) for k in (1, 2, 3)]
    assert METHODS[method].max_ranks(LayerShape.of(dense)) == tuple(ranks)


@PAIRS
def test_cores_have_one_norm(method, layer):
    dense = make_layer(layer)
    norms = [core.norm().item() for core in factorized(METHODS[method], dense, middle_ranks(method, dense)).cores]
    assert norms == pytest.approx([norms[0]] * 4)


@PAIRS
@pytest.mark.parametrize("contracted", [False, True], ids=["rebuilt", "contracted"])
def test_both_forms_are_the_dense_layer_in_outputs_and_gradients(method, layer, contracted):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    small = factorized(METHODS[method], dense, middle_ranks(method, dense))
    small.contracted = contracted
    parameters = list(small.parameters())
    x = example_for(dense).requires_grad_()
    weights = {"weight": shape.native(small.dense_weight())} | ({} if small.bias is None else {"bias": small.bias})
    found, expected = small(x), functional_call(dense, weights, x)
    torch.testing.assert_close(found, expected)
    direction = torch.linspace(-1, 1, found.numel(), dtype=x.dtype).reshape(found.shape)
    gradients = torch.autograd.grad(expected, [x, *parameters], direction)
    for gradient, wanted in zip(torch.autograd.grad(found, [x, *parameters], direction), gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


@PAIRS
@pytest.mark.parametrize("contracted", [False, True], ids=["rebuilt", "contracted"])
def test_both_forms_take_what_the_dense_layer_takes_and_lay_out_what_it_gives(method, layer, contracted):
    """One example without a batch, none at all, more than one batch dimension, channels_last."""
    dense = make_layer(layer)
    small = factorized(METHODS[method], dense, METHODS[method].max_ranks(LayerShape.of(dense)))
    small.contracted = contracted
    x = example_for(dense)
    keeps_layout = x.shape[1] > 1 and "circular" not in layer  # circular padding lays out anew
    inputs = [x, x[0], x[:0], *([x[0, 0], x[None]] if isinstance(dense, nn.Linear) else [])]
    inputs += [x.to(memory_format=torch.channels_last)] if x.dim() == 4 else []
    for given_x in inputs:
        found, expected = small(given_x), dense(given_x)
        torch.testing.assert_close(found, expected)
        if given_x.numel() and keeps_layout:
            assert found.stride() == expected.stride()


@PAIRS
def test_the_form_with_fewer_macs_is_the_default_whatever_the_input_sizes(method, layer):
    dense = make_layer(layer)
    method = METHODS[method]
    small_sizes = (
        tuple(example_for(dense).shape[1:-1] if isinstance(dense, nn.Linear) else example_for(dense).shape[2:]),
    )
    shapes = [LayerShape.of(dense, sizes) for sizes in ((), small_sizes, ((200,) * len(small_sizes[0]),))]
    for ranks in itertools.product(*({1, most} for most in method.max_ranks(shapes[0]))):
        forms = {method.build(shape, ranks).contracted for shape in shapes}
        assert len(forms) == 1
        dense_macs = shapes[2].cost().macs
        contracted_macs = method.modes(shapes[2]).contracted_macs(shapes[2], ranks)
        assert method.cost(shapes[2], ranks).macs == (contracted_macs if forms == {True} else dense_macs)
        if not 0.95 < contracted_macs / dense_macs < 1.05:  # borders aside
            assert forms == {contracted_macs < dense_macs}


def test_both_forms_are_defaults_of_some_layer():
    method, shape = METHODS["tt_conv"], LayerShape.of(nn.Conv2d(64, 64, 3))
    assert method.build(shape, (1, 1, 1)).contracted
    assert not method.build(shape, method.max_ranks(shape)).contracted


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        ("tt_conv", nn.Conv2d(64, 128, 3)),
        ("tt_conv", nn.ConvTranspose2d(64, 8, 4)),
        ("tt_conv_naive", nn.Conv2d(64, 128, 3)),
        ("tt_linear", nn.Linear(512, 256)),
    ],
)
def test_an_untrained_weight_has_the_spread_of_a_fresh_pytorch_layer(method, layer):
    torch.manual_seed(0)
    shape = LayerShape.of(layer)
    for ranks in [(2, 2, 2), middle_ranks(method, layer)]:
        weight = METHODS[method].build(shape, ranks).dense_weight().detach()
        expected = layer.weight.std().item()
        assert weight.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(weight.mean().item()) < 0.1 * expected


def test_an_untrained_layer_differs_each_time_and_its_cores_are_alike():
    shape = LayerShape.of(nn.Conv2d(64, 128, 3))
    one, other = (METHODS["tt_conv"].build(shape, (6, 20, 10)) for _ in range(2))
    assert not torch.equal(one.cores[0], other.cores[0])
    assert [core.std().item() for core in one.cores] == pytest.approx([one.cores[2].std().item()] * 4, rel=0.3)


def trains_net() -> tuple[nn.Sequential, Plan]:
    """A net of such layers with a plan that compresses them, one in each form at least."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 7, 3, stride=2, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(28, 16), nn.ReLU(), nn.Linear(16, 24),
    ).double()  # fmt: skip
    chosen = {"0": "tt_conv:3x4x2", "2": "tt_conv_naive:2x3x4", "8": "tt_linear:3x9x4"}
    return net, Plan({name: LayerChoice.parse(text) for name, text in chosen.items()})


def test_folding_gives_dense_layers_and_the_same_function():
    net, plan = trains_net()
    small = compress(net, plan).eval()
    assert {small[0].contracted, small[2].contracted, small[8].contracted} == {True, False}
    folded = fold(small, plan, list_layers(net))
    assert [type(m) for m in folded] == [type(m) for m in net]
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(folded(x), small(x))
    torch.testing.assert_close(folded[0].weight, small[0].dense_weight())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format_survives_compressing_and_folding(memory_format):
    net, plan = trains_net()
    net = net.to(memory_format=memory_format)
    small = compress(net, plan)
    folded = fold(small, plan, list_layers(net))
    for name in ("0", "2"):
        assert folded.get_submodule(name).weight.stride() == net.get_submodule(name).weight.stride()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64).to(memory_format=memory_format)
    torch.testing.assert_close(folded(x), small(x))


@pytest.mark.parametrize("contracted", [False, True], ids=["rebuilt", "contracted"])
@pytest.mark.parametrize("method", TRAINS)
def test_copies_pickles_and_conversions_are_the_same_layer(method, contracted):
    layer = larger(method)
    small = factorized(METHODS[method], layer, middle_ranks(method, layer)).eval()
    small.contracted = contracted
    x = example_for(layer)
    with torch.no_grad():
        y = small(x)
        for same in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert isinstance(same, TensorTrainLayer)
            assert same.contracted == contracted
            assert torch.equal(same(x), y)
        torch.testing.assert_close(copy.deepcopy(small).double()(x.double()).float(), y, rtol=1e-4, atol=1e-4)
        assert copy.deepcopy(small).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_the_state_has_readable_names_and_restores_the_layer():
    layer = larger("tt_conv")
    ranks = middle_ranks("tt_conv", layer)
    small = factorized(METHODS["tt_conv"], layer, ranks)
    state = small.state_dict()
    assert sorted(state) == ["_extra_state", "bias", "cores.0", "cores.1", "cores.2", "cores.3"]
    other = METHODS["tt_conv"].build(LayerShape.of(layer), ranks)
    other.contracted = not small.contracted
    other.load_state_dict(state)
    assert torch.equal(other.dense_weight(), small.dense_weight())
    assert other.contracted == small.contracted


@pytest.mark.parametrize("method", TRAINS)
def test_the_kept_weight_follows_the_cores(method):
    layer = larger(method)
    small = factorized(METHODS[method], layer, middle_ranks(method, layer)).eval()
    small.contracted = False
    x = example_for(layer)
    with torch.no_grad():
        before, again = small(x), small(x)
        assert torch.equal(before, again)
        small.cores[1].mul_(2)
        bias = small.bias.reshape(-1, *[1] * (before.dim() - 2)) if before.dim() == 4 else small.bias
        torch.testing.assert_close(small(x) - bias, 2 * (before - bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("contracted", [False, True], ids=["rebuilt", "contracted"])
@pytest.mark.parametrize("method", TRAINS)
def test_the_layer_exports(method, contracted):
    layer = larger(method)
    small = factorized(METHODS[method], layer, middle_ranks(method, layer)).eval()
    small.contracted = contracted
    x = example_for(layer)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))


def test_a_weight_in_half_precision_is_decomposed_in_float32():
    layer = copy.deepcopy(larger("tt_conv")).bfloat16()
    shape = LayerShape.of(layer)
    factors = decomposed(METHODS["tt_conv"], layer)
    assert {factors[name].dtype for name in ("first", "middle", "last")} == {torch.float32}
    small = METHODS["tt_conv"].build(shape, METHODS["tt_conv"].max_ranks(shape))
    METHODS["tt_conv"].assign(small, factors, METHODS["tt_conv"].max_ranks(shape), layer.bias)
    torch.testing.assert_close(small.dense_weight(), layer.weight.float())
