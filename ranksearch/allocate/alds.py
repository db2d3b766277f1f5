"""ALDS-style: under a budget the plan whose worst layer errs least.

    minimise max_l error_l   subject to   Σ_l cost_l ≤ budget

Exact: the cost of the cheapest options that err at most ε falls with ε, so the least ε that fits is found by halving
the sorted errors. The global step of Liebenwein, Maalouf, Feldman, Rus 2021 (Compressing neural networks: towards
determining the optimal layer-wise decomposition, arXiv 2107.11442), with their error, the operator norm's σ_{r+1}/σ_1;
their local step, slicing a layer's channels into subspaces, is replaced by the choice among the layer's options.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from ranksearch.allocate.spectrum import Spectra, Spectrum, family, spectral_table
from ranksearch.allocate.sweep import sweep
from ranksearch.allocate.table import Table
from ranksearch.allocate.uniform import UNIFORM_FRACTIONS
from ranksearch.errors import SpaceError
from ranksearch.records import LayerRecord, Plan, SeedPlan

__all__ = ["alds", "alds_sweep"]


def alds(table: Table, budget: float) -> Plan:
    """A table's losses are errors here. Raises SpaceError where no plan fits the budget."""
    smallest = max((float(errors.min()) for errors in table.losses), default=0.0)
    errors = np.unique(np.concatenate(([smallest], *table.losses)))
    errors = errors[(errors >= smallest) & np.isfinite(errors)]
    least = table.cost(_cheapest(table, errors[-1]))
    if budget < least:
        raise SpaceError(f"the budget is {budget:g}; the cheapest plan costs {least:g}, so give that or more")
    first = bisect_left(errors, True, key=lambda error: table.cost(_cheapest(table, error)) <= budget)
    return table.plan(_cheapest(table, errors[first]))


def _cheapest(table: Table, error: float) -> list[int]:
    """Of each layer the cheapest option that errs at most so much."""
    return [
        int(np.where(errors <= error, costs, np.inf).argmin())
        for costs, errors in zip(table.costs, table.losses, strict=True)
    ]


def alds_sweep(layers: Sequence[LayerRecord], spectra: Spectra) -> tuple[SeedPlan, ...]:
    """Under shares of the searched layers' MACs, mildest first; the least there is where one cannot be met."""
    table = spectral_table(layers, spectra, Spectrum.operator_error)
    least = table.cost(_cheapest(table, np.finfo(float).max))
    return sweep(
        (f"alds-{family(spectra)}-{share:g}", alds(table, max(table.budget(share), least)))
        for share in UNIFORM_FRACTIONS
    )
