"""A small net's layers with every option that a space gives them, its spectra, and profiles drawn at random."""

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocate import Spectrum
from ranksearch.factorize import METHODS
from ranksearch.layers import FoundLayer, find_layers
from ranksearch.records import LayerRecord, OptionProfile, Profile
from ranksearch.space import SpaceConfig, layer_records


@pytest.fixture(scope="session")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 48, 1),
        nn.Conv2d(48, 24, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


@pytest.fixture(scope="session")
def found(net) -> tuple[FoundLayer, ...]:
    return find_layers(net, torch.zeros(1, 3, 16, 16))


@pytest.fixture(scope="session")
def layers(found) -> tuple[LayerRecord, ...]:
    config = SpaceConfig.model_validate({"name": "test", "ranks": {"multiple": 4, "kept": [0.03, 1.0]}})
    return layer_records(config, found)


def spectra_of(net, found, family: str) -> dict[str, Spectrum]:
    """As a profile makes them: from the decomposition itself."""
    spectra = {}
    for layer in found:
        method = METHODS["svd" if layer.shape.taps == 1 else family]
        factors = method.decompose(net.get_submodule(layer.name).weight, layer.shape, method.max_ranks(layer.shape))
        spectra[layer.name] = Spectrum.of(method.name, layer.shape, factors["singular_values"].numpy())
    return spectra


@pytest.fixture(scope="session", params=["spatial_svd", "channel_svd"])
def spectra(request, net, found) -> dict[str, Spectrum]:
    return spectra_of(net, found, request.param)


def drawn_profile(layers, seed: int, *, losses: bool = True) -> Profile:
    """Latencies and losses without any order, so that a rule which assumes one is found out."""
    rng = np.random.default_rng(seed)
    searched = [layer for layer in layers if layer.options]
    return Profile(
        identity={},
        dense_ms=1.0,
        options=tuple(
            OptionProfile(
                layer=layer.name,
                choice=option.choice,
                cost=option.cost,
                latency=float(rng.uniform(-0.9, 0.1)) / len(searched),
                error=float(rng.random()),
                loss=float(rng.exponential()) if losses else None,
            )
            for layer in searched
            for option in layer.options[:-1]
        ),
    )
