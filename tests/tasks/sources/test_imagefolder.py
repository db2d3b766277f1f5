import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights

from ranksearch.errors import DataError
from ranksearch.tasks import load_data
from tests.tasks.usage import refuses


def write(folder, num, classes=("ant", "bee"), mode="RGB", size=(300, 260)):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(num):
            pixels = np.random.default_rng(100 * label + i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_splits(tmp_path, validation):
    for name, num in (("train", 10), (validation, 2), ("test", 1)):
        write(tmp_path / name, num)
    data = load_data(f"imagefolder:{tmp_path}")
    assert [len(split) for split in data.splits.values()] == [18, 2, 4, 2]
    assert (data.name, data.num_classes, data.input_shape) == (tmp_path.name, 2, (3, 224, 224))
    assert data.validation.batch([0, 3])[1].tolist() == [0, 1]


def test_one_folder_is_cut(tmp_path):
    write(tmp_path, 10, mode="L")
    data = load_data(f"imagefolder:{tmp_path}")
    assert [len(split) for split in data.splits.values()] == [16, 2, 2]
    assert data.test is None
    images, _ = data.train.batch(range(16))
    assert images.shape == (16, 3, 224, 224)
    assert images.mean((0, 2, 3)).abs().max() < 0.1
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_the_transform_is_torchvisions_for_evaluation(tmp_path):
    write(tmp_path, 2)
    data = load_data(f"imagefolder:{tmp_path}", normalize="imagenet")
    with Image.open(data.train.split.dataset.samples[0][0]) as image:
        expected = ResNet18_Weights.DEFAULT.transforms()(image.convert("RGB"))
    torch.testing.assert_close(data.train.split.batch([0])[0][0], expected)


def test_images_in_files_are_not_normalised_pixel_by_pixel(tmp_path):
    write(tmp_path, 10)
    with refuses(DataError, "'pixel'", "npz", "'dataset'"):
        load_data(f"imagefolder:{tmp_path}", normalize="pixel")


def test_unreadable_images_are_named(tmp_path):
    write(tmp_path, 10)
    (tmp_path / "ant" / "3.png").write_bytes(b"no image")
    with refuses(DataError, "3.png", "cannot be read"):
        load_data(f"imagefolder:{tmp_path}")


def test_no_folder(tmp_path):
    with refuses(DataError, "no folder", "nowhere", "ROOT/CLASS/image"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}")


def test_no_images(tmp_path):
    with refuses(DataError, str(tmp_path), "no images"):
        load_data(f"imagefolder:{tmp_path}")


def test_a_class_without_images(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "cat").mkdir()
    with refuses(DataError, "no images", "cat"):
        load_data(f"imagefolder:{tmp_path}")


def test_classes_must_agree(tmp_path):
    write(tmp_path / "train", 2)
    write(tmp_path / "val", 2, classes=("ant", "cow"))
    with refuses(DataError, "train and validation", "bee", "cow"):
        load_data(f"imagefolder:{tmp_path}")
