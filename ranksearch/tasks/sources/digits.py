"""`digits`: scikit-learn's 1,797 scans of handwritten digits (8 × 8, grey), enlarged to 16 × 16.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

The scans are divided once and for all, by class, into train (997), calibration (128), validation (400) and test (272):
the built-in model has been trained on the first, so that no seed of a study may move them. A few hundred held-out
scans would move accuracy by a quarter of a point an image and are nearly all recognised, so validation and test hold
five fixed views of each of their scans, and calibration four: rotated, scaled, sheared, shifted and noisy, stored as
uint8. (Views of one scan are not independent: an interval over views is a little narrower than one over new scans.)
Training draws such views anew for each batch.
"""

from dataclasses import replace

import torch
from torch.nn import functional

from ranksearch.tasks.augment import Affine
from ranksearch.tasks.data import Data
from ranksearch.tasks.sources.images import image_statistics
from ranksearch.tasks.split import ArraySplit, Part, Split, split_off

__all__ = ["VIEW", "load_digits"]

SIZE = 16  # pixels a side
BRIGHTEST = 16  # of a scan
SCANS = {"calibration": 128, "validation": 400, "test": 272}  # the rest is train
VIEWS = {"calibration": 4, "validation": 5, "test": 5}  # of each scan
SEED = 1797
VIEW = Affine(degrees=15, scale=0.2, shear=0.2, shift=0.2, noise=0.2)  # of images in 0…1


def load_digits(normalize: str) -> Data:
    """(1, 16, 16) images and labels 0…9. `normalize` as in `load_data`."""
    images, labels = _scans()
    scans = ArraySplit(images, labels)
    train, *held_out = split_off(scans, list(SCANS.values()), SEED)
    mean, std = image_statistics(images[train.indices], normalize)
    splits: dict[str, Split] = {
        name: _views(part, VIEWS[name], seed, mean, std)
        for seed, (name, part) in enumerate(zip(SCANS, held_out, strict=True))
    }
    splits["train"] = ArraySplit(images[train.indices], labels[train.indices], mean, std)
    return Data(name="digits", **splits, augment=_normalised(VIEW, mean, std), num_classes=10)


def _scans() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn import datasets  # a second and over 100 MB that a worker, which is sent the data, need not spend

    pixels, labels = datasets.load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / BRIGHTEST
    large = functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return _to_bytes(large), torch.from_numpy(labels).long()


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _views(scans: Part, views: int, seed: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ArraySplit:
    images, labels = scans.batch(torch.arange(len(scans)).repeat(views))
    return ArraySplit(_to_bytes(VIEW(images, torch.Generator().manual_seed(SEED + seed))), labels, mean, std)


def _normalised(view: Affine, mean: tuple[float, ...], std: tuple[float, ...]) -> Affine:
    """The same view of images that have been normalised: black and the noise in their unit."""
    if not mean:
        return view
    return replace(view, noise=view.noise / std[0], background=(-mean[0] / std[0],))
