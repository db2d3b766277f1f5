"""Canonical polyadic decompositions against numpy and against what is known of them."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksearch.factorize import polyadic as engine
from ranksearch.factorize.polyadic import largest_rank, polyadic


def terms_of(factors: list[torch.Tensor]) -> np.ndarray:
    """(B, R, *sizes), the terms one by one."""
    return np.stack(
        [
            np.stack(
                [functools.reduce(np.multiply.outer, vectors) for vectors in zip(*(f.T for f in one), strict=True)]
            )
            for one in zip(*(f.numpy() for f in factors), strict=True)
        ]
    )


def relative(tensor: torch.Tensor, factors: list[torch.Tensor]) -> float:
    exact = tensor.double().numpy()
    return float(np.linalg.norm(exact - terms_of(factors).sum(1)) / np.linalg.norm(exact))


def random_tensor(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_the_largest_rank_is_exact_and_the_error_that_of_the_terms(batch, sizes, seed):
    tensor, most = random_tensor(batch, *sizes, seed=seed), largest_rank(sizes)
    for rank in sorted({1, (1 + most) // 2, most}):
        factors, error = polyadic(tensor, rank, 5)
        assert [tuple(f.shape) for f in factors] == [(batch, size, rank) for size in sizes]
        assert error == pytest.approx(relative(tensor, factors), abs=1e-13)
    assert error == 0


@pytest.mark.parametrize("sizes", [(2, 7, 6, 3), (1, 11, 7, 3, 3), (3, 2, 9, 2), (2, 40, 3, 3)])
def test_the_error_falls_with_every_term(sizes):
    """Ranks on rungs and between them, up to the largest."""
    tensor, most = random_tensor(*sizes), min(40, largest_rank(sizes[1:]))
    errors = [polyadic(tensor, rank, 3)[1] for rank in range(1, most + 1)]
    assert all(more < fewer or more < 1e-12 for fewer, more in itertools.pairwise(errors))


def test_rungs_are_a_quarter_of_a_power_of_two_apart():
    rungs = list(engine._rungs(130, 99))
    assert rungs == [*range(1, 16), *range(16, 32, 4), *range(32, 64, 8), *range(64, 128, 16), 128, 160]
    assert list(engine._rungs(40, 2))[-6:] == [30, 32, 34, 36, 38, 40]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_sum_of_few_terms_is_found(rank):
    factors = [random_tensor(2, size, rank, seed=size) for size in (9, 8, 5, 3)]
    tensor = torch.einsum("bir,bjr,bkr,blr->bijkl", *factors)
    assert polyadic(tensor, rank, 200)[1] < 1e-4


def test_one_term_is_the_best_one():
    """The best of many higher-order power iterations from random starts, by numpy."""
    tensor = random_tensor(6, 5, 4)
    best = 0.0
    for seed in range(50):
        vectors = [random_tensor(size, seed=seed).numpy() for size in tensor.shape]
        for _ in range(300):
            for mode in range(3):
                others = [v for m, v in enumerate(vectors) if m != mode]
                rest = np.moveaxis(tensor.numpy(), mode, 0)
                vectors[mode] = np.einsum("ijk,j,k->i", rest, *(v / np.linalg.norm(v) for v in others))
        best = max(best, float(np.linalg.norm(vectors[2])))
    expected = math.sqrt(1 - best**2 / float(tensor.norm()) ** 2)
    assert polyadic(tensor[None], 1, 100)[1] == pytest.approx(expected, abs=1e-4)


def test_matrices_have_their_singular_value_decomposition():
    tensor = random_tensor(3, 1, 6, 1, 4)
    squares = np.linalg.svd(tensor.squeeze().numpy(), compute_uv=False) ** 2
    for rank in range(1, 5):
        factors, error = polyadic(tensor, rank, 0)
        assert error == pytest.approx(math.sqrt(squares[:, rank:].sum() / squares.sum()))
        assert relative(tensor, factors) == pytest.approx(error, abs=1e-14)


def test_a_try_that_diverged_is_not_kept():
    tensor = random_tensor(2, 4, 3, 3)
    factors = [torch.zeros(2, size, 1, dtype=torch.float64) for size in (4, 3, 3)]
    diverged = engine._Fit([f + torch.nan for f in factors], tensor * torch.nan)
    kept = engine._better(engine._Fit(factors, tensor), diverged)
    assert not any(f.any() for f in kept.factors)
    assert torch.equal(kept.residual, tensor)


def test_every_tensor_of_a_batch_keeps_the_closest_try():
    tensor = random_tensor(2, 4, 3, 3)
    tries = [torch.tensor(scales, dtype=torch.float64)[:, None, None, None] * tensor for scales in ([1, 4], [2, 3])]
    known, tried = (engine._Fit([x.flatten(2)], x) for x in tries)
    kept = engine._better(known, tried)
    assert torch.equal(kept.residual, torch.stack([tensor[0], 3 * tensor[1]]))
    assert torch.equal(kept.factors[0], kept.residual.flatten(2))


def test_norms_are_spread_evenly_over_the_factors():
    for sizes, rank in (((5, 4, 3), 4), ((5, 4, 3), 12), ((7, 6), 3), ((1, 5, 4, 3), 2)):
        factors, _ = polyadic(random_tensor(2, *sizes), rank, 5)
        norms = torch.stack([f.norm(dim=1) for f in factors])
        torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_the_same_terms_every_time_and_the_global_generator_untouched():
    tensor, before = random_tensor(1, 6, 5, 3), torch.get_rng_state()
    one, other = (polyadic(tensor, 5, 10)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_zeros_beside_others_and_alone():
    tensor = random_tensor(2, 6, 5, 3)
    tensor[1] = 0
    factors, error = polyadic(tensor, 4, 20)
    assert error == pytest.approx(polyadic(tensor[:1], 4, 20)[1], rel=0.02)
    assert not terms_of(factors)[1].any()
    factors, error = polyadic(tensor[1:], 4, 20)
    assert error == 0
    assert not terms_of(factors).any()


def test_work_is_bounded_and_without_any_terms_are_still_found(monkeypatch):
    tensor = random_tensor(1, 8, 6, 3, 3)
    polished = polyadic(tensor, 10, 20)[1]
    monkeypatch.setattr(engine, "WORK_OF_A_RUNG", 0)
    monkeypatch.setattr(engine, "_swept", None)  # not called
    errors = [polyadic(tensor, rank, 20)[1] for rank in range(1, 11)]
    assert all(more < fewer for fewer, more in zip([1, *errors], errors, strict=False))
    assert polished < errors[-1]
