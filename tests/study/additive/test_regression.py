"""The posterior in its dual form against the normal equations, and rank-one updates against both."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ranksearch.study.additive.regression import NOISE_SCALES, PRIOR_SCALES, Effects, Regression

SIZES = (4, 3, 6)


def problem(num: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    total = sum(SIZES)
    root = rng.standard_normal((total, total))
    prior = Effects(rng.standard_normal(total), root @ root.T / total + 0.1 * np.eye(total))
    codes = np.stack([rng.integers(size, size=num) for size in SIZES], axis=1)
    columns = codes + np.concatenate([[0], np.cumsum(SIZES)[:-1]])
    return prior, columns, rng.standard_normal(num), rng.uniform(0.1, 1, num)


def design(columns):
    return np.array([[float(d in row) for d in range(sum(SIZES))] for row in columns])


def normal_equations(prior, columns, targets, noise, scale=1.0):
    x, precision = design(columns), np.linalg.inv(scale**2 * prior.covariance)
    covariance = np.linalg.inv(precision + x.T @ np.diag(1 / noise) @ x)
    return covariance @ (precision @ prior.mean + x.T @ (targets / noise)), covariance


@pytest.mark.parametrize(("num", "scale"), [(1, 1.0), (5, 0.5), (60, 2.0)])
def test_posterior_solves_the_normal_equations(num, scale):
    prior, columns, targets, noise = problem(num)
    mean, covariance = normal_equations(prior, columns, targets, noise, scale)
    regression = Regression(prior, columns)
    found = regression.posterior(targets, noise, scale)
    np.testing.assert_allclose(found.mean, mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-9)
    np.testing.assert_allclose(regression.mean(targets, noise, scale), mean, atol=1e-9)


def test_updates_one_by_one_give_the_same_as_all_at_once():
    prior, columns, targets, noise = problem(300)
    wanted = Regression(prior, columns).posterior(targets, noise)
    found = Effects(prior.mean, prior.covariance.copy())
    for row in range(300):
        found.update(columns[row], targets[row], noise[row])
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-8)
    np.testing.assert_allclose(found.covariance, wanted.covariance, atol=1e-8)


def test_a_sum_is_predicted_with_its_variance():
    prior, columns, _, _ = problem(20)
    x = design(columns)
    mean, sd = prior.predict(columns)
    np.testing.assert_allclose(mean, x @ prior.mean)
    np.testing.assert_allclose(sd**2, np.diag(x @ prior.covariance @ x.T))


def test_the_scales_have_the_largest_marginal_likelihood():
    prior, columns, targets, noise = problem(40, seed=3)
    x, targets = design(columns), 5 * targets

    def evidence(scale, noise_scale):
        covariance = scale**2 * x @ prior.covariance @ x.T + noise_scale**2 * np.diag(noise)
        usual = 0.5 * (np.log2(scale) / 1.5) ** 2 + 0.5 * (np.log2(noise_scale) / 1.5) ** 2
        return multivariate_normal(x @ prior.mean, covariance).logpdf(targets) - usual

    wanted = max(((p, n) for p in PRIOR_SCALES for n in NOISE_SCALES), key=lambda pair: evidence(*pair))
    assert Regression(prior, columns).scales(targets, noise) == wanted
    assert wanted != (1.0, 1.0)
