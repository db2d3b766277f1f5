"""A split: numbered examples, fetched a batch at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from ranksearch.errors import DataError
from ranksearch.inputs import Inputs, num_examples, take, tensors

__all__ = ["ArraySplit", "DatasetSplit", "Indices", "Part", "Split", "split_off", "targets_of"]

Indices = torch.Tensor | Sequence[int]
Statistic = Sequence[float] | torch.Tensor


@runtime_checkable
class Split(Protocol):
    """Examples 0 … len − 1. A split must pickle: it travels to the workers."""

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> tuple[Any, Any]:
        """(inputs, targets) of the examples `indices`, stacked along dimension 0."""
        ...


class ArraySplit:
    """Examples held in tensors, normalised a batch at a time; what is stored stays as it is (uint8 images: one byte a
    pixel).

    inputs: (N, …), or a tuple or dict of such; uint8 is read as an image and divided by 255. targets: (N, …).
    mean, std: one value a channel (dimension 1), or tensors with the shape of an example; empty: no normalisation.
    Raises DataError when lengths differ.
    """

    fixed = True  # the same index always gives the same values

    def __init__(self, inputs: Inputs, targets: Any, mean: Statistic = (), std: Statistic = ()) -> None:
        lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors((inputs, targets))}
        if len(lengths) != 1:
            raise DataError(f"inputs and targets are of lengths {sorted(lengths)}; give one target an input")
        self.inputs = inputs
        self.targets = targets
        self.mean, self.std = _as_given(mean), _as_given(std)

    def __len__(self) -> int:
        return num_examples(self.inputs)

    def batch(self, indices: Indices) -> tuple[Any, Any]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return tree_map(self._normalise, take(self.inputs, chosen)), take(self.targets, chosen)

    def _normalise(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
        if len(self.mean) == 0:
            return inputs
        return (inputs - _spread(self.mean, inputs)) / _spread(self.std, inputs)


def _as_given(statistic: Statistic) -> torch.Tensor | tuple[float, ...]:
    return statistic if isinstance(statistic, torch.Tensor) else tuple(float(value) for value in statistic)


def _spread(statistic: Statistic, inputs: torch.Tensor) -> torch.Tensor:
    """To be broadcast with inputs (N, …)."""
    if isinstance(statistic, torch.Tensor):
        return statistic
    return torch.tensor(statistic).view(1, -1, *(1,) * (inputs.dim() - 2))


class DatasetSplit:
    """A map-style `torch.utils.data.Dataset` whose items are (input, target) pairs.

    A tuple of inputs stays a tuple (default_collate would make it a list), so that the model gets positional arguments.
    """

    fixed = False  # an item may be drawn anew each time (random augmentation)

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] = default_collate) -> None:
        self.dataset = dataset
        self.collate = collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def targets(self) -> Any:
        return _targets(self.dataset)

    def batch(self, indices: Indices) -> tuple[Any, Any]:
        items = [self.dataset[int(i)] for i in indices]
        if any(not isinstance(item, tuple | list) or len(item) != 2 for item in items):
            raise DataError(
                f"{_name(self.dataset)} gives {_shape_of(items[0])}; an item must be an (input, target) pair"
            )
        inputs, targets = self.collate(items)
        return (tuple(inputs) if type(items[0][0]) is tuple else inputs), targets


def _targets(dataset: Any) -> Any:
    """All targets of a data set that has them at hand, else None."""
    if isinstance(dataset, Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    return getattr(dataset, "targets", None)


def _name(dataset: Any) -> str:
    return f"data set {type(dataset).__name__}"


def _shape_of(item: Any) -> str:
    return f"a {type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else f"a {type(item).__name__}"


class Part:
    """Some examples of another split, without copying it."""

    def __init__(self, split: Split, indices: Indices) -> None:
        self.split = split
        self.indices = torch.as_tensor(indices, dtype=torch.int64)

    @property
    def fixed(self) -> bool:
        return getattr(self.split, "fixed", False)

    @property
    def targets(self) -> torch.Tensor | None:
        whole = targets_of(self.split)
        return None if whole is None else whole[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Indices) -> tuple[Any, Any]:
        return self.split.batch(self.indices[torch.as_tensor(indices, dtype=torch.int64)])


def targets_of(split: Split) -> torch.Tensor | None:
    """All class labels, (N,) int64, where the split has them at hand; None where reading them would mean reading the
    examples, or where targets are no class labels."""
    targets = getattr(split, "targets", None)
    if targets is None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels.long() if labels.shape == (len(split),) and not labels.is_floating_point() else None


def split_off(split: Split, sizes: Sequence[int], seed: int) -> tuple[Part, ...]:
    """The rest of `split` and one part of each of `sizes`, disjoint, the same for the same seed.

    Parts are stratified by class where labels are at hand: examples are ordered by their (jittered) quantile within
    their class, so that any run of neighbours has about the whole's class proportions.
    Raises DataError when nothing would be left.
    """
    if sum(sizes) >= len(split):
        raise DataError(f"{len(split)} examples; more than {sum(sizes)} are needed to cut parts of {list(sizes)} off")
    order = _order(split, torch.Generator().manual_seed(seed))
    *parts, rest = torch.split(order, [*sizes, len(split) - sum(sizes)])
    return tuple(Part(split, part.sort().values) for part in (rest, *parts))


def _order(split: Split, generator: torch.Generator) -> torch.Tensor:
    shuffled = torch.randperm(len(split), generator=generator)
    labels = targets_of(split)
    if labels is None:
        return shuffled
    quantiles = torch.empty(len(split), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        jitter = torch.rand(len(members), generator=generator, dtype=torch.float64)
        quantiles[members] = (torch.arange(len(members)) + jitter) / len(members)
    return quantiles.argsort()
