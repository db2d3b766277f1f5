import pickle

import numpy as np
import pytest
import torch

from ranksearch.errors import ConfigError, DataError
from ranksearch.tasks import load_data
from ranksearch.tasks.augment import CropFlip
from tests.tasks.usage import refuses


def images(n, shape=(3, 6, 6), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n, classes=5):
    return np.arange(n) % classes


def arrays(**changes):
    found = {"x_train": images(100), "y_train": labels(100), "x_test": images(30, seed=1), "y_test": labels(30)}
    return {name: array for name, array in (found | changes).items() if array is not None}


@pytest.fixture
def load(tmp_path):
    def load(normalize="dataset", seed=0, **changes):
        np.savez(tmp_path / "small.npz", **arrays(**changes))
        return load_data(f"npz:{tmp_path / 'small.npz'}", normalize=normalize, seed=seed)

    return load


def everything(split):
    return split.batch(range(len(split)))


def test_splits_are_cut_from_train_and_test_is_the_files_own(load):
    data = load()
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 80,
        "calibration": 10,
        "validation": 10,
        "test": 30,
    }
    assert (data.name, data.num_classes, data.input_shape) == ("small", 5, (3, 6, 6))
    assert torch.equal(everything(data.test)[1], torch.from_numpy(labels(30)))
    cut = torch.cat([everything(data.splits[name])[0] for name in ("train", "calibration", "validation")])
    whole = np.sort(images(100).reshape(100, -1).astype(float).sum(1))
    mean, std = np.array(data.test.mean), np.array(data.test.std)
    pixels = (cut.numpy() * std[:, None, None] + mean[:, None, None]) * 255
    np.testing.assert_allclose(np.sort(pixels.reshape(100, -1).sum(1)), whole, rtol=1e-5)


def test_sizes_are_capped(load):
    data = load(
        x_train=images(60_000, (1, 1, 2)), y_train=labels(60_000), x_test=images(3, (1, 1, 2)), y_test=labels(3)
    )
    assert [len(split) for split in data.splits.values()] == [60_000 - 1024 - 5000, 1024, 5000, 3]


def test_a_validation_split_of_its_own_is_kept(load):
    data = load(x_validation=images(7, seed=2), y_validation=labels(7))
    assert [len(split) for split in data.splits.values()] == [90, 10, 7, 30]
    assert data.validation.inputs.numpy().tolist() == images(7, seed=2).tolist()


def test_the_seed_moves_calibration_and_validation(load):
    first, again, other = (everything(load(seed=seed).validation)[0] for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(
    ("stored", "as_read"),
    [
        ((6, 6, 3), (3, 6, 6)),
        ((6, 5, 3), (3, 6, 5)),
        ((3, 6, 5), (3, 6, 5)),
        ((6, 6), (1, 6, 6)),
        ((6, 3, 3), (3, 6, 3)),
        ((13, 6, 6), (13, 6, 6)),
        ((6, 6, 13), (13, 6, 6)),
        ((1, 6, 6), (1, 6, 6)),
    ],
)
def test_channels_are_found(load, stored, as_read):
    pixels = images(100, stored)
    data = load(normalize="none", x_train=pixels, x_test=images(30, stored))
    assert data.input_shape == as_read
    moved = pixels if stored[0] == as_read[0] else np.moveaxis(pixels, -1, 1) if len(stored) == 3 else pixels[:, None]
    assert data.train.split.inputs.numpy().tolist() == moved.tolist()


def test_normalisation_by_the_training_images(load):
    data = load()
    pixels = images(100) / 255
    np.testing.assert_allclose(data.test.mean, pixels.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(data.test.std, pixels.std((0, 2, 3)), rtol=1e-9)
    expected = (images(30, seed=1) / 255 - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(everything(data.test)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_normalisation_of_every_pixel_by_itself(load, dtype):
    scale = 255 if dtype is np.uint8 else 1
    data = load(
        normalize="pixel",
        x_train=images(5000).astype(dtype),
        y_train=labels(5000),
        x_test=images(30, seed=1).astype(dtype),
    )
    pixels = images(5000).astype(dtype) / scale
    expected = (images(30, seed=1) / scale - pixels.mean(0)) / pixels.std(0)
    np.testing.assert_allclose(everything(data.test)[0].numpy(), expected, atol=2e-5)
    restored = pickle.loads(pickle.dumps(data.test))
    assert everything(restored)[0].equal(everything(data.test)[0])


def test_a_pixel_that_never_varies_is_only_centred(load):
    pixels = images(100)
    pixels[:, :, 2, 3] = 9
    data = load(normalize="pixel", x_train=pixels, x_test=pixels[:30])
    normalised = everything(data.test)[0]
    assert normalised.isfinite().all()
    assert normalised[:, :, 2, 3].abs().max() < 1e-6


def test_augmentation_sees_images_before_their_pixels_are_normalised(load):
    x_train, x_test = (np.tile(np.arange(32, dtype=np.uint8)[:, None], (num, 3, 1, 32)) for num in (100, 30))
    x_train = x_train + images(100, (3, 32, 32)) % 8
    data = load(normalize="pixel", x_train=x_train, x_test=x_test)
    batch, _ = data.train.batch(range(40))
    mean, std = data.test.mean, data.test.std
    seen = data.augment(batch, torch.Generator().manual_seed(0)) * std + mean
    expected = CropFlip(padding=4, flip=True)(batch * std + mean, torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen, expected)
    pickle.loads(pickle.dumps(data.augment))  # it travels to the workers
    assert load(normalize="pixel").augment is None


def test_floats_are_normalised_in_their_own_unit(load):
    pixels = images(100).astype(np.float64)
    data = load(x_train=pixels, x_test=images(30).astype(np.float64))
    np.testing.assert_allclose(data.test.mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    assert everything(data.test)[0].dtype == torch.float32


def test_a_constant_channel_is_only_centred(load):
    data = load(x_train=np.full_like(images(100), 7), x_test=np.full_like(images(30), 7))
    assert everything(data.test)[0].abs().max() < 1e-6


@pytest.mark.parametrize(("normalize", "mean"), [("imagenet", (0.485, 0.456, 0.406)), ("none", ())])
def test_other_normalisations(load, normalize, mean):
    assert load(normalize=normalize).test.mean == mean


def test_cifar_like_images_are_augmented(load):
    shape = (32, 32, 3)
    data = load(x_train=images(100, shape), x_test=images(30, shape))
    assert data.augment == CropFlip(padding=4, flip=True)
    assert load().augment is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": images(0), "y_train": labels(0)}, ["x_train", "no examples", "at least 1"]),
        ({"x_test": images(0), "y_test": labels(0)}, ["x_test", "no examples"]),
        ({"x_train": images(2), "y_train": labels(2), "y_test": labels(30, 2)}, ["2 examples"]),
        ({"x_train": images(100, (3,))}, ["x_train", "(100, 3)", "(N, C, H, W)"]),
        ({"x_train": images(100, (7, 6, 5))}, ["x_train", "(100, 7, 6, 5)"]),
        ({"x_train": images(100, (3, 32, 3))}, ["x_train", "(100, 3, 32, 3)"]),
        ({"x_test": images(30, (3, 6, 5))}, ["test", "(3, 6, 5)", "(3, 6, 6)"]),
        ({"x_test": images(30).astype(np.float32)}, ["test", "float32", "uint8"]),
        ({"x_train": images(100).astype(np.int64)}, ["x_train", "int64", "uint8"]),
        ({"x_train": np.full((100, 3, 6, 6), np.nan)}, ["x_train", "NaN"]),
        ({"y_train": labels(99)}, ["y_train", "(99,)", "(100,)"]),
        ({"y_train": labels(100).astype(float)}, ["y_train", "float64", "integers"]),
        ({"y_train": labels(100) - 1}, ["label -1", "train", "0 to 3"]),
        ({"y_test": labels(30, 9)}, ["label 8", "test", "0 to 4"]),
        ({"y_test": None}, ["y_test", "x_train, y_train, x_test"]),
        ({"y_test": None, "y_tets": labels(30)}, ["y_test", "did you mean 'y_tets'?"]),
        ({"x_validation": images(7)}, ["y_validation"]),
        ({"x_train": np.array([{}] * 100)}, ["cannot be read"]),
    ],
)
def test_what_does_not_fit_is_refused(load, changes, words):
    with refuses(DataError, *words):
        load(**changes)


@pytest.mark.parametrize("shape", [(100, 1), (100,)])
def test_labels_may_be_a_column(load, shape):
    assert everything(load(y_train=labels(100).reshape(shape)).train)[1].dim() == 1


def test_imagenet_statistics_need_colour(load):
    with refuses(DataError, "imagenet", "3 channels", "have 1"):
        load(normalize="imagenet", x_train=images(100, (6, 6)), x_test=images(30, (6, 6)))


def test_an_unknown_normalisation(load):
    with refuses(ConfigError, "'imagnet'", "dataset, pixel, imagenet, none", "did you mean 'imagenet'?"):
        load(normalize="imagnet")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_unreadable_files(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with refuses(DataError, "x.npz", "cannot be read"):
        load_data(f"npz:{tmp_path / 'x.npz'}")


def test_a_damaged_archive(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays())
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[2000:2100] = bytes(100)
    (tmp_path / "x.npz").write_bytes(whole)
    with refuses(DataError, "x.npz", "cannot be read"):
        load_data(f"npz:{tmp_path / 'x.npz'}")


def test_a_single_array(tmp_path):
    np.save(tmp_path / "x.npy", images(3))
    with refuses(DataError, "x.npy", "single array"):
        load_data(f"npz:{tmp_path / 'x.npy'}")


def test_no_file(tmp_path):
    with refuses(DataError, "no file", "x.npz", "x_train"):
        load_data(f"npz:{tmp_path / 'x.npz'}")
