"""Residual networks for small pictures (He, Zhang, Ren, Sun 2016, arXiv 1512.03385).

`resnet18`: four stages of two blocks, 64 to 512 channels, 11,173,962 parameters, as LinearConv has it (arXiv
1907.11432). `resnet20`: section 4.2's three stages of three blocks, 16 to 64 channels, the ResNet-like net that rank-1
filters are tried on. Where channels change the shortcut is a 1×1 convolution.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from ranksearch.nets.block import conv_block, widened

__all__ = ["resnet18", "resnet20"]


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut; twice the channels come at half the size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    return _resnet((64, 128, 256, 512), 2, num_classes, in_channels, width)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    return _resnet((16, 32, 64), 3, num_classes, in_channels, width)


def _resnet(stages: tuple[int, ...], blocks: int, num_classes: int, in_channels: int, width: float) -> nn.Sequential:
    channels = [widened(c, width) for c in stages]
    layers = [conv_block(in_channels, channels[0])]
    for stage, (inputs, outputs) in enumerate(pairwise([channels[0], *channels])):
        layers += [
            Residual(inputs, outputs, 2 if stage else 1),
            *(Residual(outputs, outputs, 1) for _ in range(blocks - 1)),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
