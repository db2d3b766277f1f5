"""`mnist:ROOT`, `fashion_mnist:ROOT`, `cifar10:ROOT`: torchvision's data sets, fetched where they are missing."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision import datasets

from ranksearch.errors import DataError
from ranksearch.tasks.augment import CropFlip
from ranksearch.tasks.data import Data
from ranksearch.tasks.resolve import one_line
from ranksearch.tasks.sources.images import Images, data_of_images

__all__ = ["TORCHVISION_SETS", "load_torchvision_set"]


@dataclass(frozen=True, slots=True)
class _Set:
    kind: type[datasets.MNIST | datasets.CIFAR10]
    folder: str  # beneath ROOT
    augment: CropFlip
    num_classes: int = 10


TORCHVISION_SETS = {
    "mnist": _Set(datasets.MNIST, "MNIST/raw", CropFlip(padding=2, flip=False)),
    "fashion_mnist": _Set(datasets.FashionMNIST, "FashionMNIST/raw", CropFlip(padding=0, flip=True)),
    "cifar10": _Set(datasets.CIFAR10, "cifar-10-batches-py", CropFlip(padding=4, flip=True)),
}


def load_torchvision_set(name: str, root: str, *, normalize: str, seed: int) -> Data:
    """Raises DataError when the files are neither under `root` nor to be had from their source, or cannot be read."""
    found = TORCHVISION_SETS[name]
    train, test = (_images(name, found, root, train=train) for train in (True, False))
    return data_of_images(
        name, train, test, normalize=normalize, seed=seed, num_classes=found.num_classes, augment=found.augment
    )


def _images(name: str, found: _Set, root: str, *, train: bool) -> Images:
    folder = Path(root, found.folder)
    try:
        dataset = _open(found, root, folder, train=train)
        pixels, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    except DataError as error:
        raise DataError(f"{name} is not in {folder} and {error}; put its files there") from error.__cause__
    except Exception as error:  # whatever a broken file makes of torchvision's reader
        raise DataError(f"{name} in {folder} cannot be read: {one_line(error)}") from error
    return Images.of_arrays(pixels, labels, "train" if train else "test")


def _open(found: _Set, root: str, folder: Path, *, train: bool) -> datasets.MNIST | datasets.CIFAR10:
    try:
        return found.kind(root, train=train)
    except RuntimeError as error:
        if "download" not in str(error):
            raise
    made = _missing_folders(folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; our stdout is data
            return found.kind(root, train=train, download=True)
    except Exception as error:
        _remove_empty(made)
        raise DataError(f"downloading it failed: {one_line(error)}") from error


def _missing_folders(folder: Path) -> list[Path]:
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """What a failed download has made: nothing of it stays."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
