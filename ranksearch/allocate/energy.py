"""Cumulative energy: in every layer the smallest rank that keeps a share of Σσ².

The oldest rule, that of principal components: Jolliffe 2002 (Principal component analysis, section 6.1.1).
"""

from collections.abc import Sequence

from ranksearch.allocate.spectrum import Spectra, cheapest, family
from ranksearch.allocate.sweep import sweep
from ranksearch.records import LayerRecord, Plan, SeedPlan

__all__ = ["ENERGY_SHARES", "energy", "energy_sweep"]

ENERGY_SHARES = (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4)


def energy(layers: Sequence[LayerRecord], spectra: Spectra, share: float) -> Plan:
    """A layer none of whose options keeps as much stays dense."""
    return Plan(
        {
            layer.name: cheapest(layer, spectra, lambda spectrum, rank: spectrum.energy_kept(rank) >= share)
            for layer in layers
            if layer.options
        }
    )


def energy_sweep(layers: Sequence[LayerRecord], spectra: Spectra) -> tuple[SeedPlan, ...]:
    """Mildest first."""
    return sweep((f"energy-{family(spectra)}-{share:g}", energy(layers, spectra, share)) for share in ENERGY_SHARES)
