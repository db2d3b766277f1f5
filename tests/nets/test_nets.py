"""The networks against published parameter counts, torchvision's definitions, and each other."""

import math
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from ranksearch import nets
from ranksearch.compress import compress
from ranksearch.factorize import METHODS
from ranksearch.layers import find_layers, list_layers
from ranksearch.records import LayerChoice

EVERY = pytest.mark.parametrize("name", nets.__all__)
IMAGE = torch.zeros(1, 3, 32, 32)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("garipov_conv", 557_258),  # published: 557 k
        ("garipov_conv_fc", 13_934_538),  # published: 14 M
        ("vgg11", 9_231_114),  # published: 9.23 M
        ("allconv", 1_369_738),  # published: 1.37 M
        ("resnet18", 11_173_962),  # published: 11.17 M
        ("resnet20", 272_474),  # published: 0.27 M, with shortcuts that have no parameters
        ("mobilenet", 3_217_226),  # published: 4.2 M, of which 1.025 M are for 1000 classes
        ("plain", 1_739_210),
        ("flattened", 205_642),
    ],
)
def test_parameters(name, parameters):
    with torch.device("meta"):
        assert count(getattr(nets, name)()) == parameters


@EVERY
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1)])
def test_every_net_takes_small_pictures_and_gives_logits(name, side, channels):
    if (name, side) == ("garipov_conv_fc", 28):
        pytest.skip("its first linear layer has the size of 32×32 pictures")
    torch.manual_seed(0)
    model = getattr(nets, name)(num_classes=7, in_channels=channels, width=0.25)  # BatchNorm sees this batch
    pictures = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))
    logits = model(pictures)
    assert logits.shape == (3, 7)
    assert logits.std(0).mean() > 0.005  # the signal arrives
    last = list_layers(model)[-1]
    assert last.shape is not None
    assert last.shape.out_channels == 7


@EVERY
def test_a_share_of_the_width_is_that_share_of_every_hidden_layer(name):
    with torch.device("meta"):
        full, half = (list_layers(getattr(nets, name)(width=w)) for w in (1.0, 0.5))
    assert [layer.name for layer in full] == [layer.name for layer in half]
    for whole, part in zip(full[:-1], half[:-1], strict=True):
        assert whole.shape is not None
        assert part.shape is not None
        assert part.shape.out_channels == pytest.approx(whole.shape.out_channels / 2, abs=4)


# --- against torchvision ---------------------------------------------------------------------------------------------


def with_state_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """`model` with `other`'s numbers, in order."""
    values = iter(other.state_dict().values())
    model.load_state_dict({name: next(values) for name in model.state_dict()})
    return model.eval()


def lively(model: nn.Module) -> nn.Module:
    """BatchNorm with statistics and parameters that are no identity."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


@torch.inference_mode()
def test_resnet18_is_torchvisions_but_for_the_stem():
    torch.manual_seed(0)
    ours = lively(nets.resnet18())
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(with_state_of(theirs, ours)(x), ours(x))


@torch.inference_mode()
def test_vgg11_has_torchvisions_convolutions():
    torch.manual_seed(0)
    ours = lively(nets.vgg11())
    theirs = with_state_of(torchvision.models.vgg11_bn(init_weights=False).features, ours[:-1])
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs(x).flatten(1), ours[:-1](x))


def test_mobilenet_alternates_depthwise_and_pointwise():
    with torch.device("meta"):
        layers = [layer.shape for layer in list_layers(nets.mobilenet())][1:-1]
    assert len(layers) == 26
    for depthwise, pointwise in zip(layers[::2], layers[1::2], strict=True):
        assert depthwise is not None
        assert pointwise is not None
        assert (depthwise.is_depthwise, depthwise.kernel_size, depthwise.bias) == (True, (3, 3), False)
        assert (pointwise.groups, pointwise.kernel_size, pointwise.stride) == (1, (1, 1), (1, 1))
        assert pointwise.in_channels == depthwise.out_channels


# --- against our methods ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_flattened_net_is_the_form_of_the_plain_one_with_filters_of_rank_one():
    torch.manual_seed(0)
    dense = lively(nets.plain(width=0.25))
    convolutions = [layer.name for layer in list_layers(dense) if layer.kind == "Conv2d"][1:]
    rank1 = compress(dense, {name: LayerChoice(method="rank1", ranks=(1,)) for name in convolutions})
    flattened = with_state_of(nets.flattened(width=0.25), rank1)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(flattened(x), rank1(x))
    assert count(flattened) == count(rank1) < count(dense) / 4


CONV = {  # layer -> (input modes, output modes), as published
    "1.0": ((4, 4, 4), (4, 4, 4)),
    "3.0": ((4, 4, 4), (4, 8, 4)),
    "4.0": ((4, 8, 4), (4, 8, 4)),
    "6.0": ((4, 8, 4), (4, 8, 4)),
    "7.0": ((4, 8, 4), (4, 8, 4)),
}
LINEAR = {"9": ((8, 8, 8, 16), (4, 6, 8, 8)), "12": ((4, 6, 8, 8), (4, 4, 4, 8))}
RANKS = {"1.0": (22, 20, 20, 1), "3.0": (27, 22, 22, 1), "4.0": (23, 23, 23, 1), "6.0": (23, 23, 23, 1)}
RANKS["7.0"] = RANKS["6.0"]


def tt_conv_parameters(modes, ranks) -> int:
    """kh·kw·r0 + Σ Ci·Si·r(i-1)·ri of a 3×3 kernel, whether the ranks are useful or not."""
    cores = zip(pairwise(ranks), *modes, strict=True)
    return 9 * ranks[0] + sum(left * right * c * s for (left, right), c, s in cores)


def tt_linear_parameters(modes, rank) -> int:
    ranks = (1, rank, rank, rank, 1)
    return sum(left * right * n * m for (left, right), n, m in zip(pairwise(ranks), *modes, strict=True))


def published(model: nn.Module, replaced: dict[str, int]) -> tuple[float, float]:
    """The compression where these layers have so many weights: of all parameters, of all weights."""
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    dense = (model.get_submodule(name).weight.numel() for name in replaced)  # type: ignore[union-attr, operator]
    saved = sum(dense) - sum(replaced.values())
    return count(model) / (count(model) - saved), weights / (weights - saved)


def clamped(model: nn.Module, ranks: dict[str, tuple[int, ...]]) -> float:
    """The compression where every rank is at most what is useful: the same function from fewer numbers."""
    plan = {}
    for layer in find_layers(model, IMAGE):
        if layer.name in ranks and layer.shape is not None:
            method = METHODS["tt_conv" if layer.shape.is_convolution else "tt_linear"]
            largest = method.max_ranks(layer.shape)
            wanted = tuple(map(min, ranks[layer.name][: len(largest)], largest))
            plan[layer.name] = LayerChoice(method=method.name, ranks=wanted)
    assert len(plan) == len(ranks)
    return count(model) / count(compress(model, plan, init="random"))


def test_published_compression_of_tt_conv():
    model = nets.garipov_conv()
    replaced = {name: tt_conv_parameters(modes, RANKS[name]) for name, modes in CONV.items()}
    assert published(model, replaced) == pytest.approx((3.23, 3.25), abs=0.005)  # the table's, the weights' alone
    assert clamped(model, RANKS) == pytest.approx(5.11, abs=0.005)


def test_published_compression_of_tt_conv_and_tt_linear():
    model = nets.garipov_conv_fc()
    conv, linear = dict.fromkeys(CONV, (16, 16, 16, 1)), {"9": 40, "12": 30}
    replaced = {name: tt_conv_parameters(modes, conv[name]) for name, modes in CONV.items()}
    replaced |= {name: tt_linear_parameters(modes, linear[name]) for name, modes in LINEAR.items()}
    assert published(model, replaced) == pytest.approx((41.65, 42.32), abs=0.005)
    ranks = conv | {name: (rank,) * 3 for name, rank in linear.items()}
    assert clamped(model, ranks) == pytest.approx(46.55, abs=0.005)


@pytest.mark.parametrize("name", [*CONV, *LINEAR])
def test_our_modes_are_the_published_ones(name):
    model = nets.garipov_conv_fc()
    shape = next(layer.shape for layer in list_layers(model) if layer.name == name)
    assert shape is not None
    modes = METHODS["tt_conv" if shape.is_convolution else "tt_linear"].modes(shape)  # type: ignore[attr-defined]
    assert (modes.inputs, modes.outputs) == (CONV | LINEAR)[name]
    assert math.prod(modes.sizes) == model.get_submodule(name).weight.numel()  # type: ignore[union-attr, operator]
