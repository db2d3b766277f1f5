"""The nets that benchmarks on CIFAR-10 share, trained once for a few minutes and cached.

`--data` names an npz file with x_train, y_train, x_test, y_test, as `ranksearch run --data npz:FILE` takes it.
"""

import copy
import os
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ranksearch.records import key_of
from ranksearch.tasks import Task, build_task

RECIPE = {"epochs": 4, "batch_size": 128, "learning_rate": 0.08, "momentum": 0.9, "weight_decay": 5e-4, "seed": 0}


def block(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Module):
    """(N, 3, 32, 32) -> logits (N, 10). `early_pool`: halves the picture behind the stem, for a third of the MACs."""

    def __init__(self, width: int = 32, num_classes: int = 10, *, early_pool: bool = False) -> None:
        super().__init__()
        w = width
        self.stem = block(3, w, pool=early_pool)
        self.layer1 = block(w, 2 * w, pool=True)
        self.res1 = nn.Sequential(block(2 * w, 2 * w), block(2 * w, 2 * w))
        self.layer2 = block(2 * w, 4 * w, pool=True)
        self.layer3 = block(4 * w, 8 * w, pool=True)
        self.res3 = nn.Sequential(block(8 * w, 8 * w), block(8 * w, 8 * w))
        self.hidden = nn.Linear(8 * w, 8 * w)  # so that the methods for linear layers have one, too
        self.head = nn.Linear(8 * w, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(self.stem(x))
        x = x + self.res1(x)
        x = self.layer3(self.layer2(x))
        x = x + self.res3(x)
        return self.head(functional.relu(self.hidden(x.amax((2, 3)))))


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut, as in He et al. 2016, section 4.2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet9() -> ResNet9:
    return ResNet9()


def small_resnet9() -> ResNet9:
    return ResNet9(early_pool=True)


def resnet26() -> nn.Sequential:
    """Three stages of four residual blocks, 16, 32 and 64 channels: many small layers."""
    widths = [16] * 5 + [32] * 4 + [64] * 4
    blocks = [Residual(*pair) for pair in pairwise(widths)]
    return nn.Sequential(block(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained_task(data: Path, net: str = "resnet9") -> Task:
    """The task on this data with the trained net, trained now where the cache has none for this data and recipe."""
    task = build_task(model=f"{Path(__file__)}:{net}", data=f"npz:{data}")
    model, stat = copy.deepcopy(task.model), data.stat()
    key = key_of(
        {**RECIPE, "form": str(model), "data": f"{stat.st_size} {stat.st_mtime_ns}", "torch": torch.__version__}
    )
    file = user_cache_path("ranksearch") / "benchmarks" / f"{net}-{key}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        train(model, task)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    return replace(task, model=model.eval())


def train(model: nn.Module, task: Task) -> None:
    """SGD with a one-cycle learning rate, bfloat16 where the CPU has it; in place."""
    assert task.augment is not None
    torch.manual_seed(RECIPE["seed"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    generator = torch.Generator().manual_seed(RECIPE["seed"])
    size, total = RECIPE["batch_size"], len(task.train)
    optimizer = torch.optim.SGD(
        model.parameters(), momentum=RECIPE["momentum"], weight_decay=RECIPE["weight_decay"], nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RECIPE["learning_rate"], total_steps=RECIPE["epochs"] * (total // size), pct_start=0.25
    )
    model.to(memory_format=torch.channels_last).train()
    for epoch in range(RECIPE["epochs"]):
        for indices in torch.randperm(total, generator=generator).split(size)[: total // size]:
            images, labels = task.train.batch(indices)
            images = task.augment(images, generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {RECIPE['epochs']}: loss {loss.item():.3f}", file=sys.stderr)
    model.to(memory_format=torch.contiguous_format)
