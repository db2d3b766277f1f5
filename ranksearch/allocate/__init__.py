"""Rank allocations: seeds for a search and the peers it has to beat.

Every rule takes layers with their options and gives plans made of those options. Some know the weights' singular
values alone (`Spectrum`), others what a `Profile` has measured.
"""

from ranksearch.allocate.alds import alds, alds_sweep
from ranksearch.allocate.energy import energy, energy_sweep
from ranksearch.allocate.evbmf import evbmf, evbmf_rank, evbmf_sweep
from ranksearch.allocate.hypervolume import hypervolume, hypervolume_gains, order_by_hypervolume
from ranksearch.allocate.knapsack import Front, knapsack
from ranksearch.allocate.log_energy import log_energy_sweep
from ranksearch.allocate.seeds import knapsack_seeds
from ranksearch.allocate.spectrum import Spectrum
from ranksearch.allocate.table import Table
from ranksearch.allocate.undominated import undominated
from ranksearch.allocate.uniform import UNIFORM_FRACTIONS, uniform, uniform_sweep

__all__ = [
    "UNIFORM_FRACTIONS",
    "Front",
    "Spectrum",
    "Table",
    "alds",
    "alds_sweep",
    "energy",
    "energy_sweep",
    "evbmf",
    "evbmf_rank",
    "evbmf_sweep",
    "hypervolume",
    "hypervolume_gains",
    "knapsack",
    "knapsack_seeds",
    "log_energy_sweep",
    "order_by_hypervolume",
    "undominated",
    "uniform",
    "uniform_sweep",
]
