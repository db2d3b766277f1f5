"""Who searches: plans to begin with, options, and a sampler for what follows."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.search.arena import Arena
from ranksearch.allocate import (
    Spectrum,
    alds_sweep,
    energy_sweep,
    evbmf_sweep,
    log_energy_sweep,
    undominated,
    uniform_sweep,
)
from ranksearch.factorize import METHODS
from ranksearch.records import LayerRecord, Plan, Profile, Recipe, SeedPlan
from ranksearch.study.creation import noise_of, seeds_of

__all__ = ["Searcher", "rules", "searchers"]

OBJECTIVES = ("latency", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Searcher:
    """`sampler` None: a closed-form rule, which ends with its plans. `pays`: seconds before the first trial."""

    name: str
    layers: Sequence[LayerRecord]
    seeds: Sequence[SeedPlan]
    sampler: str | None = None
    profile: Profile | None = None
    pays: float = 0.0


def rules(arena: Arena) -> list[Searcher]:
    """What knows neither latency nor data, each with spatial and with channel SVD."""
    families = [_spectra(arena, method) for method in ("spatial_svd", "channel_svd")]
    sweeps = {"energy": energy_sweep, "EVBMF": evbmf_sweep, "ALDS-style": alds_sweep, "log-energy": log_energy_sweep}
    seeds = {"uniform": uniform_sweep(arena.options)} | {
        name: tuple(seed for spectra in families for seed in sweep(arena.options, spectra))
        for name, sweep in sweeps.items()
    }
    return [Searcher(name=name, layers=arena.options, seeds=plans) for name, plans in seeds.items()]


def searchers(arena: Arena, profile: Profile, pays: float, samplers: Sequence[str], budget: int) -> list[Searcher]:
    """Ours; the samplers of Optuna as one would use them, over method and rank of every layer with the ends dense; and
    the same on our options."""
    layers = undominated(arena.options, profile, OBJECTIVES, noise_of(profile))
    recipe = Recipe(name="default", finetune=arena.spec.finetune)
    dense = (SeedPlan(origin="dense", plan=Plan()),)
    ours = Searcher(
        name="ranksearch",
        layers=layers,
        seeds=seeds_of(layers, [recipe], profile, OBJECTIVES, budget),
        sampler="additive",
        profile=profile,
        pays=pays,
    )
    plain = [Searcher(name=name, layers=arena.options, seeds=dense, sampler=name) for name in samplers]
    pruned = [
        Searcher(name=f"{name}, our options", layers=layers, seeds=dense, sampler=name, pays=pays) for name in samplers
    ]
    return [ours, *plain, *pruned]


def _spectra(arena: Arena, family: str) -> dict[str, Spectrum]:
    """Of this method, and of plain SVD where a layer is a matrix."""
    shapes = {layer.name: layer.shape for layer in arena.bench.layers}
    found = {}
    for layer in arena.options:
        offered = {option.choice.method for option in layer.options[:-1]}
        if not offered & {family, "svd"}:
            continue
        method, shape = METHODS[family if family in offered else "svd"], shapes[layer.name]
        assert shape is not None
        weight = shape.canonical(arena.bench.dense.get_submodule(layer.name).weight.detach())
        factors = method.decompose(weight, shape, method.max_ranks(shape))
        found[layer.name] = Spectrum.of(method.name, shape, factors["singular_values"].numpy())
    return found
