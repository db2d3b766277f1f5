"""A data set's splits, and how they are cut from its examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from ranksearch.errors import DataError
from ranksearch.inputs import Inputs
from ranksearch.tasks.split import Split, split_off

__all__ = ["Augment", "Data"]

MOST_VALIDATION = 5000
MOST_CALIBRATION = 1024

Augment = Callable[[Any, torch.Generator], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """A data set's splits and what a model has to know of it.

    num_classes: None where labels are not at hand or are no class labels.
    input_shape: of one example, without the batch dimension; None where the input is not one tensor.
    """

    name: str
    train: Split
    calibration: Split
    validation: Split
    test: Split | None = None
    augment: Augment | None = None
    num_classes: int | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "calibration": self.calibration, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def example_input(self) -> Inputs:
        """One example, batch dimension 1."""
        return self.validation.batch([0])[0]

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        example = self.example_input
        return tuple(example.shape[1:]) if isinstance(example, torch.Tensor) else None

    @classmethod
    def cut(
        cls,
        *,
        name: str,
        train: Split,
        validation: Split | None,
        test: Split | None,
        seed: int,
        augment: Augment | None = None,
        num_classes: int | None = None,
    ) -> Self:
        """Data whose calibration split, and validation where there is none, are cut from `train` by `seed`: a tenth
        each, at most 1024 and 5000 examples. Raises DataError when there are too few examples."""
        for what, split in (("train", train), ("validation", validation), ("test", test)):
            if split is not None and len(split) == 0:
                raise DataError(f"the {what} split has no examples; at least 1 is needed")
        tenth = max(1, len(train) // 10)
        sizes = [min(MOST_CALIBRATION, tenth), min(MOST_VALIDATION, tenth)]
        rest, calibration, *cut = split_off(train, sizes if validation is None else sizes[:1], seed)
        return cls(
            name=name,
            train=rest,
            calibration=calibration,
            validation=cut[0] if validation is None else validation,
            test=test,
            augment=augment,
            num_classes=num_classes,
        )
