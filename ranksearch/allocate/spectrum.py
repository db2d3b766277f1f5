"""Spectrum: the singular values of the matrix that a method truncates, and what a rank keeps of them.

For the methods with one rank whose error is the tail of one matrix per group: `svd`, `channel_svd`, `spatial_svd`.
tucker2 truncates two matrices at once and has none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ranksearch.allocate.table import Floats, Table
from ranksearch.factorize import LayerShape
from ranksearch.records import LayerChoice, LayerRecord, Option

__all__ = ["Spectra", "Spectrum", "cheapest", "family", "spectral_table"]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Spectrum:
    """method: whose matrix it is. values: (G, R), one row a group, descending, R = min(P, Q) of that (P, Q) matrix.
    longest: max(P, Q)."""

    method: str
    values: Floats
    longest: int

    @classmethod
    def of(cls, method: str, shape: LayerShape, singular_values: Floats) -> "Spectrum":
        """singular_values: (G, R), as the method's `decompose` gives them for a layer of this shape."""
        outputs, inputs = shape.group_channels
        return cls(
            method=method,
            values=singular_values,
            longest=outputs * inputs * shape.taps // singular_values.shape[1],
        )

    def energy_kept(self, rank: int) -> float:
        """Share of Σσ² over all groups together; 1 for a weight of zeros."""
        squares = self.values.astype(float) ** 2
        total = float(squares.sum())
        return float(squares[:, :rank].sum()) / total if total > 0 else 1.0

    def operator_error(self, rank: int) -> float:
        """Relative error in the operator norm, σ_{rank+1} / σ_1, of the worst group."""
        largest, first_cut = self.values[:, 0], self.values[:, rank : rank + 1]
        shares = np.divide(first_cut.T, largest, out=np.zeros_like(first_cut.T), where=largest > 0)
        return float(shares.max(initial=0.0))


Spectra: TypeAlias = Mapping[str, Spectrum]  # layer name -> its spectrum; a layer without one stays dense


def family(spectra: Spectra) -> str:
    """What a seed's name calls them: their method, leaving out the svd of the layers that are matrices."""
    methods = {spectrum.method for spectrum in spectra.values()}
    return "+".join(sorted(methods - {"svd"}) or sorted(methods))


def cheapest(layer: LayerRecord, spectra: Spectra, suffices: Callable[[Spectrum, int], bool]) -> LayerChoice:
    """Of the spectrum's method the smallest rank that suffices; dense where none does."""
    *factorized, dense = layer.options
    found = [option for option in factorized if _rank(option, layer, spectra)]
    enough = [option for option in found if suffices(spectra[layer.name], _rank(option, layer, spectra))]
    return min(enough, key=lambda option: option.choice.ranks, default=dense).choice


def spectral_table(
    layers: Sequence[LayerRecord], spectra: Spectra, loss: Callable[[Spectrum, int], float], cost: str = "macs"
) -> Table:
    """What a rank loses by its spectrum alone, against `macs` or `parameters`; options of other methods lose inf."""
    searched = tuple(layer for layer in layers if layer.options)
    costs = tuple(np.array([float(getattr(o.cost, cost)) for o in layer.options]) for layer in searched)
    return Table(
        layers=searched,
        costs=costs,
        losses=tuple(np.array([_loss(o, layer, spectra, loss) for o in layer.options]) for layer in searched),
        whole=float(sum(of_layer[-1] for of_layer in costs)),
    )


def _loss(option: Option, layer: LayerRecord, spectra: Spectra, loss: Callable[[Spectrum, int], float]) -> float:
    if option.choice.is_dense:
        return 0.0
    rank = _rank(option, layer, spectra)
    return loss(spectra[layer.name], rank) if rank else np.inf


def _rank(option: Option, layer: LayerRecord, spectra: Spectra) -> int:
    """0 where the option is not of the layer's spectrum."""
    spectrum = spectra.get(layer.name)
    return option.choice.ranks[0] if spectrum and option.choice.method == spectrum.method else 0
