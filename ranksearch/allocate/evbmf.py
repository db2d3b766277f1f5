"""EVBMF: in every layer the rank that empirical variational Bayesian matrix factorization finds in its weight.

The weight (L, M), L ≤ M, is taken as a low-rank matrix and white noise of variance σ². With α = L/M and x = γ²/(M σ²),
the singular values γ with x > x̄ are kept:

    τ̄ = 2.5129 √α,   x̄ = (1 + τ̄)(1 + α/τ̄)
    σ² minimises Σ_h ψ0(x_h) + [x_h > x̄] ψ1(x_h);   ψ0(x) = x − log x,   ψ1(x) = log(τ + 1) + α log(τ/α + 1) − τ,
    τ(x) = ½ (x − (1 + α) + √((x − (1 + α))² − 4 α))

The global solution is in closed form but for σ², which is searched for in one dimension. Source: Nakajima, Sugiyama,
Babacan, Tomioka 2013 (Global analytic solution of fully-observed variational Bayesian matrix factorization, JMLR 14).
For networks: Kim, Park, Yoo, Choi, Yang, Shin 2016 (arXiv 1511.06530).

The rule may cut too much for a short fine-tuning. Weakened, as in Gusak et al. 2019 (MUSCO, arXiv 1903.09973), the
rank goes back a part of the way to full rank.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ranksearch.allocate.spectrum import Spectra, Spectrum, cheapest, family
from ranksearch.allocate.sweep import sweep
from ranksearch.allocate.table import Floats
from ranksearch.records import LayerRecord, Plan, SeedPlan

__all__ = ["WEAKENINGS", "evbmf", "evbmf_rank", "evbmf_sweep"]

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (np.geomspace is annotated in part)

WEAKENINGS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of what EVBMF cuts, the share that is cut

GRID = 200
NOISE_FLOOR = 1e-13  # of the mean square: below the rounding of float32 weights there is no noise to find


def evbmf_rank(values: Floats, longest: int) -> int:
    """values: (R,) all singular values of an (R, longest) matrix, R ≤ longest, descending."""
    squares = values.astype(float) ** 2 / longest
    if not squares.any():
        return 0
    alpha = len(squares) / longest
    return int(np.count_nonzero(squares > _threshold(alpha) * _noise_variance(squares, alpha)))


def _threshold(alpha: float) -> float:
    """x̄, from which on a component is kept."""
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def _noise_variance(squares: Floats, alpha: float) -> float:
    """σ² of least free energy; squares: γ²/M. A grid of logarithms within the bounds that the source gives, then a
    second between the neighbours of the best."""
    most_kept = min(math.ceil(len(squares) / (1 + alpha)) - 1, len(squares) - 1)
    highest = squares.mean()
    lowest = max(squares[most_kept] / _threshold(alpha), squares[most_kept:].mean(), NOISE_FLOOR * highest)
    grid = np.geomspace(min(lowest, highest), highest, GRID)
    best = int(_free_energy(grid, squares, alpha).argmin())
    fine = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)], GRID)
    return float(fine[_free_energy(fine, squares, alpha).argmin()])


def _free_energy(variances: Floats, squares: Floats, alpha: float) -> Floats:
    """For each σ², up to what does not depend on it: −log x is log σ² and a constant, which is infinite for γ = 0."""
    x = squares / variances[:, None]
    kept = np.maximum(x, _threshold(alpha)) - (1 + alpha)
    tau = 0.5 * (kept + np.sqrt(kept**2 - 4 * alpha))
    bonus = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return (x + np.log(variances)[:, None] + np.where(x > _threshold(alpha), bonus, 0.0)).sum(1)


def evbmf(layers: Sequence[LayerRecord], spectra: Spectra, weakening: float = 1.0) -> Plan:
    """The smallest rank offered at or above EVBMF's; dense where there is none. Of a grouped layer the groups' largest.

    weakening: 1 for EVBMF's own ranks, towards 0 for full rank.
    """
    return _weakened(layers, spectra, _ranks(spectra), weakening)


def evbmf_sweep(layers: Sequence[LayerRecord], spectra: Spectra) -> tuple[SeedPlan, ...]:
    """Mildest first."""
    ranks = _ranks(spectra)
    return sweep((f"evbmf-{family(spectra)}-{w:g}", _weakened(layers, spectra, ranks, w)) for w in WEAKENINGS)


def _ranks(spectra: Spectra) -> dict[str, int]:
    return {
        name: max(evbmf_rank(values, spectrum.longest) for values in spectrum.values)
        for name, spectrum in spectra.items()
    }


def _weakened(layers: Sequence[LayerRecord], spectra: Spectra, ranks: Mapping[str, int], weakening: float) -> Plan:
    def suffices(spectrum: Spectrum, rank: int, found: int) -> bool:
        full = spectrum.values.shape[1]
        return rank >= full - weakening * (full - found)

    return Plan(
        {
            layer.name: cheapest(layer, spectra, lambda s, rank, name=layer.name: suffices(s, rank, ranks[name]))
            for layer in layers
            if layer.options
        }
    )
