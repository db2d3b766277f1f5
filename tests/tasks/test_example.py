import dataclasses
import threading

import pytest
import torch
from torch import nn

from ranksearch.evaluate import evaluate
from ranksearch.tasks import ArraySplit, build_task, example, load_data
from ranksearch.tasks.example import RECIPE, ExampleNet, example_model, train_example
from ranksearch.tasks.metrics import accuracy
from ranksearch.tasks.sources import digits

SMALL = dataclasses.replace(RECIPE, channels=8, epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The cache folder after a first use."""
    folder = tmp_path_factory.mktemp("cache")
    build_task(cache_dir=folder)
    return folder


def test_it_recognises_digits_and_views_are_not_saturated(trained):
    """Held-out scans as they are: nearly all. Their views: about 96 %, so that a loss shows."""
    task = build_task(cache_dir=trained)
    images, labels = digits._scans()
    shown = {name: task.splits[name] for name in ("validation", "test")}
    for split in shown.values():
        assert 0.94 <= evaluate(task.model, split, task.metric).value <= 0.98
    held_out = digits.split_off(ArraySplit(images, labels), list(digits.SCANS.values()), digits.SEED)[2:]
    indices = torch.cat([part.indices for part in held_out])
    scans = ArraySplit(images[indices], labels[indices], task.train.mean, task.train.std)
    assert len(scans) == 672
    assert evaluate(task.model, scans, accuracy).value >= 0.985


def test_the_task(trained):
    task = build_task(cache_dir=trained)
    assert (task.model_name, task.data_name, task.metric_name) == ("example", "digits", "accuracy")
    assert build_task(model="example", data="digits", cache_dir=trained).fingerprint() == task.fingerprint()
    assert not any(module.training for module in task.model.modules())
    assert sum(p.numel() for p in task.model.parameters()) == pytest.approx(460_000, rel=0.05)


def test_it_is_trained_once(trained, monkeypatch):
    monkeypatch.setattr(example, "train_example", None)
    (file,) = trained.glob("*.safetensors")
    before = file.stat().st_mtime_ns
    build_task(cache_dir=trained)
    assert file.stat().st_mtime_ns == before
    assert {p.name for p in trained.iterdir()} == {file.name, f"{file.name}.lock"}


def test_its_weights_may_be_ones_own(trained, tmp_path):
    torch.save(ExampleNet().state_dict(), tmp_path / "w.pt")
    weights = build_task(weights=str(tmp_path / "w.pt"), cache_dir=trained).fingerprint()["weights"]
    assert weights != build_task(cache_dir=trained).fingerprint()["weights"]


def test_the_seed_decides_and_nothing_outside_does():
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train_example(SMALL)
    assert torch.get_rng_state().equal(state)
    torch.set_num_threads(2)
    torch.manual_seed(6)
    again, other = train_example(SMALL), train_example(dataclasses.replace(SMALL, seed=1))
    assert all(value.equal(again.state_dict()[name]) for name, value in first.state_dict().items())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert not first.head.weight.equal(other.head.weight)


@pytest.fixture
def quick(monkeypatch):
    """Training that takes no time, and how often it was done."""
    trainings = []

    def train():
        trainings.append(threading.get_ident())
        return ExampleNet()

    monkeypatch.setattr(example, "train_example", train)
    return trainings


def test_of_many_at_once_one_trains(quick, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(example_model(tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(quick) == 1
    assert len(found) == 6
    assert all(model.head.weight.equal(found[0].head.weight) for model in found)


@pytest.mark.parametrize("content", [b"", b"damaged", bytes(100)])
def test_a_damaged_cache_is_made_anew(quick, tmp_path, content):
    example_model(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(content)
    trained = example_model(tmp_path)
    assert len(quick) == 2
    assert example_model(tmp_path).head.weight.equal(trained.head.weight)
    assert len(quick) == 2


@pytest.mark.parametrize("change", [{"epochs": 21}, {"version": 2}, {"seed": 3}])
def test_another_recipe_is_another_file(quick, tmp_path, monkeypatch, change):
    example_model(tmp_path)
    monkeypatch.setattr(example, "RECIPE", dataclasses.replace(RECIPE, **change))
    example_model(tmp_path)
    assert len(quick) == 2


def test_a_cache_that_cannot_be_written_is_done_without(quick, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert isinstance(example_model(tmp_path / "file"), nn.Module)
    assert len(quick) == 1
    assert "cannot be cached" in caplog.text


def test_the_cache_is_the_users(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    example_model()
    assert list((tmp_path / "ranksearch").glob("*.safetensors"))


def test_training_draws_views_of_the_training_scans_alone(monkeypatch):
    data = load_data("digits")
    for name in ("calibration", "validation", "test"):
        data.splits[name].inputs = None
    monkeypatch.setattr(example, "load_digits", lambda normalize: data)
    train_example(SMALL)
