"""All-CNN-C: nine convolutions and nothing else (Springenberg, Dosovitskiy, Brox, Riedmiller 2015, arXiv 1412.6806).

Two of them have stride 2 in the place of pooling, the last two are 1×1, and the mean over positions of the last one's
outputs are the logits: 1,369,738 parameters, the AllConv of LinearConv (arXiv 1907.11432). Without BatchNorm the
weights start at He's scale, so that the signal passes; dropout is left out, since trainings here are short.
"""

from torch import nn

from ranksearch.nets.block import widened

__all__ = ["allconv"]

# output channels, kernel, stride
LAYERS = ((96, 3, 1), (96, 3, 1), (96, 3, 2), (192, 3, 1), (192, 3, 1), (192, 3, 2), (192, 3, 1), (192, 1, 1))


def allconv(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """(N, in_channels, 32, 32), or 28×28, -> logits (N, num_classes)."""
    layers: list[nn.Module] = []
    inputs = in_channels
    for channels, kernel, stride in LAYERS:
        outputs = widened(channels, width)
        layers += [_convolution(inputs, outputs, kernel, stride), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, _convolution(inputs, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
