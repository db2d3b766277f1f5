"""Uniform: in every layer the same share of the dense cost."""

from collections.abc import Sequence

from ranksearch.allocate.sweep import sweep
from ranksearch.records import LayerRecord, Option, Plan, SeedPlan

__all__ = ["UNIFORM_FRACTIONS", "uniform", "uniform_sweep"]

# The bar a search has to clear: six kept fractions, spatial and channel SVD.
UNIFORM_FRACTIONS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.12)


def uniform(layers: Sequence[LayerRecord], fraction: float, methods: Sequence[str]) -> Plan:
    """In every layer the option of these methods that keeps the share of the dense layer nearest to `fraction`.

    A layer that has no option of these methods stays dense.
    """
    return Plan({layer.name: _nearest(layer, fraction, methods).choice for layer in layers if layer.options})


def _nearest(layer: LayerRecord, fraction: float, methods: Sequence[str]) -> Option:
    *factorized, dense = layer.options
    usable = [option for option in factorized if option.choice.method in methods]
    return min(usable, key=lambda option: abs(_share(option, layer) - fraction), default=dense)


def _share(option: Option, layer: LayerRecord) -> float:
    """Of the MACs; of the parameters where a method leaves the MACs as they are."""
    if option.cost.macs < layer.cost.macs:
        return option.cost.macs / layer.cost.macs
    return option.cost.parameters / layer.cost.parameters


def uniform_sweep(layers: Sequence[LayerRecord]) -> tuple[SeedPlan, ...]:
    """Uniform kept fractions with spatial and with channel SVD (plain SVD where a layer is a matrix), mildest first.

    Where a space lacks both, its own methods take their place. Equal plans appear once.
    """
    offered = {option.choice.method for layer in layers for option in layer.options[:-1]}
    families = [m for m in ("spatial_svd", "channel_svd") if m in offered] or sorted(offered - {"svd"}) or ["svd"]
    return sweep(
        (f"uniform-{family}-{fraction:g}", uniform(layers, fraction, (family, "svd")))
        for fraction in UNIFORM_FRACTIONS
        for family in families
    )
