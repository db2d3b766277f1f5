import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from ranksearch.errors import DataError
from ranksearch.tasks import load_data
from ranksearch.tasks.sources.digits import _scans
from tests.tasks.usage import refuses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cifar:./data", ["'cifar:./data'", "did you mean 'cifar10'?", "npz:FILE"]),
        ("digit", ["'digit'", "did you mean 'digits'?"]),
        ("cifra10:data", ["'cifra10'", "did you mean 'cifar10'?"]),
        ("", ["''", "digits"]),
        ("npz", ["npz:FILE"]),
        ("mnist:", ["mnist:ROOT"]),
        ("digits:./x", ["just 'digits'"]),
        ("sets:tensorz", ["'tensorz'", "did you mean 'tensors'?"]),
        ("set:tensors", ["no module named 'set'", "did you mean 'sets'?"]),
        ("set.py:tensors", ["no file 'set.py'", "did you mean 'sets.py'?"]),
        ("nets:broken", ["nets:broken raised ValueError: first line second line"]),
    ],
)
def test_unknown_data(user_folder, text, words):
    with refuses(DataError, *words):
        load_data(text)


def test_digits_are_not_normalised_pixel_by_pixel():
    with refuses(DataError, "'pixel'", "npz", "'dataset'"):
        load_data("digits", normalize="pixel")


def test_digits_are_sklearns_scans_each_in_one_split_only():
    images, labels = _scans()
    pixels, expected = sklearn_digits(return_X_y=True)
    assert labels.tolist() == expected.tolist()
    # bilinear enlarging by two keeps the mean of an image but for its border
    ours = images.float().mean((1, 2, 3)) / 255
    theirs = torch.from_numpy(pixels).float().mean(1) / 16
    assert (ours - theirs).abs().max() < 0.03
    data = load_data("digits")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 997,
        "calibration": 512,
        "validation": 2000,
        "test": 1360,
    }
    assert (data.num_classes, data.input_shape) == (10, (1, 16, 16))
    counts = {name: split.targets.bincount() for name, split in data.splits.items()}
    scans = counts["train"] + counts["calibration"] // 4 + counts["validation"] // 5 + counts["test"] // 5
    assert scans.tolist() == labels.bincount().tolist()


def test_digits_do_not_move():
    """The example was trained on its train split: neither seed nor process may move a scan into another one."""
    first, again = (load_data("digits", seed=seed) for seed in (0, 1))
    for name, split in first.splits.items():
        other = again.splits[name]
        assert split.inputs.equal(other.inputs)
        assert split.targets.equal(other.targets)
    assert first.train.targets[:10].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 0]


def test_validation_scans_are_not_saturated_views():
    data = load_data("digits")
    views = data.validation.inputs.view(5, 400, -1)
    assert not any(views[0].equal(view) for view in views[1:])
    assert data.validation.targets.view(5, 400).unique(dim=0).shape[0] == 1


def test_augmented_digits_look_like_validation():
    """Training draws the same kind of view as validation holds: same mean and deviation, black where nothing is."""
    data = load_data("digits")
    images, _ = data.train.batch(range(997))
    augmented = data.augment(images, torch.Generator().manual_seed(0))
    held_out, _ = data.validation.batch(range(2000))
    clipped = augmented.clamp(held_out.min(), held_out.max())
    assert abs(clipped.mean() - held_out.mean()) < 0.03
    assert abs(clipped.std() - held_out.std()) < 0.03
