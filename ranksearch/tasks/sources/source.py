"""Data by name: `digits`, `mnist:ROOT`, `cifar10:ROOT`, `npz:FILE`, `imagefolder:ROOT`, `module:function`, …"""

from typing import Any

from ranksearch.errors import DataError
from ranksearch.records import nearest
from ranksearch.tasks.data import Data
from ranksearch.tasks.resolve import call, is_reference, resolve
from ranksearch.tasks.sources.digits import load_digits
from ranksearch.tasks.sources.factory import data_of_factory
from ranksearch.tasks.sources.images import check_normalize

__all__ = ["SOURCES", "load_data"]

SOURCES = ("digits", "mnist", "fashion_mnist", "cifar10", "npz", "imagefolder")
ALLOWED = "digits, mnist:ROOT, fashion_mnist:ROOT, cifar10:ROOT, npz:FILE, imagefolder:ROOT, module:function"


def load_data(source: Any, *, normalize: str = "dataset", seed: int = 0) -> Data:
    """The data that `source` names, or is: text as above, or (train, validation[, test]).

    normalize: "dataset" (mean and standard deviation of the training images), "pixel" (of each of their pixels by
    itself), "imagenet" or "none"; a user's own data are taken as they are. seed: which training examples become
    calibration and validation.
    Raises ConfigError for an unknown `normalize`, DataError for data that is unknown, unreadable or does not fit.
    """
    check_normalize(normalize)
    if isinstance(source, Data):
        return source
    if not isinstance(source, str):
        return data_of_factory(source, name="data", seed=seed)
    kind, _, place = source.partition(":")
    if kind in SOURCES:
        return _named(kind, place, normalize, seed)
    if is_reference(source):
        function = resolve(source, error=DataError, words=SOURCES)
        return data_of_factory(call(source, function, {}, error=DataError), name=source.rpartition(":")[2], seed=seed)
    raise DataError(f"data is {source!r}{nearest(kind, SOURCES)}; it must be one of {ALLOWED}, file.py:function")


def _named(kind: str, place: str, normalize: str, seed: int) -> Data:
    if kind == "digits":
        if place:
            raise DataError(f"data is 'digits:{place}'; digits come with scikit-learn, write just 'digits'")
        return load_digits(normalize)
    if not place:
        raise DataError(f"data is {kind!r}; say where it is: {kind}:{'FILE' if kind == 'npz' else 'ROOT'}")
    # torchvision and Pillow take half a second to import; the example needs neither
    if kind == "npz":
        from ranksearch.tasks.sources.npz import load_npz

        return load_npz(place, normalize=normalize, seed=seed)
    if kind == "imagefolder":
        from ranksearch.tasks.sources.imagefolder import load_imagefolder

        return load_imagefolder(place, normalize=normalize, seed=seed)
    from ranksearch.tasks.sources.torchvision_sets import load_torchvision_set

    return load_torchvision_set(kind, place, normalize=normalize, seed=seed)
