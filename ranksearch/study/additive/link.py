"""From latent damage, which adds up over layers, to the share of the accuracy that is lost, which does not.

    lost(z) = plateau + h(z / midpoint) − h(0)      h(u) = uᵇ / (1 + uᵇ)

Hill's curve (Hill, 1910; the log-logistic dose response): flat while a short training makes good what is lost, then
steep, and never much more than everything; with b = 1 it begins as a straight line. `plateau` is what a nearly dense
net loses (or, below 0, gains) by being trained at all, which the dense model is not. Below a small u the curve goes on
as its tangent, so that negative damage counts and no slope is 0; hence h(0) is not quite 0.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from ranksearch.study.additive.coding import Floats

__all__ = ["Link"]

TANGENT_BELOW = 0.05
POWERS = np.array([0.7, 0.85, 1.0, 1.2, 1.45, 1.75, 2.1, 2.5, 3.0])
# In medians of the damage, and then in the best of those.
MIDPOINTS = (np.logspace(-1.0, 3.0, 40), np.logspace(-0.1, 0.1, 21))
USUAL_POWER, POWER_OCTAVES = 1.2, 0.5  # a log-normal prior
PLATEAU_SD = 0.01


def _hill(u: Floats, power: Floats | float) -> Floats:
    """Less its value at 0."""
    inside, start = np.maximum(u, TANGENT_BELOW) ** power, TANGENT_BELOW**power
    at_zero = start / (1 + start) - _hill_slope(np.zeros(()), power) * TANGENT_BELOW
    return inside / (1 + inside) + _hill_slope(u, power) * np.minimum(u - TANGENT_BELOW, 0) - at_zero


def _hill_slope(u: Floats, power: Floats | float) -> Floats:
    base = np.maximum(u, TANGENT_BELOW)
    return power * base ** (power - 1) / (1 + base**power) ** 2


@dataclass(frozen=True)
class Link:
    plateau: float = 0.0
    midpoint: float = 1.0
    power: float = USUAL_POWER

    def __call__(self, damage: Floats) -> Floats:
        return self.plateau + _hill(damage / self.midpoint, self.power)

    def slope(self, damage: Floats) -> Floats:
        return _hill_slope(damage / self.midpoint, self.power) / self.midpoint

    @classmethod
    def fit(cls, damage_N: Floats, lost_N: Floats, noise_N: Floats) -> Self:
        """The best of a grid of powers and midpoints, each with its own best plateau. `noise_N`: variances."""
        found = cls(midpoint=float(np.median(np.abs(damage_N))) or 1.0)
        for factors_M in MIDPOINTS:
            found = cls._best(damage_N[:, None, None], lost_N[:, None, None], noise_N[:, None, None],
                              found.midpoint * factors_M)  # fmt: skip
        return found

    @classmethod
    def _best(cls, damage_N11: Floats, lost_N11: Floats, noise_N11: Floats, midpoints_M: Floats) -> Self:
        powers_P1 = POWERS[:, None]
        rest_NPM = lost_N11 - _hill(damage_N11 / midpoints_M, powers_P1)
        plateau_PM = (rest_NPM / noise_N11).sum(0) / ((1 / noise_N11).sum(0) + PLATEAU_SD**-2)
        misfit_PM = ((rest_NPM - plateau_PM) ** 2 / noise_N11).sum(0) + (plateau_PM / PLATEAU_SD) ** 2
        misfit_PM = misfit_PM + (np.log2(powers_P1 / USUAL_POWER) / POWER_OCTAVES) ** 2
        best = np.unravel_index(np.argmin(misfit_PM), misfit_PM.shape)
        return cls(float(plateau_PM[best]), float(midpoints_M[best[1]]), float(POWERS[best[0]]))
