"""MobileNet (V1) for small pictures (Howard et al. 2017, arXiv 1704.04861, table 1).

A 3×3 convolution, then thirteen blocks, each 3×3 depthwise and 1×1, BatchNorm and ReLU after either. The stem has
stride 1 here, so that 32×32 end as 2×2: 3,217,226 parameters. Each block is what `separable` with one term makes of a
3×3 convolution, with BatchNorm and ReLU between the two factors.
"""

from itertools import pairwise

from torch import nn

from ranksearch.nets.block import conv_block, widened

__all__ = ["mobilenet"]

CHANNELS = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
HALVING = (2, 4, 6, 12)  # places in CHANNELS that come at half the size


def mobilenet(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    channels = [widened(c, width) for c in CHANNELS]
    layers = [conv_block(in_channels, channels[0])]
    for place, (inputs, outputs) in enumerate(pairwise(channels), start=1):
        stride = 2 if place in HALVING else 1
        layers += [conv_block(inputs, inputs, stride=stride, groups=inputs), conv_block(inputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))
