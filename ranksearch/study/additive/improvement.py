"""Expected hypervolume improvement of candidates whose objectives, all to be minimised, are independent normals.

What a candidate y adds is the volume that it dominates and the front does not, below the reference point r. With
Ψ(t) = ∫_{-∞}^t Φ((s − μ)/σ) ds = (t − μ) Φ(w) + σ φ(w), w = (t − μ)/σ, its expectation in two dimensions is exactly a
sum over the strips [aᵢ, aᵢ₊₁) × (−∞, bᵢ] that the front leaves:  Σ (Ψ₁(aᵢ₊₁) − Ψ₁(aᵢ)) Ψ₂(bᵢ).
Source: Emmerich, Deutz and Klinkenberg, Hypervolume-based expected improvement (CEC 2011).

For three and more objectives, by Monte Carlo over directions λ on the positive part of the sphere:
the hypervolume is proportional to E_λ max_y min_k ((r_k − y_k)/λ_k)₊ᴷ. Source: Zhang and Golovin, Random hypervolume
scalarizations (ICML 2020), lemma 5. One normal draw a direction, the same for all candidates.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ranksearch.study.additive.coding import Floats

__all__ = ["cdf", "expected_improvement", "non_dominated"]

NUM_DIRECTIONS = 256
CERTAIN = 1e-12  # a standard deviation instead of 0


def cdf(z: Floats) -> Floats:
    return torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(z))).numpy()


def non_dominated(points_NK: Floats) -> NDArray[np.int64]:
    """Which points no other dominates; of equal ones the first."""
    rest, found = np.lexsort(points_NK.T[::-1]), []
    while len(rest):  # the first in lexicographic order is dominated by none of the rest
        found.append(rest[0])
        rest = rest[(points_NK[rest] < points_NK[rest[0]]).any(-1)]
    return np.array(found, dtype=np.int64)


def expected_improvement(
    mean_CK: Floats, sd_CK: Floats, front_FK: Floats, reference_K: Floats, rng: np.random.Generator
) -> Floats:
    """Of every candidate over the front, which may hold dominated points. Volume in the objectives' units."""
    if len(reference_K) == 2:
        return _exact(mean_CK, np.maximum(sd_CK, CERTAIN), front_FK, reference_K)
    return _sampled(mean_CK, sd_CK, front_FK, reference_K, rng)


def _exact(mean_C2: Floats, sd_C2: Floats, front_F2: Floats, reference_2: Floats) -> Floats:
    starts_S, ceilings_S = _strips(front_F2, reference_2)
    ends_S = np.append(starts_S[1:], reference_2[0])
    from_CS = _integrated_cdf(starts_S, mean_C2[:, :1], sd_C2[:, :1])
    to_CS = _integrated_cdf(ends_S, mean_C2[:, :1], sd_C2[:, :1])
    below_CS = _integrated_cdf(ceilings_S, mean_C2[:, 1:], sd_C2[:, 1:])
    return np.maximum(((to_CS - from_CS) * below_CS).sum(-1), 0)


def _strips(front_F2: Floats, reference_2: Floats) -> tuple[Floats, Floats]:
    """Where each strip starts along the first objective, and how high it is free along the second."""
    inside_F2 = front_F2[(front_F2 < reference_2).all(-1)]
    inside_F2 = inside_F2[np.argsort(inside_F2[:, 0], kind="stable")]
    starts_S = np.append(-np.inf, inside_F2[:, 0])
    return starts_S, np.append(reference_2[1], np.minimum.accumulate(inside_F2[:, 1]))


def _integrated_cdf(t_S: Floats, mean_C1: Floats, sd_C1: Floats) -> Floats:
    gap_CS = np.where(np.isfinite(t_S), t_S, mean_C1 - 40 * sd_C1) - mean_C1  # 40 σ below the mean: nothing
    z_CS = np.clip(gap_CS / sd_C1, -40, 40)
    density_CS = np.exp(-0.5 * z_CS**2) / math.sqrt(2 * math.pi)
    return np.maximum(gap_CS * cdf(z_CS) + sd_C1 * density_CS, 0)


def _sampled(mean_CK: Floats, sd_CK: Floats, front_FK: Floats, reference_K: Floats, rng: np.random.Generator) -> Floats:
    num = len(reference_K)
    direction_QK = np.abs(rng.standard_normal((NUM_DIRECTIONS, num)))
    direction_QK /= np.linalg.norm(direction_QK, axis=1, keepdims=True)
    draw_CQK = mean_CK[:, None] + sd_CK[:, None] * rng.standard_normal((NUM_DIRECTIONS, num))
    reached_CQ = _depth(draw_CQK, direction_QK, reference_K)
    known_Q = _depth(front_FK[:, None], direction_QK, reference_K).max(0, initial=0)
    unit = math.pi ** (num / 2) / (2**num * math.gamma(num / 2 + 1))
    return unit * np.maximum(reached_CQ**num - known_Q**num, 0).mean(-1)


def _depth(points_NQK: Floats, direction_QK: Floats, reference_K: Floats) -> Floats:
    """How far from the reference along each direction all that lies is dominated."""
    return np.maximum(((reference_K - points_NQK) / direction_QK).min(-1), 0)
