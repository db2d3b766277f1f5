"""A user's own data: what a `module:function` returned, or a Python caller gave, as splits."""

from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset

from ranksearch.errors import DataError
from ranksearch.tasks.data import Data
from ranksearch.tasks.resolve import one_line
from ranksearch.tasks.split import ArraySplit, DatasetSplit, Split, targets_of

__all__ = ["data_of_factory"]

NO_DATASET = (str, tuple, dict, torch.Tensor, np.ndarray)  # have a length and items, but no (input, target) items
NAMES = ("train", "validation", "test")
RULE = "return (train, validation) or (train, validation, test)"


def data_of_factory(returned: Any, *, name: str, seed: int) -> Data:
    """`returned`: (train, validation) or (train, validation, test), each a map-style Dataset of (input, target) items,
    a DataLoader over one, a pair (inputs, targets) of tensors or arrays, or a Split.

    Raises DataError for anything else, and for a split whose first example cannot be read.
    """
    if not isinstance(returned, tuple | list) or len(returned) not in (2, 3):
        got = f"{len(returned)} values" if isinstance(returned, tuple | list) else f"a {type(returned).__name__}"
        raise DataError(f"{name} gave {got}; {RULE}")
    splits = {what: _split(value, what) for what, value in zip(NAMES, returned, strict=False)}
    for what, split in splits.items():
        _check_first(split, what)
    return Data.cut(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        seed=seed,
        num_classes=_num_classes(splits["train"]),
    )


def _split(value: Any, what: str) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, DataLoader):
        return _of_dataset(value.dataset, what, value)
    if _is_pair_of_arrays(value):
        inputs, targets = tree_map(torch.as_tensor, value)
        return ArraySplit(inputs, targets)
    return _of_dataset(value, what)


def _is_pair_of_arrays(value: Any) -> bool:
    leaves = tree_leaves(value)
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return is_pair and bool(leaves) and all(isinstance(leaf, torch.Tensor | np.ndarray) for leaf in leaves)


def _of_dataset(value: Any, what: str, loader: DataLoader[Any] | None = None) -> Split:
    if isinstance(value, IterableDataset):
        raise DataError(f"the {what} data is an IterableDataset; give a map-style one, with __len__ and __getitem__")
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")) or isinstance(value, NO_DATASET):
        rule = "a Dataset, a DataLoader, a pair (inputs, targets) of tensors, or a Split"
        raise DataError(f"the {what} data is a {type(value).__name__}; give {rule}")
    return DatasetSplit(value) if loader is None else DatasetSplit(value, loader.collate_fn)


def _check_first(split: Split, what: str) -> None:
    if len(split) == 0:
        raise DataError(f"the {what} split has no examples; at least 1 is needed")
    try:
        split.batch([0])
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the first {what} example cannot be read: {one_line(error)}") from error


def _num_classes(split: Split) -> int | None:
    labels = targets_of(split)
    return None if labels is None else int(labels.max()) + 1
