"""VGG11 for small pictures (Simonyan and Zisserman 2015, arXiv 1409.1556, configuration A), as LinearConv has it.

Eight 3×3 convolutions with biases, each with BatchNorm and ReLU, max pooling behind the first, the second and then
every other one, a single linear layer 512 → classes: 9,231,114 parameters (Kahatapitiya and Rodrigo 2021, arXiv
1907.11432).
"""

from itertools import pairwise

from torch import nn

from ranksearch.nets.block import conv_block, widened

__all__ = ["vgg11"]

CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
POOLED = (0, 1, 3, 5)  # the last convolution too, and over all that is left


def vgg11(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    channels = [in_channels, *(widened(c, width) for c in CHANNELS)]
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(channels)):
        layers += [conv_block(inputs, outputs, bias=True), *([nn.MaxPool2d(2)] if place in POOLED else [])]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))
