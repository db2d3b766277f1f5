"""torchvision's classification models, one of each family: full rank is the same function, the rest is named."""

from collections.abc import Callable
from functools import partial
from itertools import cycle

import pytest
import torch
from torch import nn
from torchvision import models

from ranksearch.attention import UnpackedAttention
from ranksearch.compress import compress, plan_cost
from ranksearch.factorize import KINDS, METHODS
from ranksearch.layers import FoundLayer, find_layers, total_macs
from ranksearch.records import Cost, LayerChoice, Plan

# Family: how a model of it is made, and the smallest picture that it takes. MaxVit is maxvit_t but for the picture; the
# vision transformer has two blocks.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (models.alexnet, 63),
    "convnext": (models.convnext_tiny, 32),
    "densenet": (models.densenet121, 32),
    "efficientnet": (models.efficientnet_b0, 32),
    "efficientnet_v2": (models.efficientnet_v2_s, 32),
    "googlenet": (partial(models.googlenet, init_weights=False), 32),
    "inception": (partial(models.inception_v3, init_weights=False), 75),
    "maxvit": (partial(models.MaxVit, (64, 64), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], 32, 0.2), 64),
    "mnasnet": (models.mnasnet0_5, 32),
    "mobilenet_v2": (models.mobilenet_v2, 32),
    "mobilenet_v3": (models.mobilenet_v3_small, 32),
    "regnet": (models.regnet_y_400mf, 32),
    "resnet": (models.resnet18, 32),
    "resnext": (models.resnext50_32x4d, 32),
    "shufflenet": (models.shufflenet_v2_x0_5, 32),
    "squeezenet": (models.squeezenet1_0, 32),
    "swin": (models.swin_t, 32),
    "swin_v2": (models.swin_v2_t, 32),
    "vgg": (models.vgg11, 32),
    "vit": (partial(models.VisionTransformer, 32, 8, 2, 4, 96, 192), 32),
}
NEVER = "never called in a forward pass; its weight may be used directly"
# What has a method but must stay: auxiliary classifiers in eval mode, and attention that reads weights of its layers.
LEFT_ALONE = {
    "googlenet": ("aux1.", "aux2."),
    "inception": ("AuxLogits.",),
    "swin": (".attn.qkv", ".attn.proj"),
    "swin_v2": (".attn.qkv", ".attn.proj"),
}
LARGEST_RANK = (
    1000  # of a full-rank decomposition here, whose time grows with its cube: not the 4096 of alexnet and vgg
)
EXACT = ("svd", "spatial_svd", "channel_svd", "tucker2")


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Random numbers in which every layer matters: some models start with zeros, or with scales of 1e-6."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
    return model.double()


@torch.no_grad()
def settled(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """In eval mode, with BatchNorm statistics of its own."""
    norms = [m.train() for m in model.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        model(x)
    return model.eval()


def pictures(num: int, size: int) -> torch.Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def takers(layer: FoundLayer) -> list[str]:
    return [n for n, m in METHODS.items() if layer.shape and m.refuses(layer.shape) is None]


def plan_of(layers: tuple[FoundLayer, ...], *, rank: int | None = None) -> Plan:
    """A method for one layer of every shape, at full rank or another; where several are exact, each in its turn."""
    choices, seen, turn = {}, set[str](), cycle(EXACT)
    for layer in layers:
        if layer.skipped or layer.shape is None or str(layer.shape) in seen:
            continue
        seen.add(str(layer.shape))
        full = {n: METHODS[n].max_ranks(layer.shape) for n in EXACT if n in takers(layer)}
        full = {n: ranks for n, ranks in full.items() if max(ranks) <= LARGEST_RANK}
        if full:
            name = next(n for n in turn if n in full)
            choices[layer.name] = LayerChoice(method=name, ranks=tuple(min(r, rank or r) for r in full[name]))
    return Plan(choices)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_is_the_same_function_and_what_is_left_alone_is_named(family):
    make, size = FAMILIES[family]
    model, x = settled(lively(make()), pictures(4, size)), pictures(1, size)
    layers = find_layers(model, x)
    weights = {n for n, m in model.named_modules() if isinstance(m, (*KINDS, nn.MultiheadAttention))}
    assert {v.name.replace(".in_proj", "") for v in layers} == weights
    for layer in layers:
        left = any(part in layer.name for part in LEFT_ALONE.get(family, ()))
        assert layer.skipped == (NEVER if left else None), layer.name
        assert takers(layer), layer.name

    with torch.no_grad():
        expected = model(x)
        plan = plan_of(layers)
        small = compress(model, plan, layers=layers)
        torch.testing.assert_close(small(x), expected, rtol=1e-7, atol=1e-9 * expected.abs().max().item())
        for name in list(plan)[:: max(1, len(plan) // 4)]:  # what it computes does depend on them
            first = next(small.get_submodule(name).parameters())
            kept = first.clone()
            first.copy_(kept.flip(0))
            assert (small(x) - expected).norm() > 1e-4 * expected.norm(), name
            first.copy_(kept)


def cost(model: nn.Module, x: torch.Tensor) -> Cost:
    return Cost(parameters=sum(p.numel() for p in model.parameters()), macs=total_macs(model, x))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.GELU(), nn.Linear(64, 48), nn.Linear(48, 10))


@pytest.mark.parametrize("make", [perceptron, FAMILIES["vit"][0]], ids=["mlp", "vit"])
def test_networks_without_convolutions_compress_and_learn(make):
    model, x = lively(make()).eval(), pictures(2, 32)
    layers = find_layers(model, x[:1])
    plan = plan_of(layers, rank=6)
    small = compress(model, plan, layers=layers)
    assert cost(small, x[:1]) == plan_cost(layers, plan, cost(model, x[:1]))
    assert cost(small, x[:1]).parameters < cost(model, x[:1]).parameters
    small(x).square().sum().backward()
    assert small(x).isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in small.parameters())


def test_all_attention_of_a_vision_transformer_is_replaced():
    model = FAMILIES["vit"][0]()
    layers = find_layers(model, torch.zeros(1, 3, 32, 32))
    plan = Plan({v.name: LayerChoice.parse("svd:8") for v in layers if "self_attention" in v.name})
    small = compress(model, plan, layers=layers)
    assert sum(isinstance(m, UnpackedAttention) for m in small.modules()) == 2
    assert not any(isinstance(m, nn.MultiheadAttention) for m in small.modules())
