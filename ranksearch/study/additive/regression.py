"""Bayesian linear regression of sums of effects, around a prior.

With effects θ ~ N(m, C) and targets t = Xθ + ε, ε ~ N(0, diag(v)), X of zeros and ones:

    G = X C Xᵀ + diag(v)      θ | t ~ N(m + C Xᵀ G⁻¹ (t − X m), C − C Xᵀ G⁻¹ X C)

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 2.1, in its dual form: there are
more effects than trials for long. One more trial is a rank-one change (`Effects.update`), no factorization.
Shapes: N trials, V variables, D effects; `columns_NV` names the V effects that add up in a trial.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ranksearch.study.additive.coding import Codes, Floats

__all__ = ["Effects", "Regression"]

# Scales of the prior's and of the noise's standard deviation to choose from, by marginal likelihood.
PRIOR_SCALES = 2.0 ** np.arange(-3, 3.1)
NOISE_SCALES = 2.0 ** np.arange(-4, 3.1)
ENOUGH = 200  # trials to choose the two scales by


@dataclass
class Effects:
    """A normal belief about effects."""

    mean: Floats  # D
    covariance: Floats  # D × D

    def predict(self, columns_NV: Codes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of each sum."""
        num = len(self.mean)
        pairs = columns_NV[:, :, None] * num + columns_NV[:, None, :]
        variance_N = np.take(self.covariance, pairs).sum((1, 2))
        return self.mean[columns_NV].sum(1), np.sqrt(np.maximum(variance_N, 0))

    @property
    def sd(self) -> Floats:
        return np.sqrt(np.maximum(np.diag(self.covariance), 0))

    def update(self, columns_V: Codes, target: float, noise: float) -> None:
        """One more sum was observed, with noise of this variance."""
        gain_D = self.covariance[:, columns_V].sum(1)
        total = gain_D[columns_V].sum() + noise
        self.mean = self.mean + gain_D * ((target - self.mean[columns_V].sum()) / total)
        self.covariance -= np.outer(gain_D, gain_D / total)


class Regression:
    """Of the same trials, for several targets and noises."""

    def __init__(self, prior: Effects, columns_NV: Codes) -> None:
        self._prior = prior
        self._design_ND = np.zeros((len(columns_NV), len(prior.mean)))
        np.put_along_axis(self._design_ND, columns_NV, 1.0, axis=1)
        self._prior_N = self._design_ND @ prior.mean

    @cached_property
    def _cross(self) -> Floats:
        return self._design_ND @ self._prior.covariance

    @cached_property
    def _gram(self) -> Floats:
        return self._cross @ self._design_ND.T

    def scales(self, targets_N: Floats, noise_N: Floats) -> tuple[float, float]:
        """Factors of the prior's and the noise's standard deviation with the largest marginal likelihood.

        Log-normal priors of one octave and a half hold both near 1 while there are few trials.
        """
        some = np.unique(np.linspace(0, len(targets_N) - 1, ENOUGH).astype(int)) if len(targets_N) else []
        root_N = np.sqrt(noise_N[some])
        values_N, vectors_NN = np.linalg.eigh(self._gram[np.ix_(some, some)] / np.outer(root_N, root_N))
        rotated_N = vectors_NN.T @ ((targets_N - self._prior_N)[some] / root_N)
        prior_P1, noise_S = PRIOR_SCALES[:, None], NOISE_SCALES
        variance_PSN = (prior_P1**2)[..., None] * np.maximum(values_N, 0) + (noise_S**2)[:, None]
        evidence_PS = -0.5 * (np.log(variance_PSN) + rotated_N**2 / variance_PSN).sum(-1)
        evidence_PS = evidence_PS - 0.5 * (np.log2(prior_P1) / 1.5) ** 2 - 0.5 * (np.log2(noise_S) / 1.5) ** 2
        best = np.unravel_index(np.argmax(evidence_PS), evidence_PS.shape)
        return float(PRIOR_SCALES[best[0]]), float(NOISE_SCALES[best[1]])

    def mean(self, targets_N: Floats, noise_N: Floats, scale: float = 1.0) -> Floats:
        """Of the effects; `scale`: of the prior's standard deviation."""
        inner_N = np.linalg.solve(scale**2 * self._gram + np.diag(noise_N), targets_N - self._prior_N)
        return self._prior.mean + scale**2 * (inner_N @ self._cross)

    def posterior(self, targets_N: Floats, noise_N: Floats, scale: float = 1.0) -> Effects:
        root_NN = np.linalg.cholesky(scale**2 * self._gram + np.diag(noise_N))
        half_ND = np.linalg.solve(root_NN, scale**2 * self._cross)
        shift_N = np.linalg.solve(root_NN, targets_N - self._prior_N)
        covariance_DD = scale**2 * self._prior.covariance - half_ND.T @ half_ND
        return Effects(self._prior.mean + shift_N @ half_ND, covariance_DD)
