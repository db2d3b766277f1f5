"""The nets that searches meet on: each small enough for hundreds of trials on two cores, trained once for minutes."""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import cifar
from ranksearch import nets
from ranksearch.tasks import Task, build_task

__all__ = ["NETS", "SMOKE", "Net"]


class Block(nn.Module):
    """A transformer's block with the normalisation first (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """(N, in_channels, 32, 32) -> logits (N, num_classes), of the mean over 64 patches of 4×4."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 96, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).mT + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def vit(num_classes: int, in_channels: int) -> ViT:
    return ViT(num_classes, in_channels)


def half_vgg11(num_classes: int, in_channels: int) -> nn.Module:
    return nets.vgg11(num_classes, in_channels, width=0.5)


def half_resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """With a pool behind the stem, as the net for large pictures has it: a quarter of the MACs."""
    stem, *rest = nets.resnet18(num_classes, in_channels, width=0.5)
    return nn.Sequential(stem, nn.MaxPool2d(2), *rest)


@dataclass(frozen=True, kw_only=True)
class Net:
    """`task`: of the npz file of CIFAR-10, in whose folder torchvision's FashionMNIST lies or is fetched to.
    budget: trials of every searcher; `long_budget`: of ours with the first seed. samplers: of Optuna, on all options;
    the `paired` ones with every seed, others, the rules but uniform, and the `pruned` ones, on our options, with the
    first alone.
    """

    title: str
    task: Callable[[Path], Task]
    seeds: int = 1
    budget: int = 30
    long_budget: int = 30
    samplers: tuple[str, ...] = ("random", "nsga2", "tpe", "gp")
    paired: tuple[str, ...] = ("tpe",)
    pruned: tuple[str, ...] = ("tpe",)
    is_unseen: bool = False


def trained(model: str, recipe: str, data: str = "npz:{file}") -> Callable[[Path], Task]:
    return lambda file: build_task(model=model, data=data.format(file=file, folder=file.parent), train=recipe)


NETS: Mapping[str, Net] = types.MappingProxyType(
    {
        "resnet9": Net(
            title="ResNet-9 with strides, 24 channels, CIFAR-10",
            task=lambda file: cifar.trained_task(file, "small_resnet9", epochs=5),
            seeds=3,
            budget=60,
            long_budget=200,
            paired=("tpe", "nsga2"),
            pruned=("tpe", "nsga2"),
        ),
        "vgg11": Net(
            title="VGG-11-BN at half the width, CIFAR-10",
            task=trained(f"{__name__}:half_vgg11", "epochs=3"),
            samplers=("tpe", "nsga2"),
            pruned=(),
        ),
        "resnet18": Net(
            title="ResNet-18 at half the width, a pool behind the stem, Fashion-MNIST",
            task=trained(f"{__name__}:half_resnet18", "epochs=3", "fashion_mnist:{folder}"),
            samplers=("tpe", "nsga2"),
            pruned=(),
        ),
        "vit": Net(
            title="ViT of 4 blocks, width 96, patches of 4×4, CIFAR-10",
            task=trained(f"{__name__}:vit", "epochs=4,optimizer=adam,weight_decay=0,learning_rate=0.002"),
            samplers=("tpe", "nsga2"),
            pruned=(),
        ),
        "unseen": Net(
            title="torchvision's regnet_x_400mf at 32², CIFAR-10",
            task=trained("torchvision:regnet_x_400mf", "epochs=3"),
            budget=60,
            long_budget=60,
            samplers=(),
            pruned=(),
            is_unseen=True,
        ),
    }
)

SMOKE: Mapping[str, Any] = types.MappingProxyType({"seeds": 1, "budget": 6, "long_budget": 8})
