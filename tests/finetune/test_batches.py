"""What a training batch has been through."""

from dataclasses import replace

import pytest
import torch

from ranksearch.errors import ConfigError
from ranksearch.finetune import fixed_batches
from ranksearch.records import FinetuneConfig
from ranksearch.tasks.augment import Contrast
from tests.toy import toy_task

CPU = torch.device("cpu")


def shifted(images, generator):
    return images.roll(int(torch.randint(1, 9, (1,), generator=generator)), -1)


@pytest.fixture
def task():
    return replace(toy_task(), augment=shifted)


def batches(task, augmentation):
    config = FinetuneConfig(steps=3, batch_size=16, augmentation=augmentation)
    return [batch.inputs for batch in fixed_batches(task, None, config, 7, CPU)]


def test_none_gives_the_pictures_as_they_are(task):
    stored = {tuple(image.flatten().tolist()) for image in task.train.batch(range(len(task.train)))[0]}
    assert all(tuple(image.flatten().tolist()) in stored for batch in batches(task, "none") for image in batch)
    assert not any(tuple(image.flatten().tolist()) in stored for batch in batches(task, "data") for image in batch)


def test_contrast_comes_after_the_data_s_own(task):
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(len(task.train), generator=generator)
    images, _ = task.train.batch(order[:16])
    expected = Contrast()(shifted(images, generator), generator)
    torch.testing.assert_close(batches(task, "contrast")[0], expected)


def test_contrast_wants_pictures(task):
    flat = replace(task, augment=lambda images, _: images.flatten(1))
    with pytest.raises(ConfigError, match="no images"):
        batches(flat, "contrast")
