"""Log-energy: under a budget of MACs the plan with the largest product of the layers' kept energies.

    maximise Σ_l log(Σ_{i ≤ r_l} σ_i² / Σ_i σ_i²)   subject to   Σ_l MACs_l ≤ budget

Zhang, Zou, He, Sun 2016 (Accelerating very deep convolutional networks for classification and detection)
take the product of the energies and go greedily; here its optimum, by the knapsack's dynamic programming, as in the
tools that followed (Kim, Khan, Kyung 2019, Efficient neural network compression, arXiv 1811.12781).
"""

import math
from collections.abc import Sequence

from ranksearch.allocate.knapsack import knapsack
from ranksearch.allocate.spectrum import Spectra, Spectrum, family, spectral_table
from ranksearch.allocate.sweep import sweep
from ranksearch.allocate.uniform import UNIFORM_FRACTIONS
from ranksearch.records import LayerRecord, SeedPlan

__all__ = ["log_energy_sweep"]


def _log_loss(spectrum: Spectrum, rank: int) -> float:
    kept = spectrum.energy_kept(rank)
    return -math.log(kept) if kept > 0 else math.inf


def log_energy_sweep(layers: Sequence[LayerRecord], spectra: Spectra) -> tuple[SeedPlan, ...]:
    """Under shares of the searched layers' MACs, mildest first; the least there is where one cannot be met."""
    table = spectral_table(layers, spectra, _log_loss)
    front = knapsack(table.costs, table.losses)
    budgets = ((share, max(table.budget(share), front.costs[0])) for share in UNIFORM_FRACTIONS)
    return sweep(
        (f"log-energy-{family(spectra)}-{share:g}", table.plan(front.indices[front.at(budget)].tolist()))
        for share, budget in budgets
    )
