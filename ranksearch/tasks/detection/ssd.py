"""MobileNetV1-SSD: a detector that scores six boxes in every cell of six feature maps.

The net that FastFaces compressed, for two classes (background and one more): MobileNetV1 (A. G. Howard et al.,
"MobileNets", 2017) without its classifier, four pairs of convolutions that halve the map each, and on six maps a 3×3
convolution for box offsets and one for class scores (W. Liu et al., "SSD: Single Shot MultiBox Detector", 2016). Layers
have the names, and the default net at 300 × 300 the sizes, of its public implementation: 6,579,096 parameters, and with
BatchNorm's statistics and counters 6,601,011 values in the state dict.
"""

import math
from itertools import product

import torch
from torch import Tensor, nn

from ranksearch.tasks.detection.boxes import to_corners

__all__ = ["MobileNetSSD", "prior_boxes"]

NUM_CLASSES = 2
STEM = 32
# (output channels, stride) of MobileNet's separable blocks
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
EXTRAS = ((256, 512), (128, 256), (128, 256), (128, 256))  # channels of the 1×1, of the 3×3 of stride 2
SOURCE = 12  # the block before which the first map is taken
STRIDES = (16, 32, 64, 128, 256, 512)  # of the six maps; each halving rounds up
SMALLEST = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.1)  # side of a map's smaller square prior; the next one's bounds it
ASPECT_RATIOS = (2.0, 3.0)
PRIORS_A_CELL = 2 + 2 * len(ASPECT_RATIOS)


class MobileNetSSD(nn.Module):
    """Images (N, 3, S, S) -> class logits (N, P, 2) and box offsets (N, P, 4) of the P `prior_boxes` of S.

    width: share of the channels of every layer that is not an output, in multiples of 8.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        outputs = [_scaled(channels, width) for channels, _ in BLOCKS]
        inputs = [_scaled(STEM, width), *outputs]
        extras = [(_scaled(narrow, width), _scaled(wide, width)) for narrow, wide in EXTRAS]
        self.base_net = nn.Sequential(
            _normed(3, inputs[0], kernel_size=3, stride=2),
            *(_separable(i, o, stride) for i, o, (_, stride) in zip(inputs, outputs, BLOCKS, strict=False)),
        )
        maps = [inputs[SOURCE - 1], outputs[-1], *(wide for _, wide in extras)]
        self.extras = nn.ModuleList(_extra(i, *pair) for i, pair in zip(maps[1:], extras, strict=False))
        self.regression_headers = nn.ModuleList(_head(channels, 4) for channels in maps)
        self.classification_headers = nn.ModuleList(_head(channels, NUM_CLASSES) for channels in maps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._maps(images)
        logits = [_by_prior(head(x), NUM_CLASSES) for head, x in zip(self.classification_headers, maps, strict=True)]
        offsets = [_by_prior(head(x), 4) for head, x in zip(self.regression_headers, maps, strict=True)]
        return torch.cat(logits, 1), torch.cat(offsets, 1)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for index, block in enumerate(self.base_net):
            if index == SOURCE:
                maps.append(x)
            x = block(x)
        maps.append(x)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def _normed(inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*_layers(inputs, outputs, kernel_size, stride, groups))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_layers(inputs, inputs, 3, stride, groups=inputs), *_layers(inputs, outputs, 1))


def _layers(inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _extra(inputs: int, narrow: int, wide: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, wide, 3, 2, 1), nn.ReLU())


def _head(channels: int, values: int) -> nn.Conv2d:
    return nn.Conv2d(channels, PRIORS_A_CELL * values, 3, padding=1)


def _by_prior(x_NCHW: Tensor, values: int) -> Tensor:
    """(N, cells × priors a cell, values)"""
    return x_NCHW.permute(0, 2, 3, 1).reshape(len(x_NCHW), -1, values)


def prior_boxes(image_size: int) -> Tensor:
    """(P, 4) corners x0, y0, x1, y1 as shares of the side, in the order of the net's outputs; 3000 for 300.

    Centres lie at ((i + 0.5) / cells, (j + 0.5) / cells); a cell has a square of the map's size s, one of √(s s'), s'
    the next map's, and of s × s the shapes 2:1, 1:2, 3:1, 1:3 (Liu et al. 2016, section 2.2). They end at the border.
    """
    priors = [
        (*centre, *shape)
        for stride, size, next_size in zip(STRIDES, SMALLEST, SMALLEST[1:], strict=False)
        for centre in _centres(math.ceil(image_size / stride))
        for shape in _shapes(size, next_size)
    ]
    return to_corners(torch.tensor(priors)).clamp(0, 1)


def _centres(cells: int) -> list[tuple[float, float]]:
    return [((column + 0.5) / cells, (row + 0.5) / cells) for row, column in product(range(cells), repeat=2)]


def _shapes(size: float, next_size: float) -> list[tuple[float, float]]:
    between = math.sqrt(size * next_size)
    longer = [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for ratio in ASPECT_RATIOS]
    return [(size, size), (between, between), *(shape for w, h in longer for shape in ((w, h), (h, w)))]
