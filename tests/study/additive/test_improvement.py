"""Expected hypervolume improvement against sampling, quadrature and Optuna's hypervolume."""

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume
from scipy.integrate import dblquad
from scipy.stats import norm

from ranksearch.study.additive.improvement import cdf, expected_improvement, non_dominated


def problem(seed: int, num_objectives: int = 2, num_front: int = 7):
    rng = np.random.default_rng(seed)
    front = rng.uniform(0, 1.2, (num_front, num_objectives))  # some beyond the reference, some dominated
    mean, sd = rng.uniform(-0.1, 1.2, (5, num_objectives)), rng.uniform(0.01, 0.4, (5, num_objectives))
    return mean, sd, front, np.ones(num_objectives), rng


def gain(points, front, reference) -> float:
    front = front[(front < reference).all(1)]
    return compute_hypervolume(np.vstack([front, points]), reference) - (
        compute_hypervolume(front, reference) if len(front) else 0.0
    )


@pytest.mark.parametrize("seed", range(4))
def test_two_objectives_agree_with_monte_carlo(seed):
    mean, sd, front, reference, rng = problem(seed)
    exact = expected_improvement(mean, sd, front, reference, rng)
    for candidate in range(len(mean)):
        draws = np.minimum(mean[candidate] + sd[candidate] * rng.standard_normal((3000, 2)), reference)
        gains = [gain(draw[None], front, reference) for draw in draws]
        assert abs(exact[candidate] - np.mean(gains)) < 5 * np.std(gains) / len(gains) ** 0.5 + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_two_objectives_agree_with_quadrature(seed):
    """The volume is the integral of the probability of dominating a point, over the points that the front leaves."""
    mean, sd, front, reference, rng = problem(seed, num_front=2)
    exact = expected_improvement(mean, sd, front, reference, rng)

    def strip(candidate, low, high, top):
        (m0, m1), (s0, s1) = mean[candidate], sd[candidate]
        value, _ = dblquad(lambda y, x: norm.cdf(x, m0, s0) * norm.cdf(y, m1, s1), low, high, m1 - 9 * s1, top)
        return value

    inside = sorted(tuple(p) for p in front if (p < reference).all())
    for candidate in range(2):
        start, top, total = mean[candidate, 0] - 9 * sd[candidate, 0], 1.0, 0.0
        for x, y in inside:
            total, start, top = total + strip(candidate, start, x, top), x, min(top, y)
        total += strip(candidate, start, 1.0, top)
        assert exact[candidate] == pytest.approx(total, rel=1e-5, abs=1e-9)


def test_an_empty_front_leaves_everything_below_the_reference():
    gains = expected_improvement(
        np.array([[0.25, 0.5]]), np.zeros((1, 2)), np.empty((0, 2)), np.ones(2), np.random.default_rng(0)
    )
    assert gains == pytest.approx(0.75 * 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_a_certain_candidate_adds_what_it_dominates(seed):
    mean, _, front, reference, rng = problem(seed)
    exact = expected_improvement(mean, np.zeros_like(mean), front, reference, rng)
    wanted = [gain(m[None], front, reference) if (m < reference).all() else 0.0 for m in mean]
    assert exact == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_directions_sample_the_hypervolume(num_objectives):
    mean, sd, front, reference, _ = problem(1, num_objectives, 4)
    mean, sd = 0.4 * mean, 0.0 * sd
    runs = [expected_improvement_by_directions(mean, sd, front, reference, seed) for seed in range(60)]
    wanted = [gain(m[None], front, reference) for m in mean]
    error = np.std(runs, axis=0) / len(runs) ** 0.5
    assert np.all(np.abs(np.mean(runs, axis=0) - wanted) < 5 * error + 1e-9)
    assert max(wanted) > 0


def expected_improvement_by_directions(mean, sd, front, reference, seed):
    from ranksearch.study.additive.improvement import _sampled

    return _sampled(mean, sd, front, reference, np.random.default_rng(seed))


def test_three_objectives_average_over_the_candidate_s_uncertainty():
    mean, sd, front, reference, rng = problem(3, 3, 4)
    runs = [expected_improvement(mean, sd, front, reference, np.random.default_rng(seed)) for seed in range(60)]
    draws = np.minimum(mean[:, None] + sd[:, None] * rng.standard_normal((5, 2000, 3)), reference)
    for candidate in range(5):
        gains = [gain(draw[None], front, reference) for draw in draws[candidate]]
        spread = np.hypot(np.std(gains) / len(gains) ** 0.5, np.std(runs, axis=0)[candidate] / len(runs) ** 0.5)
        assert abs(np.mean(runs, axis=0)[candidate] - np.mean(gains)) < 5 * spread + 1e-6


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_the_non_dominated_are_those_that_brute_force_finds(num_objectives):
    points = np.random.default_rng(0).integers(0, 6, (80, num_objectives)).astype(float)
    wanted = {
        tuple(p) for p in points if not any((q <= p).all() and (q < p).any() for q in points)
    }  # of equal ones one
    found = [tuple(points[i]) for i in non_dominated(points)]
    assert len(found) == len(wanted)
    assert set(found) == wanted


def test_the_normal_distribution_is_scipy_s():
    z = np.linspace(-9, 9, 101)
    assert cdf(z) == pytest.approx(norm.cdf(z), rel=1e-12)
