"""`imagefolder:ROOT`: image files, one folder a class: ROOT/train/CLASS/…, ROOT/validation (or val), ROOT/test, or
ROOT/CLASS/… from which a validation split is cut."""

from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ranksearch.errors import DataError
from ranksearch.tasks.data import Data
from ranksearch.tasks.resolve import one_line
from ranksearch.tasks.sources.images import image_statistics
from ranksearch.tasks.split import DatasetSplit

__all__ = ["load_imagefolder"]

RESIZED, CROPPED = 256, 224  # pixels; what torchvision's classification weights are evaluated with
STATISTICS_IMAGES = 500  # evenly spaced training images that mean and standard deviation are taken from


def load_imagefolder(root: str, *, normalize: str, seed: int) -> Data:
    """RGB, the shorter side resized to 256, the middle 224 × 224 cut out.

    Raises DataError for folders or images that are missing or unreadable, and for splits whose classes differ.
    """
    folders = _folders(Path(root))
    sets = {name: _open(folder) for name, folder in folders.items()}
    _check_classes(sets)
    mean, std = image_statistics(_sample(sets["train"]), normalize)
    for found in sets.values():
        found.transform = _transform(mean, std)
    splits = {name: DatasetSplit(found) for name, found in sets.items()}
    return Data.cut(
        name=Path(root).resolve().name,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        seed=seed,
        num_classes=len(sets["train"].classes),
    )


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(
            f"no folder {str(root)!r}; give imagefolder:ROOT with ROOT/train/CLASS/image or ROOT/CLASS/image"
        )
    if not (root / "train").is_dir():
        return {"train": root}
    places = {"train": ["train"], "validation": ["validation", "val"], "test": ["test"]}
    found = {name: [root / word for word in words if (root / word).is_dir()] for name, words in places.items()}
    return {name: folders[0] for name, folders in found.items() if folders}


def _open(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder), transform=_transform((), ()), loader=read_image)
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no images: {one_line(error)}") from error


def read_image(path: str) -> Image.Image:
    """Raises DataError naming the file when it is no readable image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image: {one_line(error)}") from error


def _transform(mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
    steps = [v2.Resize(RESIZED), v2.CenterCrop(CROPPED), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(mean, std)] if mean else steps)  # type: ignore[arg-type]


def _check_classes(sets: dict[str, ImageFolder]) -> None:
    known = set(sets["train"].classes)
    for name, found in sets.items():
        if strangers := sorted(set(found.classes) ^ known):
            raise DataError(f"classes of train and {name} differ: {', '.join(strangers[:3])} is only in one of them")


def _sample(images: ImageFolder) -> torch.Tensor:
    indices = torch.linspace(0, len(images) - 1, min(STATISTICS_IMAGES, len(images))).long()
    return torch.stack([images[i][0] for i in indices.tolist()])
