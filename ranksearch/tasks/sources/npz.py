"""`npz:FILE`: a NumPy archive with x_train, y_train, x_test, y_test and perhaps x_validation, y_validation."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ranksearch.errors import DataError
from ranksearch.records import nearest
from ranksearch.tasks.augment import CropFlip
from ranksearch.tasks.data import Augment, Data
from ranksearch.tasks.resolve import one_line
from ranksearch.tasks.sources.images import Images, data_of_images

__all__ = ["load_npz"]

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_validation", "y_validation")


def load_npz(file: str, *, normalize: str, seed: int) -> Data:
    """Images (N, C, H, W), (N, H, W, C) or (N, H, W), uint8 or floating point; integer labels (N,).

    Colour images of 32 × 32 are augmented as CIFAR-10 is, others are not.
    Raises DataError for a file that cannot be read, lacks an array, or holds arrays that do not fit.
    """
    path = Path(file)
    arrays = _read(path)
    splits = {what: _images(arrays, what) for what in ("train", "validation", "test") if f"x_{what}" in arrays}
    return data_of_images(
        path.stem,
        splits["train"],
        splits["test"],
        splits.get("validation"),
        normalize=normalize,
        seed=seed,
        augment=_augment(splits["train"]),
    )


def _images(arrays: dict[str, np.ndarray], what: str) -> Images:
    return Images.of_arrays(arrays[f"x_{what}"], arrays[f"y_{what}"], what)


def _augment(images: Images) -> Augment | None:
    return CropFlip(padding=4, flip=True) if images.pixels.shape[1:] == (3, 32, 32) else None


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}; give npz:FILE with {', '.join(REQUIRED)}")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array; an npz archive with {', '.join(REQUIRED)} is needed")
            with archive:
                _check_names(path, archive.files)
                return {name: archive[name] for name in (*REQUIRED, *OPTIONAL) if name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as npz: {one_line(error)}") from error


def _check_names(path: Path, found: list[str]) -> None:
    wanted = REQUIRED + (OPTIONAL if set(found) & set(OPTIONAL) else ())
    missing = [name for name in wanted if name not in found]
    if missing:
        others = [name for name in found if name not in wanted]
        got = ", ".join(found) or "nothing"
        raise DataError(f"{path} has no {missing[0]}{nearest(missing[0], others)}; it holds {got}")
