"""The spaces of the published systems: each fits its networks, and runs by one command to a front."""

import json
import re

import numpy as np
import pytest
import torch

from ranksearch import nets
from ranksearch.cli import main
from ranksearch.data_folder import data_folder
from ranksearch.factorize import METHODS
from ranksearch.layers import find_layers
from ranksearch.settings import Settings
from ranksearch.space import layer_records, load_space
from ranksearch.tasks.trained import TrainRecipe

SOURCES = {
    "tensorization": ("garipov_conv", "garipov_conv_fc"),
    "rank1": ("plain", "resnet20", "mobilenet", "flattened"),
    "linearconv": ("vgg11", "allconv", "resnet18"),
}
METHODS_OF = {
    "tensorization": {"tt_conv", "tt_conv_naive", "tt_linear"},
    "rank1": {"rank1", "separable", "svd"},
    "linearconv": {"linearconv", "linearconv_lowrank", "linearconv_sparse"},
}
PAIRS = [(space, net) for space, names in SOURCES.items() for net in names]


def options_of(space: str, net: str):
    model = getattr(nets, net)()
    return layer_records(load_space(space), find_layers(model, torch.zeros(1, 3, 32, 32)))


def method_of(option) -> str:
    return option.choice.method


@pytest.mark.parametrize(("space", "net"), PAIRS)
def test_a_space_has_options_on_its_nets(space, net):
    """Every layer that one of the methods takes is searched, but the first and the last where the space says so."""
    config, layers = load_space(space), options_of(space, net)
    found = {layer.name: layer.shape for layer in find_layers(getattr(nets, net)(), torch.zeros(1, 3, 32, 32))}
    ends = {"@first": layers[0].name, "@last": layers[-1].name}
    dense = {ends[pattern] for pattern in config.dense}
    for layer in layers:
        shape = found[layer.name]
        assert shape is not None
        taken = any(METHODS[method].refuses(shape) is None for method in config.methods)
        assert bool(layer.options) == (taken and layer.name not in dense)
        assert len(layer.options) != 2
        for option in layer.options[:-1]:
            assert option.cost.parameters < layer.cost.parameters
            assert option.cost.macs <= layer.cost.macs


def test_every_method_of_a_space_is_an_option_on_one_of_its_nets():
    for space, names in SOURCES.items():
        offered = {method_of(o) for net in names for layer in options_of(space, net) for o in layer.options[:-1]}
        assert offered == set(load_space(space).methods) == METHODS_OF[space]


def test_the_sources_choices_are_among_the_options():
    """One term; half of the filters. (Those of the tensor trains, by hand, are not on the diagonal.)"""
    for layer in options_of("rank1", "plain")[1:-1]:
        assert {"rank1:1", "separable:1"} <= {str(o.choice) for o in layer.options}
    for layer in options_of("linearconv", "vgg11")[1:-1]:
        kept = [o.cost.parameters / layer.cost.parameters for o in layer.options if method_of(o) == "linearconv"]
        assert min(abs(share - 0.54) for share in kept) < 0.1


@pytest.mark.parametrize("space", SOURCES)
def test_what_a_space_says_of_itself_is_so(space):
    """Names in its commands are networks, its recipe for --train can be read."""
    text = (data_folder("search_spaces") / f"{space}.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"ranksearch\.nets:(\w+)", text)) == set(SOURCES[space])
    assert f"--space {space}" in text
    for recipe in re.findall(r"--train (\S*=[^\s:)]+)", text):
        assert TrainRecipe.parse(recipe).epochs >= 10
    config = load_space(space)
    assert config.name == space
    assert set(config.objectives) == {"latency", "accuracy", "parameters"}


# --- by one command --------------------------------------------------------------------------------------------------

SLIM = """
from ranksearch import nets

def garipov_conv(num_classes, in_channels):
    return nets.garipov_conv(num_classes, in_channels, width=0.25)

def plain(num_classes, in_channels):
    return nets.plain(num_classes, in_channels, width=0.125)

def vgg11(num_classes, in_channels):
    return nets.vgg11(num_classes, in_channels, width=0.0625)
"""

TOML = """
executor = "inline"
budget = 10
study = "one"

[finetune]
steps = 2
batch_size = 16
threads = 1
precision = "bfloat16"
layout = "contiguous"
calibration_examples = 32

[measure]
batch_size = 1
max_seconds = 0.02
min_blocks = 2
iterations_per_block = 2
"""


def striped(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures with stripes across or down, or squares of both, in noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=count)
    across = np.where(np.arange(32) // 4 % 2, 30, -30)[:, None] * (labels != 0)[:, None, None]
    down = np.where(np.arange(32) // 4 % 2, 30, -30)[None, :] * (labels != 1)[:, None, None]
    noise = generator.normal(128, 120, (count, 32, 32))
    return (noise + across + down).clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "slim.py").write_text(SLIM)
    (tmp_path / "ranksearch.toml").write_text(TOML)
    (x_train, y_train), (x_test, y_test) = striped(1200, 0), striped(64, 1)
    np.savez(tmp_path / "striped.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    return tmp_path


@pytest.mark.parametrize(
    ("space", "net"), [("tensorization", "garipov_conv"), ("rank1", "plain"), ("linearconv", "vgg11")]
)
def test_one_command_trains_searches_and_ends_with_a_front(project, capsys, space, net):
    words = ["--model", f"slim.py:{net}", "--data", "npz:striped.npz", "--space", space]
    words += ["--train", "epochs=1,batch_size=16", "--format", "json"]
    assert main(["run", *words]) == 0
    printed = capsys.readouterr()
    front = json.loads(printed.out)
    assert "10/10" in printed.err
    assert front[0]["origin"] == "dense"
    assert front[0]["accuracy"] > 0.5
    assert len(front) >= 3
    assert min(row["parameters"] for row in front) < 0.7 * front[0]["parameters"]
    task = Settings.read(
        {"model": f"slim.py:{net}", "data": "npz:striped.npz", "train": "epochs=1,batch_size=16"}
    ).task()
    assert task.example_input.shape == (1, 1, 32, 32)
    assert len(list((project / "cache").rglob("trained-*.safetensors"))) == 1
    smallest = min(front, key=lambda row: row["parameters"])
    assert main(["export", str(smallest["trial"]), "--output", "small"]) == 0
    assert (project / "small" / "model.safetensors").is_file()
