import collections
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.transforms.functional import normalize, to_tensor

from ranksearch.errors import DataError
from ranksearch.tasks.split import ArraySplit, DatasetSplit, Part, Split, split_off, targets_of
from tests.tasks.usage import refuses


def images(n, channels=3):
    return torch.randint(0, 256, (n, channels, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_array_split_normalises_as_torchvision_does():
    pixels, mean, std = images(6), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    split = ArraySplit(pixels, torch.arange(6), mean, std)
    inputs, targets = split.batch([4, 0, 4])
    expected = [normalize(to_tensor(pixels[i].permute(1, 2, 0).numpy()), mean, std) for i in (4, 0, 4)]
    torch.testing.assert_close(inputs, torch.stack(expected))
    assert targets.tolist() == [4, 0, 4]
    assert split.inputs.dtype == torch.uint8


def test_floats_and_indices_are_taken_as_they_are():
    tokens, vectors = torch.arange(6).view(3, 2), torch.rand(3, 2)
    inputs, _ = ArraySplit({"tokens": tokens, "vectors": vectors}, torch.arange(3)).batch(range(3))
    assert inputs["tokens"].equal(tokens)
    assert inputs["vectors"].equal(vectors)


def test_lengths_must_agree():
    with refuses(DataError, "[2, 3]"):
        ArraySplit(images(3), torch.arange(2))


class Pairs(Dataset):
    """Items whose input is a tuple of two tensors."""

    targets = (0, 1, 2, 0)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return (torch.full((2,), float(i)), torch.full((3,), -float(i))), self.targets[i]


def test_a_dataset_split_stacks_items_and_keeps_tuples():
    split = DatasetSplit(Pairs())
    inputs, targets = split.batch(torch.tensor([2, 1]))
    assert type(inputs) is tuple
    assert inputs[0].equal(torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
    assert inputs[1].shape == (2, 3)
    assert targets.tolist() == [2, 1]
    assert targets_of(split).tolist() == [0, 1, 2, 0]


def test_targets_of_torchs_own_data_sets():
    labels = torch.arange(8) % 3
    dataset = TensorDataset(torch.rand(8, 2), labels)
    cut = Subset(Subset(dataset, [7, 5, 3, 1]), [2, 0])
    assert targets_of(DatasetSplit(dataset)).equal(labels)
    assert targets_of(DatasetSplit(cut)).tolist() == [labels[3], labels[7]]
    assert targets_of(DatasetSplit(Subset(TensorDataset(torch.rand(8, 2)), [0]))) is None


def test_a_dataset_must_give_pairs():
    with refuses(DataError, "TensorDataset", "a tuple of 3", "(input, target)"):
        DatasetSplit(TensorDataset(*[torch.rand(2, 2)] * 3)).batch([0])


@pytest.mark.parametrize("targets", [torch.rand(4), torch.rand(4, 2), [torch.rand(2), torch.rand(3)], "abcd"])
def test_targets_that_are_no_labels_are_not_taken_for_labels(targets):
    dataset = Pairs()
    dataset.targets = targets
    assert targets_of(DatasetSplit(dataset)) is None


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    shares=st.lists(st.floats(0.05, 0.3), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_complete_repeatable_and_stratified(counts, shares, seed):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    split = ArraySplit(torch.arange(len(labels)), labels)
    sizes = [int(share * len(labels)) for share in shares]
    if sum(sizes) >= len(labels):
        return
    parts = split_off(split, sizes, seed)
    assert [len(part) for part in parts] == [len(labels) - sum(sizes), *sizes]
    assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(len(labels)))
    assert [p.indices.tolist() for p in parts] == [p.indices.tolist() for p in split_off(split, sizes, seed)]
    for part in parts[1:]:
        found = collections.Counter(part.targets.tolist())
        for label, count in enumerate(counts):
            # a run of the quantile order holds each class's share to within one example at either end, and the run's
            # own ends move by at most one example a class
            expected = count * len(part) / len(labels)
            assert abs(found[label] - expected) <= 2 + 2 * count * len(counts) / len(labels)


def test_large_parts_have_the_proportions_of_the_whole():
    labels = torch.arange(10).repeat(500)
    for part in split_off(ArraySplit(labels, labels), [500, 1000], seed=3):
        assert part.targets.bincount().sub(len(part) / 10).abs().max() <= 4  # by chance it would be about 10


def test_the_seed_decides():
    split = ArraySplit(images(50), torch.arange(50) % 5)
    assert len({tuple(split_off(split, [10], seed)[1].indices.tolist()) for seed in range(5)}) == 5


def test_splits_without_labels_are_cut_too():
    rest, part = split_off(ArraySplit(images(10), torch.rand(10)), [4], seed=0)
    assert sorted([*rest.indices.tolist(), *part.indices.tolist()]) == list(range(10))
    assert part.targets is None


def test_something_must_be_left():
    with refuses(DataError, "10 examples", "more than 10"):
        split_off(ArraySplit(images(10), torch.arange(10)), [5, 5], seed=0)


def test_a_part_shares_its_split_also_when_pickled():
    split = ArraySplit(images(1000), torch.arange(1000) % 10, (0.5,) * 3, (0.5,) * 3)
    parts = split_off(split, [100, 200], seed=1)
    assert all(part.split is split for part in parts)
    data = pickle.dumps(parts)
    assert len(data) < 1.5 * split.inputs.numel() + 20_000
    for part, copy in zip(parts, pickle.loads(data), strict=True):
        for ours, theirs in zip(part.batch([0, 5]), copy.batch([0, 5]), strict=True):
            assert ours.equal(theirs)


def test_a_part_of_a_part():
    part = Part(Part(ArraySplit(torch.arange(10), torch.arange(10)), [9, 7, 5]), torch.tensor([2, 0]))
    assert part.batch([0, 1])[0].tolist() == [5, 9]
    assert part.targets.tolist() == [5, 9]
    assert part.fixed
    assert not Part(DatasetSplit(Pairs()), [0]).fixed


def test_all_are_splits():
    split = ArraySplit(torch.arange(3), torch.arange(3))
    assert all(isinstance(s, Split) for s in (split, DatasetSplit(Pairs()), Part(split, [0])))
    assert not isinstance(Pairs(), Split)
