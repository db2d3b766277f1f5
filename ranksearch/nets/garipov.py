"""The two networks of "Ultimate Tensorization" (Garipov, Podoprikhin, Novikov, Vetrov 2016, arXiv 1611.03214).

Six 3×3 convolutions in three pairs, 3×3 max pooling with stride 2 between the pairs, BatchNorm and ReLU after every
layer but the classifier, no biases before BatchNorm. In `garipov_conv` the last pair is not padded, and average pooling
and one linear layer follow (557,258 parameters, of which the convolutions hold 99.5 %); in `garipov_conv_fc` it is
padded, and 8192 → 1536 → 512 → classes follow (13,934,538 parameters, of which the linear layers hold 96 %).
"""

from itertools import pairwise

from torch import nn

from ranksearch.nets.block import conv_block, widened

__all__ = ["garipov_conv", "garipov_conv_fc"]

SIDE = 8  # of the pictures behind two poolings of 32×32


def garipov_conv(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    _, last = _widths(width)
    return nn.Sequential(
        *_convolutions(in_channels, width, last_padding=0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, num_classes),
    )


def garipov_conv_fc(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32) -> logits (N, num_classes)."""
    features = _widths(width)[1] * SIDE**2, widened(1536, width), widened(512, width)
    return nn.Sequential(
        *_convolutions(in_channels, width, last_padding=1),
        nn.Flatten(),
        *(part for inputs, outputs in pairwise(features) for part in _linear(inputs, outputs)),
        nn.Linear(features[-1], num_classes),
    )


def _widths(width: float) -> tuple[int, int]:
    return widened(64, width), widened(128, width)


def _convolutions(in_channels: int, width: float, *, last_padding: int) -> list[nn.Module]:
    first, last = _widths(width)
    return [
        conv_block(in_channels, first),
        conv_block(first, first),
        nn.MaxPool2d(3, 2, 1),
        conv_block(first, last),
        conv_block(last, last),
        nn.MaxPool2d(3, 2, 1),
        conv_block(last, last, padding=last_padding),
        conv_block(last, last, padding=last_padding),
    ]


def _linear(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)
