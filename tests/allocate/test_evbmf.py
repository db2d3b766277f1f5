"""The rank of variational Bayes: planted ranks are found, pure noise has none, the free energy is the source's."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from ranksearch.allocate import evbmf_rank
from ranksearch.allocate.evbmf import _free_energy, _noise_variance, _threshold


def singular_values(rows, columns, rank, noise, seed):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return np.linalg.svd(signal + noise * rng.normal(size=(rows, columns)), compute_uv=False)


SIZES = [(20, 20), (48, 64), (64, 576), (128, 130), (200, 1800)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.35])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_a_planted_rank_is_found(rows, columns, share, noise):
    rank = max(1, round(share * rows))
    assert evbmf_rank(singular_values(rows, columns, rank, noise, rows), columns) == rank


@pytest.mark.parametrize(("rows", "columns"), [*SIZES, (1, 5), (2, 2), (3, 3)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_noise_has_no_rank(rows, columns, scale):
    values = singular_values(rows, columns, 0, scale, 1)
    assert evbmf_rank(values, columns) <= (0 if rows > 3 else rows - 1)


def test_without_noise_the_rank_is_the_matrix_own_and_zeros_have_none():
    assert evbmf_rank(singular_values(40, 60, 7, 0.0, 3), 60) == 7
    assert evbmf_rank(np.zeros(5), 9) == 0


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_the_rank_does_not_depend_on_the_scale(scale):
    values = singular_values(30, 50, 5, 0.8, 4)
    assert evbmf_rank(scale * values, 50) == evbmf_rank(values, 50)


def free_energy(variance, values, columns) -> float:
    """Term by term as published, a singular value at a time."""
    alpha = len(values) / columns
    tau_bar = 2.5129 * np.sqrt(alpha)
    total = 0.0
    for x in values**2 / (columns * variance):
        total += x - np.log(x)
        if x > (1 + tau_bar) * (1 + alpha / tau_bar):
            tau = ((x - 1 - alpha) + np.sqrt((x - 1 - alpha) ** 2 - 4 * alpha)) / 2
            total += np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return total


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_the_free_energy_is_the_published_one_but_for_a_constant(share):
    columns = 200
    values = singular_values(round(share * columns), columns, 2, 0.7, 5)
    variances = np.geomspace(0.01, 10, 30)
    ours = _free_energy(variances, values**2 / columns, len(values) / columns)
    published = [free_energy(variance, values, columns) for variance in variances]
    assert np.ptp(ours - published) < 1e-8 * max(published)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 1.0])
def test_the_threshold_is_where_keeping_a_component_begins_to_pay(alpha):
    """There ψ1 is 0; the 2.5129 is published as an approximation."""

    def bonus(x):
        tau = ((x - 1 - alpha) + np.sqrt((x - 1 - alpha) ** 2 - 4 * alpha)) / 2
        return np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau

    least = (1 + np.sqrt(alpha)) ** 2
    assert _threshold(alpha) == pytest.approx(brentq(bonus, least + 1e-9, 20), rel=3e-2)


@pytest.mark.parametrize("seed", range(8))
def test_the_noise_variance_is_where_the_free_energy_is_least(seed):
    rows, columns = (24, 40) if seed % 2 else (30, 30)
    values = singular_values(rows, columns, 2 + seed, 0.5 * (1 + seed), seed)
    found = _noise_variance(values**2 / columns, rows / columns)
    here = free_energy(found, values, columns)
    # From many starts: the free energy has several dips.
    edges = np.geomspace(found / 100, found * 100, 40)
    for low, high in zip(edges, edges[2:], strict=False):
        dip = minimize_scalar(free_energy, bounds=(low, high), args=(values, columns), method="bounded")
        assert here <= dip.fun + 1e-3 * len(values)
