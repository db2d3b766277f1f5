"""Who searches: plans to begin with, options, and a sampler for what follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

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
from ranksearch.attention import unpacked
from ranksearch.factorize import METHODS
from ranksearch.records import LayerRecord, Plan, Profile, SeedPlan
from ranksearch.study.creation import noise_of, seeds_of

__all__ = ["ALL_RULES", "OURS", "RULES", "UNIFORM", "Searcher", "options_left", "ours", "peers", "pruned", "rules"]

OBJECTIVES = ("latency", "accuracy")
OURS, UNIFORM = "ranksearch", "uniform"
RULES = (UNIFORM, "energy", "EVBMF", "ALDS-style", "log-energy")
ALL_RULES = "all rules together"
FAMILIES = ("spatial_svd", "channel_svd")
MOST_PLANS = 6  # of a rule with one family


@dataclass(frozen=True, kw_only=True)
class Searcher:
    """`sampler` None: a closed-form rule, which ends with its plans. `pays`: seconds before the first trial."""

    name: str
    layers: Sequence[LayerRecord]
    seeds: Sequence[SeedPlan]
    budget: int
    sampler: str | None = None
    profile: Profile | None = None
    pays: float = 0.0


def ours(arena: Arena, profile: Profile, pays: float, budget: int, long_budget: int) -> Searcher:
    """A search of `budget` trials, which then goes on to `long_budget`."""
    layers = options_left(arena, profile)
    seeds = seeds_of(layers, arena.recipes, profile, OBJECTIVES, budget)
    return Searcher(
        name=OURS, layers=layers, seeds=seeds, budget=long_budget, sampler="additive", profile=profile, pays=pays
    )


def peers(arena: Arena, samplers: Sequence[str], budget: int) -> list[Searcher]:
    """The samplers of Optuna as one would use them: over method and rank of every layer, the ends dense."""
    return [Searcher(name=name, layers=arena.layers, seeds=(), budget=budget, sampler=name) for name in samplers]


def pruned(arena: Arena, profile: Profile, pays: float, samplers: Sequence[str], budget: int) -> list[Searcher]:
    """The same over the options that our profile leaves."""
    layers = options_left(arena, profile)
    return [
        Searcher(name=f"{name}, our options", layers=layers, seeds=(), budget=budget, sampler=name, pays=pays)
        for name in samplers
    ]


def options_left(arena: Arena, profile: Profile) -> tuple[LayerRecord, ...]:
    """What `ranksearch run` searches: all options where the profile leaves none."""
    layers = undominated(arena.layers, profile, OBJECTIVES, noise_of(profile))
    return layers if any(layer.options for layer in layers) else arena.layers


# --- closed-form rules -----------------------------------------------------------------------------------------------


def rules(arena: Arena) -> list[Searcher]:
    """What knows neither latency nor data: at most twelve plans each, with spatial and with channel SVD in turns."""
    sweeps = (energy_sweep, evbmf_sweep, alds_sweep, log_energy_sweep)
    found = [_spectra(arena, family) for family in FAMILIES]
    seeds = [uniform_sweep(arena.layers)]
    seeds += [_in_turns([_thinned(sweep(arena.layers, spectra)) for spectra in found]) for sweep in sweeps]
    return [
        Searcher(name=name, layers=arena.layers, seeds=plans, budget=len(plans))
        for name, plans in zip(RULES, seeds, strict=True)
    ]


def _thinned(seeds: Sequence[SeedPlan]) -> Sequence[SeedPlan]:
    """Every second of them, say, where they are more than enough."""
    return seeds[:: -(-len(seeds) // MOST_PLANS)] if seeds else seeds


def _in_turns(families: Sequence[Sequence[SeedPlan]]) -> tuple[SeedPlan, ...]:
    """Equal plans once."""
    plans: dict[Plan, SeedPlan] = {}
    for seed in (seed for turn in zip_longest(*families) for seed in turn if seed is not None):
        plans.setdefault(seed.plan, seed)
    return tuple(plans.values())


def _spectra(arena: Arena, family: str) -> dict[str, Spectrum]:
    """Of this method, and of plain SVD where a layer is a matrix."""
    shapes = {layer.name: layer.shape for layer in arena.bench.layers}
    dense = unpacked(arena.bench.dense, {layer.name for layer in arena.layers if layer.options})
    found = {}
    for layer in arena.layers:
        offered = {option.choice.method for option in layer.options[:-1]}
        if not offered & {family, "svd"}:
            continue
        method, shape = METHODS[family if family in offered else "svd"], shapes[layer.name]
        assert shape is not None
        weight = shape.canonical(dense.get_submodule(layer.name).weight.detach())
        factors = method.decompose(weight, shape, method.max_ranks(shape))
        found[layer.name] = Spectrum.of(method.name, shape, factors["singular_values"].numpy())
    return found
