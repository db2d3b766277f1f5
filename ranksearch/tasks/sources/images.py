"""Labelled images in memory -> Data: checked, normalised, cut."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ranksearch.errors import ConfigError, DataError
from ranksearch.records import nearest
from ranksearch.tasks.augment import Raw
from ranksearch.tasks.data import Augment, Data
from ranksearch.tasks.split import ArraySplit

__all__ = ["NORMALIZATIONS", "Images", "check_normalize", "data_of_images", "image_statistics"]

NORMALIZATIONS = ("dataset", "pixel", "imagenet", "none")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # the statistics torchvision's weights were trained with
CHANNELS = (1, 3, 4)  # grey, colour, colour with transparency
CHUNK = 4096  # images turned into floats at a time

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation, one value a channel


@dataclass(frozen=True, slots=True)
class Images:
    """pixels (N, C, H, W), uint8 or float32; labels (N,) int64."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def of_arrays(cls, pixels: np.ndarray, labels: np.ndarray, what: str) -> "Images":
        """From (N, C, H, W), (N, H, W, C) or (N, H, W), and (N,) or (N, 1). Raises DataError on anything else."""
        return cls(_pixels(pixels, f"x_{what}"), _labels(labels, len(pixels), what))


def _pixels(array: np.ndarray, name: str) -> torch.Tensor:
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{name} is {array.dtype}; images must be uint8 (0 to 255) or floating point")
    if len(array) == 0:
        raise DataError(f"{name} has no examples; at least 1 is needed")
    pixels = torch.from_numpy(np.ascontiguousarray(_channels_first(array, name)))
    if pixels.is_floating_point():
        pixels = pixels.float()
        if not pixels.isfinite().all():
            raise DataError(f"{name} has NaN or infinite values; remove or replace them")
    return pixels


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and (is_first := _is_channels_first(array.shape)) is not None:
        return array if is_first else array.transpose(0, 3, 1, 2)
    raise DataError(f"{name} has shape {array.shape}; images must be (N, C, H, W), (N, H, W, C) or (N, H, W)")


def _is_channels_first(shape: tuple[int, ...]) -> bool | None:
    """Told by a usual number of channels, else by a square image; None where neither tells."""
    usual = shape[1] in CHANNELS, shape[3] in CHANNELS
    square = shape[2] == shape[3], shape[1] == shape[2]
    return next((first for first, last in (usual, square) if first != last), None)


def _labels(array: np.ndarray, num_images: int, what: str) -> torch.Tensor:
    if array.shape not in ((num_images,), (num_images, 1)):
        raise DataError(f"y_{what} has shape {array.shape} for {num_images} images; it must be ({num_images},)")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"y_{what} is {array.dtype}; labels must be integers from 0")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def check_normalize(normalize: str) -> None:
    """Raises ConfigError on a word that is not one of NORMALIZATIONS."""
    if normalize not in NORMALIZATIONS:
        allowed = ", ".join(NORMALIZATIONS)
        raise ConfigError(
            f"normalize is {normalize!r}; it must be one of {allowed}{nearest(normalize, NORMALIZATIONS)}"
        )


def data_of_images(
    name: str,
    train: Images,
    test: Images,
    validation: Images | None = None,
    *,
    normalize: str,
    seed: int,
    num_classes: int | None = None,
    augment: Augment | None = None,
) -> Data:
    """Splits of images that fit each other. `num_classes` None: one more than the largest training label.

    Raises DataError when shapes differ between splits, labels are out of range or examples are too few.
    """
    num_classes = num_classes or int(train.labels.max()) + 1
    named = {"train": train, "validation": validation, "test": test}
    for what, images in named.items():
        if images is not None:
            _check(what, images, train, num_classes)
    mean, std = _pixel_statistics(train.pixels) if normalize == "pixel" else image_statistics(train.pixels, normalize)
    if augment is not None and isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor):
        augment = Raw(view=augment, mean=mean, std=std)
    parts = {what: ArraySplit(i.pixels, i.labels, mean, std) for what, i in named.items() if i is not None}
    return Data.cut(
        name=name,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        seed=seed,
        augment=augment,
        num_classes=num_classes,
    )


def _check(what: str, images: Images, train: Images, num_classes: int) -> None:
    if images.pixels.shape[1:] != train.pixels.shape[1:]:
        got, wanted = tuple(images.pixels.shape[1:]), tuple(train.pixels.shape[1:])
        raise DataError(f"the {what} images are {got}, the train images {wanted}; they must be the same")
    if images.pixels.dtype != train.pixels.dtype:
        got, wanted = images.pixels.dtype, train.pixels.dtype
        raise DataError(f"the {what} images are {got}, the train images {wanted}; they must be the same")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(f"label {wrong} in the {what} split is out of range; labels are 0 to {num_classes - 1}")


def image_statistics(pixels: torch.Tensor, normalize: str) -> Statistics:
    """Mean and standard deviation to normalise images (N, C, H, W) with; empty for "none".

    Raises ConfigError for an unknown `normalize`, DataError for "imagenet" on images without three channels and for
    "pixel", which only `data_of_images` knows.
    """
    check_normalize(normalize)
    if normalize == "none":
        return (), ()
    if normalize == "pixel":
        raise DataError("normalize is 'pixel', which only mnist, fashion_mnist, cifar10 and npz take; write 'dataset'")
    if normalize == "imagenet":
        if pixels.shape[1] != 3:
            raise DataError(f"normalize is 'imagenet', which needs 3 channels; the images have {pixels.shape[1]}")
        return IMAGENET
    mean, std = _mean_and_std(pixels, (0, 2, 3))
    return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())


def _pixel_statistics(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean image and the standard deviation of each of its pixels, (C, H, W)."""
    mean, std = _mean_and_std(pixels, (0,))
    return mean.float(), std.float()


def _mean_and_std(pixels: torch.Tensor, over: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Over these dimensions, that of the images among them, which goes. What never varies gets a deviation of 1."""
    scale = 255.0 if pixels.dtype == torch.uint8 else 1.0
    count = math.prod(pixels.shape[dimension] for dimension in over)
    sums = [chunk.double().sum(over, keepdim=True) for chunk in pixels.split(CHUNK)]
    mean = torch.stack(sums).sum(0) / count / scale
    squares = [(chunk.double() / scale - mean).square().sum(over, keepdim=True) for chunk in pixels.split(CHUNK)]
    std = (torch.stack(squares).sum(0) / count).sqrt()
    return mean[0], std.where(std > 0, 1.0)[0]
