"""Dense models trained from nothing: what decides the result, what is kept, and what is refused."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranksearch.errors import ConfigError, ModelError
from ranksearch.evaluate import evaluate
from ranksearch.settings import Settings
from ranksearch.tasks import ArraySplit, build_task
from ranksearch.tasks import trained as module
from ranksearch.tasks.trained import LEARNING_RATES, SCHEDULES, TrainRecipe, fit, trained
from tests.study.conftest import study_record
from tests.tasks.usage import refuses
from tests.toy import ToyNet, toy_task

QUICK = TrainRecipe(epochs=2, batch_size=32)

USER = """
import numpy as np
import torch
from torch import nn

def sides(n, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=n)
    images = generator.normal(0, 1, (n, 2, 6, 6)).astype("float32")
    images[labels == 1, :, :3] += 0.7
    return torch.from_numpy(images), torch.from_numpy(labels)

def data():
    return sides(400, 0), sides(200, 1)

def net(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(128, num_classes))
"""


@pytest.fixture
def untrained():
    torch.manual_seed(1)
    return toy_task(ToyNet(width=8))


def score(task) -> float:
    return evaluate(task.model, task.validation, task.metric).value


def weights(task) -> str:
    return task.fingerprint()["weights"]


def test_a_model_learns_and_everything_else_stays(untrained, tmp_path):
    before, state = copy.deepcopy(untrained.model.state_dict()), torch.get_rng_state()
    found = trained(untrained, replace(QUICK, epochs=4), cache_dir=tmp_path)
    assert score(found) > score(untrained) + 0.2
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(untrained.model.state_dict()[name]) for name, value in before.items())
    assert not any(part.training for part in found.model.modules())
    assert found.model.conv1.weight.is_contiguous()


def test_it_is_trained_once_for_all_that_decides_it(untrained, tmp_path, monkeypatch):
    trainings = []
    monkeypatch.setattr(module, "_train", lambda task, *_: trainings.append(1) or copy.deepcopy(task.model))
    other = copy.deepcopy(untrained)
    other.model.head.bias.data += 1
    fewer = replace(untrained, train=ArraySplit(*untrained.train.batch(range(64))))
    for task, recipe, seed in [
        (untrained, QUICK, 0),
        (untrained, replace(QUICK, epochs=3), 0),
        (untrained, replace(QUICK, optimizer="adam"), 0),
        (untrained, QUICK, 1),
        (other, QUICK, 0),
        (fewer, QUICK, 0),
    ]:
        known = len(trainings)
        first = trained(task, recipe, seed=seed, cache_dir=tmp_path)
        assert len(trainings) == known + 1
        assert weights(trained(task, recipe, seed=seed, cache_dir=tmp_path)) == weights(first)
        assert len(trainings) == known + 1


def test_the_seed_decides_order_augmentation_and_dropout_and_nothing_outside_does(untrained, tmp_path):
    task = replace(untrained, model=nn.Sequential(nn.Dropout(0.2), untrained.model))
    task.augment = lambda images, generator: images + 0.1 * torch.randn(images.shape, generator=generator)
    found = []
    for place, seed in enumerate((0, 0, 1)):
        torch.manual_seed(place)
        found.append(weights(trained(task, QUICK, seed=seed, cache_dir=tmp_path / str(place))))
    assert found[0] == found[1] != found[2]
    task.augment = None
    assert weights(trained(task, QUICK, cache_dir=tmp_path / "none")) != found[0]


def test_only_the_train_split_is_seen(untrained, tmp_path):
    task = replace(untrained)
    key = task.fingerprint()
    task.fingerprint = lambda: key  # type: ignore[method-assign]
    task.calibration = task.validation = task.test = None  # type: ignore[assignment]
    module._train(task, QUICK, 0)


def test_weights_that_are_tied_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(144, 144), nn.Linear(144, 144), nn.Linear(144, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.head(self.second(self.first(x.flatten(1)).relu()).relu())

    task = toy_task(Tied())
    for _ in range(2):  # from training, from the cache
        model = trained(task, QUICK, cache_dir=tmp_path).model
        assert model.first.weight is model.second.weight
        assert not model.first.weight.equal(task.model.first.weight)


@pytest.mark.parametrize("optimizer", LEARNING_RATES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_recipe_trains(untrained, optimizer, schedule):
    model = copy.deepcopy(untrained.model)
    recipe = replace(QUICK, optimizer=optimizer, schedule=schedule, batch_size=10_000)
    fit(model, untrained.train, recipe, loss=untrained.loss)
    assert not model.conv2.weight.equal(untrained.model.conv2.weight)


def rates(recipe: TrainRecipe, steps: int) -> list[float]:
    optimizer = module._optimizer(nn.Linear(2, 2), recipe)
    schedule = module._schedule(optimizer, recipe, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_learning_rates():
    step = rates(TrainRecipe(epochs=1, schedule="step", learning_rate=0.1), 100)
    assert [step[i] for i in (0, 29, 30, 59, 60, 89, 90, 99)] == pytest.approx(
        [0.1] * 2 + [0.01] * 2 + [1e-3] * 2 + [1e-4] * 2
    )
    cycle = rates(TrainRecipe(epochs=1, learning_rate=0.2), 100)
    assert max(cycle) == pytest.approx(0.2)
    assert cycle.index(max(cycle)) == pytest.approx(30, abs=2)
    assert cycle[0] < 0.02
    assert cycle[-1] < 1e-4
    assert set(rates(TrainRecipe(epochs=1, optimizer="adam", schedule="constant"), 10)) == {0.001}


def test_a_loss_that_is_not_finite_is_an_error_and_nothing_is_kept(untrained, tmp_path):
    untrained.loss = lambda outputs, targets: outputs.sum() * torch.inf
    with refuses(ModelError, "the loss was", "epoch 1", "learning_rate"):
        trained(untrained, QUICK, cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


# --- the recipe's text -----------------------------------------------------------------------------------------------


@given(
    st.builds(
        TrainRecipe,
        epochs=st.integers(1, 500),
        optimizer=st.sampled_from(sorted(LEARNING_RATES)),
        learning_rate=st.floats(1e-6, 10),
        batch_size=st.integers(1, 1024),
        weight_decay=st.floats(0, 1),
        schedule=st.sampled_from(SCHEDULES),
    )
)
def test_a_recipe_is_read_as_it_is_written(recipe):
    pairs = [f"{field.name}={getattr(recipe, field.name)}" for field in fields(recipe)]
    assert TrainRecipe.parse(",".join(pairs)) == TrainRecipe.parse(" , ".join(reversed(pairs))) == recipe


def test_a_number_is_epochs():
    assert TrainRecipe.parse("7") == TrainRecipe.parse("epochs=7") == TrainRecipe(epochs=7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["epochs is ''", "an integer"]),
        ("two", ["epochs is 'two'", "an integer"]),
        ("0", ["epochs is 0", "1 or more"]),
        ("optimizer=adam", ["epochs=N"]),
        ("epochs=5,optimiser=adam", ["'optimiser'", "did you mean 'optimizer'?", "schedule"]),
        ("epochs=5,optimizer=lamb", ["'lamb'", "sgd, adam"]),
        ("epochs=5,schedule=cosine", ["'cosine'", "onecycle, step, constant"]),
        ("epochs=5,learning_rate=fast", ["learning_rate is 'fast'", "a number"]),
        ("epochs=5,learning_rate=0", ["learning_rate is 0.0", "more than 0"]),
        ("epochs=5,batch_size=0", ["batch_size is 0", "1 or more"]),
        ("epochs=5,weight_decay=-1", ["weight_decay is -1.0", "0 or more"]),
    ],
)
def test_what_is_no_recipe(text, words):
    with refuses(ConfigError, *words):
        TrainRecipe.parse(text)


# --- from a command --------------------------------------------------------------------------------------------------


@pytest.fixture
def user(user_folder, monkeypatch):
    (user_folder / "mine.py").write_text(USER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_folder / "cache"))
    return {"model": "mine:net", "data": "mine.py:data"}


def test_a_named_model_is_trained_first(user):
    plain, found = build_task(**user), build_task(**user, train="3")
    assert plain.model[0].in_channels == 2
    assert score(found) > score(plain) + 0.2
    assert weights(build_task(**user, train="3")) == weights(found)
    assert weights(build_task(**user, train="epochs=3,optimizer=adam")) != weights(found)


def test_random_weights_are_those_of_the_seed(user):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, again, other = (weights(build_task(**user, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "w.safetensors"}, ["'3'", "'w.safetensors'", "one of them"]),
        ({"model": "example", "data": None}, ["'3'", "the example comes trained"]),
        ({"model": None, "data": None}, ["'3'", "the example comes trained"]),
        ({"train": "3x"}, ["'3x'"]),
    ],
)
def test_where_nothing_is_to_be_trained(user, changes, words):
    with refuses(ConfigError, *words):
        build_task(**{**user, "train": "3", **changes})


def test_a_study_remembers_how_its_model_was_trained(user, user_folder):
    (user_folder / "ranksearch.toml").write_text("train = 3\n")
    read = Settings.read(user)
    assert read.train == "3"
    study = replace(study_record(), settings=read.task_settings())
    assert weights(Settings.of_study(study, {}).task()) == weights(build_task(**user, train="3"))
