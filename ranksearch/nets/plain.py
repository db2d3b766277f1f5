"""A plain network of 3×3 convolutions, and the same one flattened: what rank-1 filters are compared with.

`plain` is the dense start of a rank-1 CNN (Kim, Yoon, Jeong, Lee 2018, arXiv 1808.04303): method `rank1` with one term
turns every convolution behind the first into 1×1, k×1, 1×k. `flattened` is the network that has these 1-D convolutions
from the beginning (Jin, Dundar, Culurciello 2014, Flattened convolutional neural networks, arXiv 1412.5474): lateral,
vertical, horizontal, nothing between them, the bias (here BatchNorm's shift) behind the last. Both are one function of
as many numbers, F·(C + 3 + 3) a layer; what differs is training. The flattened one is trained as it stands, three
layers deep for each convolution; the rank-1 CNN's gradient steps are taken by the composed filters, which are then
brought back to rank 1.

Seven convolutions (64, 64, 128, 128, 256, 256, 256), max pooling behind the second and the fourth, average pooling, one
linear layer: 1,739,210 parameters. The source gives no code; these widths are ours.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from ranksearch.nets.block import conv_block, widened

__all__ = ["flattened", "plain"]

CHANNELS = (64, 64, 128, 128, 256, 256, 256)
POOLED = (1, 3)

Block = Callable[[int, int], nn.Module]


def plain(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    return _network(conv_block, num_classes, in_channels, width)


def flattened(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    return _network(_flattened_block, num_classes, in_channels, width)


def _network(block: Block, num_classes: int, in_channels: int, width: float) -> nn.Sequential:
    """The first convolution is a dense one in both: of three channels there is nothing to save."""
    channels = [widened(c, width) for c in CHANNELS]
    layers: list[nn.Module] = [conv_block(in_channels, channels[0])]
    for place, (inputs, outputs) in enumerate(pairwise(channels), start=1):
        layers += [block(inputs, outputs), *([nn.MaxPool2d(2)] if place in POOLED else [])]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))


def _flattened_block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.Conv2d(outputs, outputs, (3, 1), padding=(1, 0), groups=outputs, bias=False),
        nn.Conv2d(outputs, outputs, (1, 3), padding=(0, 1), groups=outputs, bias=False),
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
