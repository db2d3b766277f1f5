"""LinearConv and its variants: their optima against dense solvers, the published parameter counts, the layer itself."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import nn

from ranksearch.compress import compress, fold
from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS, LayerShape
from ranksearch.factorize.linearconv_layer import LinearConvLayer, SparseCoefficients, packed
from ranksearch.layers import list_layers
from ranksearch.memory import tensor_bytes
from ranksearch.nets import allconv, resnet18, vgg11
from ranksearch.records import LayerChoice
from tests.factorize.cases import LAYERS, decomposed, example_for, factorized, make_layer, pairs

FULL, LOW_RANK, SPARSE = (METHODS[name] for name in ("linearconv", "linearconv_lowrank", "linearconv_sparse"))
VARIANTS = {"linearconv": (4,), "linearconv_lowrank": (4, 2), "linearconv_sparse": (4, 9)}
EACH = pytest.mark.parametrize(("name", "ranks"), VARIANTS.items(), ids=list(VARIANTS))


def filters_of(layer) -> np.ndarray:
    return LayerShape.of(layer).canonical(layer.weight).detach().double().flatten(1).numpy()


def layer_of(filters: np.ndarray) -> nn.Conv2d:
    """A 1×1 convolution with these filters."""
    layer = nn.Conv2d(filters.shape[1], len(filters), 1, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(torch.from_numpy(filters).reshape(layer.weight.shape))
    return layer


def decaying(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Filters with the spectrum of trained ones: a few strong directions, a long tail."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.standard_normal((outputs, inputs)), full_matrices=False)
    return (left / np.sqrt(1 + np.arange(min(outputs, inputs)))) @ right


def distance_given(coefficients: np.ndarray, primary: list[int], filters: np.ndarray) -> float:
    """The smallest ‖W − [I; A]·P‖ over all P, for these A and named filters, by numpy's least squares."""
    others = [i for i in range(len(filters)) if i not in primary]
    tall = np.vstack((np.eye(len(primary)), coefficients))
    ordered = filters[primary + others]
    return np.linalg.norm(ordered - tall @ np.linalg.lstsq(tall, ordered, rcond=None)[0])


def primary_of(factors, count: int) -> list[int]:
    return torch.argsort(factors["permutation"])[:count].tolist()


def smallest_distance(build, sizes, primary, filters, starts=6) -> float:
    """By BFGS over the coefficients' parameters, from several starts."""
    rng = np.random.default_rng(1)

    def objective(numbers):
        return distance_given(build(numbers), primary, filters) ** 2

    found = [scipy.optimize.minimize(objective, rng.standard_normal(sizes) / 3).fun for _ in range(starts)]
    return min(found) ** 0.5


@pytest.mark.parametrize("layer", [layer for method, layer in pairs() if method == "linearconv"])
def test_linearconv_is_the_truncated_svd_of_the_filters(layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    groups = np.split(filters_of(dense), shape.groups)
    values = np.stack([np.linalg.svd(group, compute_uv=False) for group in groups])
    for primary in range(1, shape.group_channels[0] + 1):
        expected = np.linalg.norm(values[:, primary:]) / np.linalg.norm(values)
        assert FULL.error(decomposed(FULL, dense, (primary,)), (primary,)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("layer", ["3x3", "widening", "groups-all", "up-4x4", "linear-widening"])
def test_coefficients_are_the_least_squares_ones_of_the_stored_filters(layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    primary = 1 if layer == "groups-all" else 3
    small = factorized(FULL, dense, (primary,))
    assert isinstance(small, LinearConvLayer)
    order = small.permutation.argsort().reshape(shape.groups, -1)  # rows of the weight
    for g, stored in enumerate(small.primary.detach().flatten(1).numpy().reshape(shape.groups, primary, -1)):
        others = filters_of(dense)[order[g, primary:].numpy()]
        expected = np.linalg.lstsq(stored.T, others.T, rcond=None)[0].T
        np.testing.assert_allclose(small.coefficients.values[g].detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(12, 20, 4), (12, 20, 6), (12, 5, 5), (9, 9, 1)])
@pytest.mark.parametrize("extra", [0, 2])
def test_filters_of_low_rank_are_reproduced_by_as_many_primary_ones(outputs, inputs, rank, extra):
    rng = np.random.default_rng(rank)
    layer = layer_of(rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, inputs)))
    small = factorized(FULL, layer, (rank + extra,))
    torch.testing.assert_close(FULL.weight_of(small, LayerShape.of(layer)), layer.weight)


def test_coefficients_stay_small():
    """Rows are named primary such that the others follow from them without cancellation."""
    for seed in range(5):
        layer = layer_of(np.random.default_rng(seed).standard_normal((96, 300)))
        for primary in (8, 48, 88):
            assert decomposed(FULL, layer, (primary,))["coefficients.values"].abs().max() < 6


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("primary", "rank"), [(8, 2), (12, 3), (12, 6), (18, 2)])
def test_low_rank_beats_reduced_rank_regression_and_that_beats_an_svd_of_the_coefficients(seed, primary, rank):
    filters = decaying(24, 60, seed)
    pivots = scipy.linalg.qr(filters.T, pivoting=True, mode="economic")[2]
    kept, others = filters[pivots[:primary]], filters[pivots[primary:]]
    basis = np.linalg.qr(kept.T)[0]
    values = np.linalg.svd(others @ basis, compute_uv=False)
    regression = (np.linalg.norm(others) ** 2 - (values[:rank] ** 2).sum()) ** 0.5
    U, S, Vh = np.linalg.svd(np.linalg.lstsq(kept.T, others.T, rcond=None)[0].T, full_matrices=False)
    truncated = np.linalg.norm(others - (U[:, :rank] * S[:rank]) @ Vh[:rank] @ kept)
    found = LOW_RANK.error(decomposed(LOW_RANK, layer_of(filters), (primary, rank)), (primary, rank))
    assert found < regression / np.linalg.norm(filters) < truncated / np.linalg.norm(filters)


@pytest.mark.parametrize(("primary", "rank"), [(3, 1), (4, 1), (4, 2), (6, 1)])
def test_low_rank_is_within_three_percent_of_the_best_a_dense_solver_finds(primary, rank):
    filters = decaying(9, 14)
    factors = decomposed(LOW_RANK, layer_of(filters), (primary, rank))
    others = 9 - primary

    def build(numbers):
        return numbers[: others * rank].reshape(others, rank) @ numbers[others * rank :].reshape(rank, primary)

    best = smallest_distance(build, rank * 9, primary_of(factors, primary), filters) / np.linalg.norm(filters)
    assert best - 1e-6 <= LOW_RANK.error(factors, (primary, rank)) <= 1.03 * best


@pytest.mark.parametrize("nonzeros", [2, 3, 5])
def test_sparse_is_within_five_percent_of_the_best_of_all_supports(nonzeros):
    filters = decaying(6, 9)
    factors = decomposed(SPARSE, layer_of(filters), (3, nonzeros))

    def best_of(support):
        def build(numbers):
            matrix = np.zeros(9)
            matrix[list(support)] = numbers
            return matrix.reshape(3, 3)

        return smallest_distance(build, nonzeros, primary_of(factors, 3), filters, starts=1)

    best = min(map(best_of, itertools.combinations(range(9), nonzeros))) / np.linalg.norm(filters)
    assert best - 1e-6 <= SPARSE.error(factors, (3, nonzeros)) <= 1.05 * best


def test_sparse_beats_pruning_alone():
    filters = decaying(24, 60)
    factors = decomposed(FULL, layer_of(filters), (12,))
    primary, coefficients = factors["primary"].flatten(1).numpy(), factors["coefficients.values"][0].numpy()
    ordered = filters[torch.argsort(factors["permutation"]).numpy()]
    for nonzeros in (14, 43, 100):
        pruned = np.where(np.abs(coefficients) >= np.sort(np.abs(coefficients).ravel())[-nonzeros], coefficients, 0)
        plain = np.linalg.norm(ordered - np.vstack((np.eye(12), pruned)) @ primary) / np.linalg.norm(filters)
        found = SPARSE.error(decomposed(SPARSE, layer_of(filters), (12, nonzeros)), (12, nonzeros))
        assert found < 0.95 * plain


@pytest.mark.parametrize("layer", ["3x3", "widening", "groups", "linear-composite"])
def test_variants_with_all_coefficients_equal_the_full_one(layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    outputs = shape.group_channels[0]
    for primary in (1, outputs // 2, outputs - 1, outputs):
        full = factorized(FULL, dense, (primary,))
        for method in (LOW_RANK, SPARSE):
            ranks = (primary, method.max_ranks(shape)[1])
            same = factorized(method, dense, ranks)
            torch.testing.assert_close(same.dense_weight(), full.dense_weight())
            assert method.error(decomposed(method, dense, ranks), ranks) == FULL.error(
                decomposed(FULL, dense, (primary,)), (primary,)
            )


@EACH
def test_the_weight_is_the_primary_filters_and_their_combinations_in_order(name, ranks):
    small = METHODS[name].build(LayerShape.of(make_layer("composite")), ranks, dtype=torch.float64)
    small.permutation.copy_(torch.randperm(12, generator=torch.Generator().manual_seed(0)))
    primary = small.primary.detach().flatten(1).numpy()
    A = small.coefficients
    if name == "linearconv_sparse":
        matrix = np.zeros(A.kept[0].shape)
        matrix[A.kept[0].numpy()] = A.values.detach().numpy()
    else:
        matrix = (A.values if name == "linearconv" else A.column @ A.row)[0].detach().numpy()
    together = np.concatenate((primary, matrix @ primary))
    expected = np.stack([together[place] for place in small.permutation.tolist()])
    np.testing.assert_allclose(small.dense_weight().detach().flatten(1).numpy(), expected, atol=1e-12)


# -- published parameter counts: half the filters of every convolution are primary, shortcuts and the first one included


@pytest.mark.parametrize(
    ("net", "dense", "full", "low_rank"),
    [
        (vgg11, 9_231_114, 4_922_282, 4_649_770),
        (allconv, 1_369_738, 738_515, None),  # published: 1.37 M, 0.74 M
        (resnet18, 11_173_962, 6_029_546, 5_642_346),  # published: 11.17 M, 6.03 M, 5.64 M
    ],
)
def test_published_parameter_counts(net, dense, full, low_rank):
    with torch.device("meta"):
        model = net()
    halves = {x.name: x.shape.out_channels // 2 for x in list_layers(model) if x.kind == "Conv2d"}

    def parameters(method, *more):
        plan = {name: LayerChoice(method=method, ranks=(half, *more)) for name, half in halves.items()}
        return sum(p.numel() for p in compress(model, plan, init="random").parameters())

    assert sum(p.numel() for p in model.parameters()) == dense
    assert parameters("linearconv") == full
    if low_rank:
        assert parameters("linearconv_lowrank", 10) == low_rank


# -- the layer


@EACH
@pytest.mark.parametrize("layer", ["composite", "1d-composite", "up-composite", "linear-composite"])
def test_untrained_filters_all_have_the_variance_of_pytorchs(name, ranks, layer):
    torch.manual_seed(0)
    shape = LayerShape.of(make_layer(layer))
    uneven = 2 * (shape.out_channels - 5) - 1  # two nonzeros in each row but one
    ranks = (5, *({"linearconv_lowrank": (3,), "linearconv_sparse": (uneven,)}.get(name, ())))
    weights = torch.stack([METHODS[name].build(shape, ranks).dense_weight().detach().flatten(1) for _ in range(600)])
    expected = float(torch.stack([shape.canonical(shape.build().weight.detach()) for _ in range(100)]).var())
    assert float(weights[:, :5].var()) == pytest.approx(expected, rel=0.05)
    assert weights[:, 5:].var((0, 2)).tolist() == pytest.approx([expected] * (shape.out_channels - 5), rel=0.25)
    assert float(weights[:, 5:].var()) == pytest.approx(expected, rel=0.1)


@EACH
def test_folding_gives_one_dense_layer_of_the_same_function(name, ranks):
    model = nn.Sequential(make_layer("composite", torch.float32), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=2))
    plan = {"0": LayerChoice(method=name, ranks=ranks), "2": LayerChoice(method=name, ranks=ranks)}
    small = compress(model, plan)
    dense = fold(small, plan, list_layers(model))
    assert [type(m) for m in dense] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    x = example_for(model[0])
    torch.testing.assert_close(dense(x), small(x))
    exact = copy.deepcopy(small[0]).double()
    assert torch.equal(dense[0].weight, exact.dense_weight().float())


@EACH
def test_copies_casts_and_layouts_keep_the_function(name, ranks):
    dense = make_layer("composite")
    small, x = factorized(METHODS[name], dense, ranks).eval(), example_for(dense)
    with torch.no_grad():
        expected = small(x)
        assert torch.equal(copy.deepcopy(small)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(small))(x), expected)
        fresh = METHODS[name].build(LayerShape.of(dense), ranks, dtype=torch.float64).eval()
        fresh.load_state_dict(small.state_dict())
        assert torch.equal(fresh(x), expected)
        torch.testing.assert_close(small.float()(x.float()).double(), expected, atol=1e-4, rtol=1e-4)
        assert small(x.float()).dtype == torch.float32
        last = small.to(memory_format=torch.channels_last)
        assert last.primary.stride(1) == 1
        y = last(x.float().to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 8), (2, 3, 5), (1, 7, 9)])
def test_a_mask_is_kept_as_bits(size):
    G, S, P = size
    kept = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.5
    layer = SparseCoefficients(G, S, P, 1, torch.empty(0))
    layer.bits = packed(kept)
    assert layer.bits.numel() == (kept.numel() + 7) // 8
    assert torch.equal(layer.kept, kept)


@pytest.mark.parametrize("nonzeros", [1, 3, 4, 17, 20])
def test_an_untrained_mask_keeps_as_many_in_every_row(nonzeros):
    kept = SparseCoefficients(2, 4, 5, nonzeros, torch.empty(0)).kept
    assert kept.sum((1, 2)).tolist() == [nonzeros] * 2
    assert kept.sum(2).max() - kept.sum(2).min() <= 1


def test_few_kept_coefficients_take_fewer_bytes():
    shape = LayerShape.of(nn.Conv2d(8, 64, 1, bias=False))
    full = tensor_bytes(FULL.build(shape, (32,)).state_dict())
    sparse = tensor_bytes(SPARSE.build(shape, (32, 100)).state_dict())
    assert full - sparse == 4 * (32 * 32 - 100) - 32 * 32 // 8


# -- which ranks and layers


def test_ranks_that_another_number_of_primary_filters_would_allow_are_taken_as_all():
    shape = LayerShape.of(make_layer("3x3"))  # 7→11
    assert LOW_RANK.max_ranks(shape) == (11, 5)
    assert SPARSE.max_ranks(shape) == (11, 5 * 6)
    assert LOW_RANK.cost(shape, (2, 5)) == LOW_RANK.cost(shape, (2, 2))
    assert SPARSE.cost(shape, (2, 30)) == SPARSE.cost(shape, (2, 18)) == FULL.cost(shape, (2,))
    dense = shape.cost()
    assert {m.cost(shape, m.max_ranks(shape)) for m in (FULL, LOW_RANK, SPARSE)} == {dense}
    assert FULL.cost(shape, (5,)).parameters == 5 * 63 + 6 * 5 + 11
    assert LOW_RANK.cost(shape, (5, 2)).parameters == 5 * 63 + 2 * 11 + 11
    assert SPARSE.cost(shape, (5, 9)).parameters == 5 * 63 + 9 + 11


@EACH
def test_depthwise_layers_are_refused_and_all_others_taken(name, ranks):
    for layer in LAYERS:
        reason = METHODS[name].refuses(LayerShape.of(make_layer(layer)))
        assert (reason is not None) == ("depthwise" in layer)
        assert reason is None or ("use spatial_svd" in reason) == (not layer.startswith("1d"))


def test_too_many_primary_filters_say_how_many_there_are():
    shape = LayerShape.of(make_layer("3x3"))
    with pytest.raises(SpaceError, match=r"linearconv got primary 12 for 7→11 3×3; choose 1 to 11"):
        FULL.build(shape, (12,))
    with pytest.raises(SpaceError, match=r"linearconv_sparse got nonzeros 31 .*choose 1 to 30"):
        SPARSE.cost(shape, (4, 31))
