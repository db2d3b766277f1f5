import pytest
import torch

from ranksearch.errors import DataError
from ranksearch.tasks import load_data
from tests.tasks.usage import refuses

SIZES = {
    "tensors": [90, 10, 40],
    "arrays": [90, 10, 40, 30],
    "datasets": [90, 10, 40, 30],
    "loaders": [90, 10, 40],
}


@pytest.mark.parametrize("place", ["sets", "sets.py"])
@pytest.mark.parametrize("function", SIZES)
def test_what_a_factory_may_return(user_folder, place, function):
    data = load_data(f"{place}:{function}")
    assert [len(split) for split in data.splits.values()] == SIZES[function]
    assert (data.name, data.num_classes, data.input_shape) == (function, 10, (1, 16, 16))
    images, labels = data.validation.batch([0, 11])
    assert labels.tolist() == [0, 1]
    assert images.dtype == torch.float32
    assert images.max() <= 1


def test_all_ways_give_the_same_examples(user_folder):
    first, *others = (load_data(f"sets:{function}", seed=3) for function in SIZES)
    for other in others:
        for ours, theirs in zip(first.calibration.batch(range(10)), other.calibration.batch(range(10)), strict=True):
            assert ours.equal(theirs)


def test_the_same_from_python(user_folder):
    pairs = tuple((torch.rand(20, 2, generator=torch.Generator().manual_seed(i)), torch.arange(20)) for i in range(2))
    data = load_data(pairs)
    assert [len(split) for split in data.splits.values()] == [18, 2, 20]
    assert load_data(data) is data


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("empty", ["validation", "no examples", "at least 1"]),
        ("streams", ["train", "IterableDataset", "map-style"]),
        ("single", ["a Tensor", "(train, validation)"]),
        ("labels_missing", ["train data is a Tensor", "a pair (inputs, targets)"]),
        ("unequal", ["[99, 100]"]),
    ],
)
def test_what_it_may_not(user_folder, function, words):
    with refuses(DataError, *words):
        load_data(f"sets:{function}")


@pytest.mark.parametrize("returned", [None, 3, (1,), (1, 2, 3, 4), ("ab", "cd"), ({1: 2}, {1: 2}), (None, None)])
def test_nonsense(returned):
    with refuses(
        DataError, "give" if isinstance(returned, tuple) and len(returned) == 2 else "return (train, validation)"
    ):
        load_data(returned)
