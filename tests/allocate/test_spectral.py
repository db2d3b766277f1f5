"""The rules that know singular values alone, on real decompositions of a small net."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ranksearch.allocate import (
    Spectrum,
    Table,
    alds,
    alds_sweep,
    energy,
    energy_sweep,
    evbmf,
    evbmf_sweep,
    log_energy_sweep,
    uniform_sweep,
)
from ranksearch.allocate.spectrum import spectral_table
from ranksearch.allocate.uniform import UNIFORM_FRACTIONS
from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS
from ranksearch.records import DENSE, Cost, LayerChoice, LayerRecord, Option, Plan
from ranksearch.space import SearchSpace
from tests.allocate.conftest import drawn_profile

SWEEPS = (energy_sweep, evbmf_sweep, alds_sweep, log_energy_sweep)


def searched(layers):
    return [layer for layer in layers if layer.options]


def ranks_of(layer, spectra):
    """Of the options that are of the layer's spectrum: rank -> MACs."""
    return {o.choice.ranks[0]: o.cost.macs for o in layer.options if o.choice.method == spectra[layer.name].method}


def macs(layers, plan) -> int:
    return sum(
        next(o.cost.macs for o in layer.options if o.choice == plan.get(layer.name, DENSE))
        for layer in searched(layers)
    )


@pytest.mark.parametrize("rule", SWEEPS, ids=lambda rule: rule.__name__)
def test_sweeps_are_of_the_layers_own_options_named_and_distinct(rule, layers, spectra):
    seeds = rule(layers, spectra)
    assert len({seed.plan for seed in seeds}) == len({seed.origin for seed in seeds}) == len(seeds) >= 3
    for seed in seeds:
        assert seed.plan
        SearchSpace(layers).indices(seed.plan)  # raises on a choice that is no option
        name = rule.__name__.removesuffix("_sweep").replace("_", "-")
        assert seed.origin.startswith(f"seed:{name}-{spectra['1'].method}-")
    assert sorted([macs(layers, seed.plan) for seed in seeds], reverse=True) == [macs(layers, s.plan) for s in seeds]


@pytest.mark.parametrize("rule", [*SWEEPS, lambda layers, _: uniform_sweep(layers)])
def test_a_net_with_nothing_to_search_has_no_seeds(rule, layers, spectra):
    assert rule([replace(layer, options=()) for layer in layers], spectra) == ()


@pytest.mark.parametrize("rule", SWEEPS, ids=lambda rule: rule.__name__)
def test_a_layer_without_a_spectrum_stays_dense(rule, layers, spectra):
    some = {name: spectrum for name, spectrum in spectra.items() if name != "4"}
    assert all("4" not in seed.plan for seed in rule(layers, some))


# --- what a rank keeps ------------------------------------------------------------------------------------------------


def test_the_energy_kept_is_what_the_method_errs_less(layers, spectra, net, found):
    for layer in found:
        spectrum = spectra[layer.name]
        method = METHODS[spectrum.method]
        factors = method.decompose(net.get_submodule(layer.name).weight, layer.shape, method.max_ranks(layer.shape))
        for rank in (1, 2, *method.max_ranks(layer.shape)):
            assert 1 - spectrum.energy_kept(rank) == pytest.approx(method.error(factors, (rank,)) ** 2, abs=1e-6)


def test_the_longest_side_is_that_of_the_matrix_the_method_splits(spectra, found):
    for layer in found:
        (outputs, inputs), kernel = layer.shape.group_channels, layer.shape.kernel_size
        sides = (inputs * layer.shape.taps, outputs)
        if spectra[layer.name].method == "spatial_svd":
            sides = (inputs * kernel[0], outputs * kernel[1])
        assert spectra[layer.name].longest == max(sides)
        assert spectra[layer.name].values.shape == (layer.shape.groups, min(sides))


def test_the_operator_error_is_that_of_the_worst_group():
    weights = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weights, full_matrices=False)
    spectrum = Spectrum(method="svd", values=S.numpy(), longest=7)
    for rank in range(6):
        cut = weights - (U[:, :, :rank] * S[:, None, :rank]) @ Vh[:, :rank]
        expected = (torch.linalg.matrix_norm(cut, 2) / torch.linalg.matrix_norm(weights, 2)).max()
        assert spectrum.operator_error(rank) == pytest.approx(float(expected), abs=1e-12)


def test_a_weight_of_zeros_loses_nothing():
    spectrum = Spectrum(method="svd", values=np.zeros((1, 4)), longest=4)
    assert spectrum.energy_kept(1) == 1
    assert spectrum.operator_error(1) == 0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.95, 1.01])
def test_the_energy_rule_takes_the_smallest_rank_that_keeps_its_share(share, layers, spectra):
    plan = energy(layers, spectra, share)
    for layer in searched(layers):
        squares = spectra[layer.name].values.astype(float) ** 2
        enough = [r for r in ranks_of(layer, spectra) if squares[:, :r].sum() >= share * squares.sum()]
        expected = {(spectra[layer.name].method, (min(enough),))} if enough else set()
        assert {(c.method, c.ranks) for name, c in plan.items() if name == layer.name} == expected


# --- variational Bayes: the rank itself is tested beside; here what is made of it -------------------------------------


@pytest.mark.parametrize("planted", [4, 8, 12])
def test_evbmf_takes_the_option_at_or_above_its_rank(planted, layers, spectra):
    rng = np.random.default_rng(planted)
    made = {}
    for name, spectrum in spectra.items():
        groups, rank = spectrum.values.shape
        noise = rng.normal(size=(groups, rank, spectrum.longest))
        true = min(planted, rank // 3)
        signal = 9 * rng.normal(size=(groups, rank, true)) @ rng.normal(size=(groups, true, spectrum.longest))
        signal[1:] = 0  # of the groups the first alone has a rank
        values = np.linalg.svd(signal + noise, compute_uv=False)
        made[name] = replace(spectrum, values=values), true
    plan = evbmf(layers, {name: spectrum for name, (spectrum, _) in made.items()})
    for layer in searched(layers):
        enough = [r for r in ranks_of(layer, spectra) if r >= made[layer.name][1]]
        assert plan[layer.name].ranks == (min(enough),)


def test_weakening_goes_from_evbmf_to_full_rank(layers, spectra):
    plans = [evbmf(layers, spectra, weakening) for weakening in (1.0, 0.7, 0.3)]
    for layer in searched(layers):
        full = spectra[layer.name].values.shape[1]
        ranks = [plan[layer.name].ranks[0] if layer.name in plan else full for plan in plans]
        assert ranks == sorted(ranks)
    nothing_cut = evbmf(layers, spectra, 0.0)
    assert all(choice.ranks[0] == spectra[name].values.shape[1] for name, choice in nothing_cut.items())


# --- budgets ----------------------------------------------------------------------------------------------------------


def every_plan(table):
    return itertools.product(*(range(len(costs)) for costs in table.costs))


@pytest.mark.parametrize("seed", range(12))
def test_alds_minimises_the_largest_error(seed, layers):
    rng = np.random.default_rng(seed)
    some = searched(layers)[:3]
    table = Table.of(some, drawn_profile(some, seed), cost=["latency", "macs", "bytes"][seed % 3])
    plans = [
        (table.cost(plan), max(e[i] for e, i in zip(table.losses, plan, strict=True))) for plan in every_plan(table)
    ]
    least = min(cost for cost, _ in plans)
    for budget in (least, *rng.uniform(least, max(cost for cost, _ in plans), 5)):
        chosen = SearchSpace(tuple(some)).indices(alds(table, budget))
        indices = [chosen[layer.name] for layer in some]
        assert table.cost(indices) <= budget
        error = max(e[i] for e, i in zip(table.losses, indices, strict=True))
        assert error == min(worst for cost, worst in plans if cost <= budget)
    with pytest.raises(SpaceError, match=r"the cheapest plan costs"):
        alds(table, least - 1e-6)


def test_alds_on_a_layer_that_has_no_option_without_an_error():
    layers = (made_layer("a"), made_layer("b"))
    costs = np.array([1.0, 2.0])
    table = Table(layers=layers, costs=(costs, costs), losses=(np.array([0.5, 0.2]), np.array([0.1, 0.0])), whole=4.0)
    small = layers[0].options[0].choice
    assert alds(table, 2.0) == Plan({"a": small, "b": small})
    assert alds(table, 4.0) == Plan({"b": small})  # a cannot err less than 0.2, and b need not


def made_layer(name):
    cost = Cost(parameters=2, macs=2)
    small = Option(choice=LayerChoice(method="svd", ranks=(1,)), cost=Cost(parameters=1, macs=1))
    return LayerRecord(
        name=name, kind="Linear", shape="1→1", cost=cost, options=(small, Option(choice=DENSE, cost=cost))
    )


@pytest.mark.parametrize("rule", [alds_sweep, log_energy_sweep], ids=lambda rule: rule.__name__)
def test_shares_of_the_macs_are_kept_to_or_else_the_least_is_taken(rule, layers, spectra):
    dense = sum(layer.cost.macs for layer in searched(layers))
    least = sum(min(ranks_of(layer, spectra).values()) for layer in searched(layers))
    for seed in rule(layers, spectra):
        share = float(seed.origin.rpartition("-")[2])
        assert share in UNIFORM_FRACTIONS
        assert macs(layers, seed.plan) <= max(share * dense, least)


def test_log_energy_maximises_the_product_of_the_energies(layers, spectra):
    table = spectral_table(layers, spectra, Spectrum.operator_error)
    few = [{**ranks_of(layer, spectra), None: layer.cost.macs} for layer in searched(layers)]
    names = [layer.name for layer in searched(layers)]

    def product(ranks) -> float:
        return math.prod(1.0 if r is None else spectra[n].energy_kept(r) for n, r in zip(names, ranks, strict=True))

    plans = [
        (sum(of[r] for of, r in zip(few, ranks, strict=True)), product(ranks)) for ranks in itertools.product(*few)
    ]
    for seed in log_energy_sweep(layers, spectra):
        budget = table.budget(float(seed.origin.rpartition("-")[2]))
        slack = 1e-3 * table.budget(1.0)
        found = product([seed.plan[n].ranks[0] if n in seed.plan else None for n in names])
        reachable = [p for cost, p in plans if cost <= budget - slack]
        assert not reachable or found >= max(reachable) - 1e-12
