"""Scenes drawn by code: pictures of one kind pasted over a background, among clutter; every scene has its own seed.

A scene has one to five objects. Each is a picture, its ink cut out, that is enlarged, tinted and laid over a background
of soft colours, noise, and bars and discs that are no objects. The box is the ink's.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ranksearch.tasks.detection.boxes import overlaps
from ranksearch.tasks.split import ArraySplit, Indices

__all__ = ["MOST_OBJECTS", "Scenes", "ink_of"]

MOST_OBJECTS = 5
SIDES = (0.3, 0.6)  # an object's longer side, as a share of the image's
CONTRASTS = (0.3, 0.8)  # between an object's colour and the background's mean
MOST_CLUTTER = 4
MOST_OVERLAP = 0.1  # of two objects' boxes
TRIES = 10  # for a place that keeps clear of the objects before
NOISE = 0.04
INK = 0.3  # from this brightness on a pixel of a picture, of its brightest, is ink
MEAN, STD = (0.5,) * 3, (0.5,) * 3  # of the images that a model gets


def ink_of(picture: Tensor) -> Tensor:
    """A grey picture (H, W) cut to the box of its ink, its brightest pixel 1."""
    picture = picture / picture.max()
    rows, columns = (line.nonzero().flatten() for line in ((picture > INK).any(1), (picture > INK).any(0)))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class Scenes:
    """A split of `count` scenes: images (N, 3, S, S) around 0 and boxes (N, 5, 4), corners as shares of the side; what
    an image has fewer of is padded with zeros.

    pictures: grey, (H, W) each, as `ink_of` gives them. seed: the same scenes for the same index and seed.
    """

    fixed = True  # the same index always gives the same values

    def __init__(self, pictures: Sequence[Tensor], image_size: int, count: int, seed: int) -> None:
        self.pictures, self.image_size, self.count, self.seed = pictures, image_size, count, seed

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        return self._drawn(indices).batch(range(len(indices)))

    def drawn(self) -> ArraySplit:
        """All scenes, kept as bytes, so that they need not be drawn again."""
        return self._drawn(range(self.count))

    def _drawn(self, indices: Indices) -> ArraySplit:
        images, boxes = zip(*(self._draw(int(index)) for index in indices), strict=True)
        return ArraySplit(torch.stack(images), torch.stack(boxes), MEAN, STD)

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        image = _background(rng, self.image_size)
        for _ in range(rng.integers(MOST_CLUTTER + 1)):
            _paint(image, _clutter(rng, self.image_size), rng)
        boxes = torch.zeros(MOST_OBJECTS, 4)
        for number in range(rng.integers(1, MOST_OBJECTS + 1)):
            self._paste(image, boxes, number, rng)
        image += NOISE * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        return (image * 255).round().clamp(0, 255).byte(), boxes

    def _paste(self, image: Tensor, boxes: Tensor, number: int, rng: np.random.Generator) -> None:
        """Adds an object and its box, unless no place is found for it."""
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        factor = rng.uniform(*SIDES) * self.image_size / max(picture.shape)
        height, width = (max(1, round(side * factor)) for side in picture.shape)
        enlarged = _resized(picture[None], (height, width))[0]
        for _ in range(TRIES):
            top, left = (int(rng.integers(self.image_size - side + 1)) for side in (height, width))
            box = torch.tensor([left, top, left + width, top + height]) / self.image_size
            if overlaps(box[None], boxes).max() <= MOST_OVERLAP:
                _paint(image[:, top : top + height, left : left + width], enlarged, rng)
                boxes[number] = box
                return


def _background(rng: np.random.Generator, size: int) -> Tensor:
    """(3, size, size) of soft colours."""
    coarse = rng.uniform(0.1, 0.5) + rng.uniform(0, 0.2) * rng.standard_normal((3, 4, 4), dtype=np.float32)
    return _resized(torch.from_numpy(coarse.astype(np.float32)), (size, size)).clamp_(0, 1)


def _clutter(rng: np.random.Generator, size: int) -> Tensor:
    """(size, size) coverage of an ellipse or a rounded bar."""
    x, y, angle = *rng.uniform(0, 1, 2), rng.uniform(0, math.pi)
    axes, is_bar = rng.uniform(0.03, 0.25, 2), rng.random() < 0.5
    columns = torch.arange(size) / size - x
    rows = (torch.arange(size) / size - y)[:, None]
    along = (columns * math.cos(angle) + rows * math.sin(angle)) / axes[0]
    across = (rows * math.cos(angle) - columns * math.sin(angle)) / axes[1]
    distances = [(away**4) ** 2 if is_bar else away**2 for away in (along, across)]
    return (sum(distances) < 1).float()  # type: ignore[arg-type]


def _paint(image: Tensor, coverage: Tensor, rng: np.random.Generator) -> None:
    """Lay a colour lighter than the background's mean over (3, H, W) where (H, W) covers it, in place."""
    colour = image.mean((1, 2)) + torch.from_numpy(rng.uniform(*CONTRASTS, 3)).float()
    image += coverage * (colour.clamp_(max=1)[:, None, None] - image)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size)"""
    return functional.interpolate(pictures[None], size=size, mode="bilinear", align_corners=False)[0]
