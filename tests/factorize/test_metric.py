"""Metric: with identities the plain method, with any moments the optimum in their norm, by oracles of other making."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from tensorly.decomposition._tucker import initialize_tucker
from tensorly.tenalg import multi_mode_dot
from torch import nn

from ranksearch.errors import ModelError
from ranksearch.factorize import METHODS, LayerShape, Method, StandardLayer
from ranksearch.factorize.metric import Metric, window_of
from tests.factorize.cases import decomposed, example_for, make_layer, pairs

TAKERS = [(method, layer) for method, layer in pairs() if METHODS[method].takes_metric]
PAIRS = pytest.mark.parametrize(("method", "layer"), TAKERS)
SMALL = {"3x3", "2x4", "groups-all", "groups-1x1", "stride-2", "1d-all", "up-4x4", "up-all", "linear", "depthwise"}
SMALL_PAIRS = pytest.mark.parametrize(("method", "layer"), [pair for pair in TAKERS if pair[1] in SMALL])
SIDES = pytest.mark.parametrize("sides", ["both", "inputs", "outputs"])
DAMPING = 1e-2


def spd(groups: int, size: int, seed: int) -> torch.Tensor:
    """(G, Q, Q), with eigenvalues over three decades."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(groups, size, size, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.logspace(-3, 0, size, dtype=torch.float64)) @ basis.mT


def sizes_of(method: Method, shape: LayerShape) -> tuple[int, int]:
    """(O, Q)"""
    outputs, inputs = shape.group_channels
    return outputs, inputs * math.prod(window_of(method, shape))


def metric_for(method: Method, shape: LayerShape, sides: str = "both", scale: float = 1.0) -> Metric:
    outputs, inputs = sizes_of(method, shape)
    A, B = spd(shape.groups, inputs, 1) * scale, spd(shape.groups, outputs, 2) / scale
    return Metric(
        inputs={window_of(method, shape): A} if sides != "outputs" else {},
        outputs=B if sides != "inputs" else None,
        damping=DAMPING,
    )


def in_metric(metric: Metric, method: Method, layer: StandardLayer, ranks: tuple[int, ...]):
    """(factors, the weight (N, I, *kernel) that they stand for)"""
    shape = LayerShape.of(layer)
    factors = metric.decompose(method, shape.canonical(layer.weight.detach()), shape, method.max_ranks(shape))
    small = method.build(shape, ranks, dtype=torch.float64)
    method.assign(small, factors, ranks, layer.bias)
    return factors, method.weight_of(small, shape).detach()


def some_ranks(method: Method, shape: LayerShape) -> list[tuple[int, ...]]:
    return list(itertools.product(*({1, (1 + most) // 2, most} for most in method.max_ranks(shape))))


# --- the oracle: symmetric roots by eigenvalues, one group after the other, in numpy ---------------------------------


def damped(moment: torch.Tensor | None, groups: int, size: int) -> list[np.ndarray]:
    if moment is None:
        return [np.eye(size)] * groups
    mean = moment.diagonal(dim1=1, dim2=2).mean().item()
    return [m / mean + DAMPING * np.eye(size) for m in moment.numpy()]


def root(matrix: np.ndarray, power: float = 0.5) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def split(weight: torch.Tensor, shape: LayerShape, width: int) -> list[np.ndarray]:
    """(O, Q, rest) of every group."""
    outputs = shape.group_channels[0]
    return [g.reshape(outputs, width, -1) for g in weight.double().numpy().reshape(shape.groups, outputs, -1)]


class Oracle:
    def __init__(self, method: Method, layer: StandardLayer, metric: Metric) -> None:
        self.shape, self.method = LayerShape.of(layer), method
        self.outputs, self.inputs = sizes_of(method, self.shape)
        moment = metric.inputs.get(window_of(method, self.shape))
        self.A = damped(moment, self.shape.groups, self.inputs)
        self.B = damped(metric.outputs, self.shape.groups, self.outputs)
        self.weight = self.shape.canonical(layer.weight.detach())

    def norm(self, weight: torch.Tensor) -> float:
        """The root of Σ vec(W)ᵀ (B ⊗ A ⊗ 1) vec(W), with the matrix written out."""
        squared = 0.0
        for W, A, B in zip(split(weight, self.shape, self.inputs), self.A, self.B, strict=True):
            squared += W.ravel() @ np.kron(np.kron(B, A), np.eye(W.shape[2])) @ W.ravel()
        return math.sqrt(squared)

    def best(self, ranks: tuple[int, ...]) -> torch.Tensor:
        groups = [
            self.unwhitened(self.truncated(np.einsum("op,pqx,qr->orx", root(B), W, root(A)), ranks), A, B)
            for W, A, B in zip(split(self.weight, self.shape, self.inputs), self.A, self.B, strict=True)
        ]
        return torch.from_numpy(np.stack(groups)).reshape(self.weight.shape)

    def unwhitened(self, M: np.ndarray, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        return np.einsum("op,pqx,qr->orx", root(B, -0.5), M, root(A, -0.5))

    def truncated(self, M: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
        if self.method.name == "tucker2":
            return multi_mode_dot(*initialize_tucker(M, list(ranks), [0, 1], random_state=0), modes=[0, 1])
        across = M.transpose(1, 0, 2)  # spatial_svd has the other columns beside the outputs; channel_svd has none
        U, S, Vh = np.linalg.svd(across.reshape(self.inputs, -1), full_matrices=False)
        low = (U[:, : ranks[0]] * S[: ranks[0]]) @ Vh[: ranks[0]]
        return low.reshape(across.shape).transpose(1, 0, 2)


# --- laws ------------------------------------------------------------------------------------------------------------


@PAIRS
def test_with_identity_metrics_it_is_the_plain_method(method, layer):
    method, dense = METHODS[method], make_layer(layer)
    shape = LayerShape.of(dense)
    outputs, inputs = sizes_of(method, shape)
    metric = Metric(
        inputs={window_of(method, shape): 3 * torch.eye(inputs).expand(shape.groups, -1, -1)},
        outputs=torch.eye(outputs).expand(shape.groups, -1, -1) / 7,
    )
    plain = decomposed(method, dense)
    for ranks in some_ranks(method, shape):
        factors, weight = in_metric(metric, method, dense, ranks)
        small = method.build(shape, ranks, dtype=torch.float64)
        method.assign(small, plain, ranks, dense.bias)
        torch.testing.assert_close(weight, method.weight_of(small, shape).detach())
        assert method.error(factors, ranks) == pytest.approx(method.error(plain, ranks), abs=1e-12)


@SMALL_PAIRS
@SIDES
def test_it_is_the_closed_form_of_a_dense_solver(method, layer, sides):
    method, dense = METHODS[method], make_layer(layer)
    metric = metric_for(method, LayerShape.of(dense), sides)
    oracle = Oracle(method, dense, metric)
    for ranks in some_ranks(method, oracle.shape):
        factors, weight = in_metric(metric, method, dense, ranks)
        best = oracle.best(ranks)
        torch.testing.assert_close(weight, best, atol=1e-8, rtol=1e-6)
        relative = oracle.norm(best - oracle.weight) / oracle.norm(oracle.weight)
        assert method.error(factors, ranks) == pytest.approx(relative, abs=1e-9)


def lowest_by_descent(oracle: Oracle, ranks: tuple[int, ...], starts: int = 3) -> float:
    """The smallest relative error that L-BFGS finds over the weights of the small layer's stages."""
    stages = oracle.method.stages(oracle.shape, ranks)
    A, B = (torch.from_numpy(np.stack(roots)) for roots in ([root(a) for a in oracle.A], [root(b) for b in oracle.B]))

    def loss(parts: list[torch.Tensor]) -> torch.Tensor:
        error = oracle.method.compose(parts, oracle.shape) - oracle.weight
        error_GOQx = error.reshape(oracle.shape.groups, oracle.outputs, oracle.inputs, -1)
        return torch.einsum("gpo,goqx,gqr->gprx", B, error_GOQx, A).square().sum()

    found = []
    for seed in range(starts):
        generator = torch.Generator().manual_seed(seed)
        parts = [torch.randn(s.weight_shape, generator=generator, dtype=torch.float64) / 3 for s in stages]
        optimizer = torch.optim.LBFGS(
            [part.requires_grad_() for part in parts], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14,
            history_size=30, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def step(parts=parts, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(parts)
            value.backward()
            return value

        optimizer.step(step)
        found.append(math.sqrt(loss(parts).item()))
    return min(found) / oracle.norm(oracle.weight)


@pytest.mark.parametrize(
    ("method", "layer"),
    [("svd", "linear"), ("channel_svd", "2x4"), ("spatial_svd", "groups-all"), ("tucker2", "2x4")],
)
def test_descent_from_many_starts_finds_nothing_lower(method, layer):
    method, dense = METHODS[method], make_layer(layer)
    oracle = Oracle(method, dense, metric := metric_for(method, LayerShape.of(dense)))
    ranks = (2,) * len(method.rank_names)
    error = method.error(in_metric(metric, method, dense, ranks)[0], ranks)
    lowest = lowest_by_descent(oracle, ranks)
    if method.name == "tucker2":  # truncated HOSVD, a quasi-optimum
        assert lowest * (1 - 1e-6) <= error <= 1.1 * lowest  # and never over √2
    else:
        assert error * (1 - 1e-9) <= lowest <= 1.001 * error


@PAIRS
def test_scale_means_nothing(method, layer):
    method, dense = METHODS[method], make_layer(layer)
    shape = LayerShape.of(dense)
    ranks = some_ranks(method, shape)[len(some_ranks(method, shape)) // 2]
    once, other = (in_metric(metric_for(method, shape, scale=s), method, dense, ranks) for s in (1.0, 1e9))
    torch.testing.assert_close(once[1], other[1])
    assert method.error(once[0], ranks) == pytest.approx(method.error(other[0], ranks))


@PAIRS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_rank_stays_exact(method, layer, dtype):
    method, dense = METHODS[method], make_layer(layer, dtype)
    shape = LayerShape.of(dense)
    factors, weight = in_metric(metric_for(method, shape), method, dense, method.max_ranks(shape))
    assert all(f.dtype == dtype for name, f in factors.items() if name in ("first", "core", "last"))
    expected = shape.canonical(dense.weight.detach()).double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert (weight - expected).norm() <= tolerance * expected.norm()


# --- moments as they come --------------------------------------------------------------------------------------------

CONV = nn.Conv2d(6, 5, 3, dtype=torch.float64)


def few_samples(size: int) -> torch.Tensor:
    samples = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    return (samples @ samples.T)[None]


def dead_channels(size: int) -> torch.Tensor:
    return torch.diag((torch.arange(size) % 2).float())[None]


def nothing(size: int) -> torch.Tensor:
    return torch.zeros(1, size, size)


@pytest.mark.parametrize("moment", [few_samples, dead_channels, nothing])
@pytest.mark.parametrize("method", ["channel_svd", "spatial_svd", "tucker2"])
def test_singular_moments_work(method, moment):
    method, shape = METHODS[method], LayerShape.of(CONV)
    outputs, inputs = sizes_of(method, shape)
    metric = Metric(inputs={window_of(method, shape): moment(inputs)}, outputs=moment(outputs))
    for ranks in some_ranks(method, shape):
        factors, weight = in_metric(metric, method, CONV, ranks)
        assert all(part.isfinite().all() for part in factors.values())
        assert 0 <= method.error(factors, ranks) < 1
    torch.testing.assert_close(weight, CONV.weight.detach(), atol=1e-6, rtol=0)
    for side in metric.conditioning().values():
        assert side.damping == 1e-3
        assert 1 <= side.number <= 1.01 * max(inputs, outputs) / 1e-3


def test_damping_rises_until_the_moment_is_positive():
    outputs = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, -0.05]))[None]  # as no sum of squares is but for rounding
    metric = Metric(outputs=outputs)
    assert metric.conditioning()["outputs"].damping == pytest.approx(0.1)
    assert in_metric(metric, METHODS["channel_svd"], CONV, (3,))[1].isfinite().all()


def test_without_damping_a_singular_moment_gets_some():
    assert Metric(outputs=few_samples(5), damping=0).conditioning()["outputs"].damping > 0


def test_conditioning_is_that_of_the_damped_moments():
    metric = metric_for(METHODS["channel_svd"], LayerShape.of(make_layer("groups-all")))
    found = metric.conditioning()
    assert set(found) == {"inputs 3×5", "outputs"}
    for side, moment in {"inputs 3×5": metric.inputs[3, 5], "outputs": metric.outputs}.items():
        worst = max(np.linalg.cond(m) for m in damped(moment, 2, moment.shape[1]))
        assert found[side].number == pytest.approx(worst)
        assert found[side].damping == DAMPING


def test_a_window_that_was_not_gathered_counts_as_white():
    method, shape = METHODS["channel_svd"], LayerShape.of(CONV)
    full = metric_for(method, shape)
    other = dataclasses.replace(full, inputs={(1, 1): spd(1, 6, 3)})
    found, expected = (in_metric(m, method, CONV, (2,))[1] for m in (other, dataclasses.replace(full, inputs={})))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_moment_that_is_not_finite_is_refused(side, value):
    moment = torch.eye(5)[None].clone()
    moment[0, 2, 1] = value
    with pytest.raises(ModelError, match="NaN or infinite"):
        Metric(inputs={(1, 1): moment}) if side == "inputs" else Metric(outputs=moment)


def test_the_digest_is_that_of_all_that_counts():
    A, B = spd(2, 6, 0), spd(2, 5, 1)
    metric = Metric(inputs={(1, 1): A}, outputs=B)
    same = Metric(inputs={(1, 1): A.mT.contiguous().mT.clone()}, outputs=B.clone())
    others = [
        Metric(inputs={(1, 1): A + 1e-9}, outputs=B),
        Metric(inputs={(1, 1): A}, outputs=-B),
        Metric(inputs={(1, 1): A.float()}, outputs=B),
        Metric(inputs={(3, 1): A}, outputs=B),
        Metric(inputs={(1, 1): A}, outputs=B, damping=1e-4),
        Metric(inputs={(1, 1): A}),
        Metric(outputs=B),
        Metric(),
    ]
    assert same.digest == metric.digest
    assert len({m.digest for m in [metric, *others]}) == 1 + len(others)


def test_the_small_layer_errs_less_where_inputs_are():
    """What it is for: with the moment of correlated inputs, outputs on such inputs are nearer to the dense layer's."""
    layer = make_layer("linear")
    mix = spd(1, layer.in_features, 4)[0]
    x = example_for(layer, 500) @ mix
    moment = torch.einsum("bti,btj->ij", x, x)[None]
    method, errors = METHODS["svd"], []
    for metric in (Metric(), Metric(inputs={(): moment})):
        weight = in_metric(metric, method, layer, (3,))[1]
        errors.append((x @ (weight - layer.weight.detach()).T).norm().item())
    assert errors[1] < 0.7 * errors[0]


@SMALL_PAIRS
@SIDES
def test_factors_are_of_one_size_channel_by_channel_and_so_train_alike(method, layer, sides):
    method, layer = METHODS[method], make_layer(layer, torch.float64)
    shape = LayerShape.of(layer)
    metric = metric_for(method, shape, sides, scale=1e3)  # gradients are small: the factor that writes would be large
    factors = metric.decompose(method, shape.canonical(layer.weight.detach()), shape, method.max_ranks(shape))
    last = factors["last"].reshape(shape.groups, -1, *factors["last"].shape[1:])  # (G, O, R, …)
    seams = [(factors["first"], 1, factors["core"], 2), (factors["core"], 1, last, 2)] if "core" in factors else [
        (factors["first"], 1, last, 2)
    ]  # fmt: skip
    for before, channel, behind, same in seams:
        leaving, entering = (
            np.linalg.norm(np.moveaxis(part.numpy(), dim, 1).reshape(shape.groups, part.shape[dim], -1), axis=2)
            for part, dim in ((before, channel), (behind, same))
        )
        np.testing.assert_allclose(leaving, entering, rtol=0.05 if "core" in factors else 1e-9)
