import dataclasses
import math

import cloudpickle
import numpy as np
import pytest
import torch

from ranksearch.evaluate import evaluate
from ranksearch.layers import find_layers
from ranksearch.space import layer_records, load_space
from ranksearch.tasks import build_task
from ranksearch.tasks.detection import task as tasks
from ranksearch.tasks.detection.ssd import MobileNetSSD

QUICK = dataclasses.replace(tasks.SMALL, epochs=1, width=0.1)


@pytest.fixture(scope="module", autouse=True)
def _few_scenes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "SCENES", {"train": 64, "calibration": 16, "validation": 24, "test": 16})
        yield


@pytest.fixture(scope="module")
def quick():
    return tasks.detection_task(tasks.train_small(QUICK), QUICK.image_size)


def test_the_factory_trains_once_and_gives_a_whole_task(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tasks, "SMALL", QUICK)
    first = build_task(model="ranksearch.tasks.detection:small_ssd_task")
    monkeypatch.setattr(tasks, "train_small", None)
    again = build_task(model="ranksearch.tasks.detection:small_ssd_task")
    assert again.fingerprint() == first.fingerprint()
    assert (first.model_name, first.data_name, first.metric_name) == (
        *("small_ssd_task", "scenes-digits", "average precision"),
    )
    assert len(list((tmp_path / "ranksearch").glob("ssd-*.safetensors"))) == 1


def test_the_published_net_is_a_task_that_learns_from_random_weights():
    task = tasks.ssd_task()
    assert sum(value.numel() for value in task.model.state_dict().values()) == 6_601_011
    assert task.example_input.shape == (1, 3, 300, 300)
    assert task.loss.negatives == math.inf


def test_training_is_decided_by_the_seed_and_learns(quick):
    again = tasks.train_small(QUICK).state_dict()
    assert all(value.equal(again[name]) for name, value in quick.model.state_dict().items())
    torch.manual_seed(QUICK.seed)
    untrained = MobileNetSSD(QUICK.width)
    inputs, objects = quick.train.batch(range(32))
    with torch.no_grad():
        before, after = (quick.loss(model.train()(inputs), objects) for model in (untrained, quick.model))
    quick.model.eval()
    assert after < before


def test_it_is_scored_and_travels(quick):
    score = evaluate(quick.model, quick.validation, quick.metric)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert cloudpickle.loads(cloudpickle.dumps(quick)).fingerprint() == quick.fingerprint()


def test_splits_share_no_picture():
    seen = [
        {picture.numpy().tobytes() for picture in scenes.pictures} for scenes in tasks._scenes("digits", 96).values()
    ]
    assert not any(one & other for i, one in enumerate(seen) for other in seen[:i])


def test_pictures_of_another_set(tmp_path):
    """MNIST's own files, made here."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 8)):
        pixels = generator.integers(1, 256, (count, 28, 28), dtype=np.uint8)
        header = [2051, count, 28, 28], [2049, count]
        for name, numbers, body in (
            (f"{part}-images-idx3-ubyte", header[0], pixels),
            (f"{part}-labels-idx1-ubyte", header[1], np.arange(count, dtype=np.uint8) % 10),
        ):
            (folder / name).write_bytes(np.array(numbers, ">i4").tobytes() + body.tobytes())
    task = tasks.detection_task(MobileNetSSD(0.1), 96, pictures=f"mnist:{tmp_path}")
    assert task.data_name == "scenes-mnist"
    assert max(max(picture.shape) for picture in task.train.pictures) == 28


def test_the_space_searches_every_kind_of_layer_of_it_but_the_stem_and_the_depthwise():
    found = find_layers(MobileNetSSD(), torch.zeros(1, 3, 300, 300))
    records = {record.name: record for record in layer_records(load_space("fastfaces"), found)}
    for name, record in records.items():
        methods = {option.choice.method for option in record.options[:-1]}
        if "_headers." in name or name in {f"extras.{i}.2" for i in range(4)}:
            assert methods == {"spatial_svd"}, name
        elif name.startswith("base_net.") and name.endswith(".0"):
            assert methods == set(), name  # the stem, and what is depthwise
        else:
            assert methods == {"svd"}, name
