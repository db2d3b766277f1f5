import copy
import dataclasses
import math
import subprocess
import sys

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

from ranksearch.errors import DataError, ModelError
from ranksearch.tasks import ArraySplit, DatasetSplit, Split, Task
from ranksearch.tasks.classification import cross_entropy, distillation
from ranksearch.tasks.metrics import accuracy
from tests.tasks.usage import refuses


def split(n=6, seed=0):
    images = torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ArraySplit(images, torch.arange(n) % 10)


def made(net, **changes):
    parts = {
        "model": net,
        "train": split(100),
        "calibration": split(20, 1),
        "validation": split(30, 2),
        "test": split(30, 3),
        "loss": cross_entropy,
        "metric": accuracy,
        "metric_name": "accuracy",
        "example_input": torch.full((1, 1, 16, 16), 0.5),
        "distillation": distillation,
        "model_name": "net",
        "data_name": "rand",
    }
    return Task(**parts | changes)


def test_the_model_is_put_into_eval_mode(net):
    assert not any(module.training for module in made(net.train()).model.modules())


def test_making_a_task_changes_nothing_of_the_model_or_the_random_state(net):
    net = nn.Sequential(nn.Dropout(), net)
    example_input = torch.rand(1, 1, 16, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    made(net, example_input=example_input)
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


def test_test_may_be_missing(net):
    assert list(made(net, test=None).splits) == ["train", "calibration", "validation"]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, a, b):
        return self.linear(a + b).squeeze(1)


def regression(inputs, example_input):
    data = ArraySplit(inputs, torch.rand(5))
    return Task(
        model=TwoInputs(),
        train=data,
        calibration=data,
        validation=data,
        loss=mse_loss,
        metric=lambda outputs, targets: -mse_loss(outputs, targets),
        metric_name="minus mse",
        example_input=example_input,
        model_name="two",
        data_name="rand",
    )


def test_several_inputs():
    a, b = torch.rand(5, 3), torch.rand(5, 3)
    assert regression((a, b), (a[:1], b[:1])).fingerprint()["metric"] == "minus mse"
    assert regression({"b": b, "a": a}, {"a": a[:1], "b": b[:1]}).distillation is None


class LossOfTraining(nn.Module):
    """As detectors do, gives one thing for training and another for use."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return {"logits": logits} if self.training else logits


def test_loss_sees_outputs_of_training_and_metric_those_of_use():
    made(LossOfTraining(), loss=lambda outputs, targets: cross_entropy(outputs["logits"], targets))
    with refuses(DataError, "loss fails"):
        made(LossOfTraining())


def bad_split():
    class Short:
        def __len__(self):
            return 3

        def batch(self, indices):
            raise OSError("disk\ngone")

    return Short()


class Ragged(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        if len(x) > 1:
            raise ValueError("one at a time")
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (ModelError, {"model": lambda x: x}, ["a function", "torch.nn.Module"]),
        (ModelError, {"example_input": torch.rand(1, 3, 16, 16)}, ["does not run on its example input", "channels"]),
        (ModelError, {"example_input": torch.full((1, 1, 16, 16), math.nan)}, ["NaN"]),
        (ModelError, {"model": Ragged()}, ["two validation examples", "one at a time"]),
        (DataError, {"train": split(0)}, ["train split has no examples", "at least 1"]),
        (DataError, {"test": split(0)}, ["test split has no examples"]),
        (DataError, {"calibration": [1, 2]}, ["calibration split is a list", "batch(indices)"]),
        (DataError, {"validation": bad_split()}, ["validation examples cannot be read", "OSError: disk gone"]),
        (DataError, {"loss": lambda o, t: o}, ["loss gives shape (2, 10)", "a scalar"]),
        (DataError, {"loss": mse_loss}, ["loss fails"]),
        (DataError, {"metric": lambda o, t: o}, ["metric accuracy gives shape (2, 10)", "one score an example"]),
        (DataError, {"metric": lambda o, t: 1 / 0}, ["metric accuracy fails", "ZeroDivisionError"]),
        (DataError, {"metric": lambda o, t: None}, ["metric accuracy fails"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")  # mse_loss of logits and labels
def test_parts_that_do_not_work_together(net, error, changes, words):
    with refuses(error, *words):
        made(net, **changes)


def test_it_survives_pickling(net):
    task = made(net, metric=lambda outputs, targets: outputs.argmax(1) == targets)
    assert cloudpickle.loads(cloudpickle.dumps(task)).fingerprint() == task.fingerprint()


def nudged(net):
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.head.bias[3] += 1e-6
    return copied


def other_activation(net):
    copied = copy.deepcopy(net)
    copied.stem[2] = nn.LeakyReLU()
    return copied


CHANGES = {
    "weights": [
        lambda net: {"model": nudged(net)},
        lambda net: {"model": copy.deepcopy(net).double().float().half().float()},
    ],
    "model": [lambda net: {"model": other_activation(net)}],
    "data": [
        lambda net: {"validation": split(30, 9)},
        lambda net: {"test": None},
        lambda net: {"train": split(99)},
        lambda net: {"train": split(100, 9)},
        lambda net: {"validation": ArraySplit(split(30, 2).inputs, split(30).targets, (0.5,), (0.5,))},
        lambda net: {"validation": ArraySplit(split(30, 2).inputs, (split(30).targets + 1) % 10)},
    ],
    "metric": [lambda net: {"metric_name": "other"}],
}


@pytest.mark.parametrize(
    ("part", "change"), [(part, change) for part, changes in CHANGES.items() for change in changes]
)
def test_a_fingerprint_tells_what_differs(net, part, change):
    ours, theirs = made(net).fingerprint(), made(net, **change(net)).fingerprint()
    assert set(ours) == {"model", "weights", "data", "metric"}
    assert {name for name in ours if ours[name] != theirs[name]} == {part}


def test_a_fingerprint_tells_sizes_that_no_sample_shows(net):
    sizes = [ArraySplit(torch.zeros(n, 1, 16, 16), torch.zeros(n, dtype=torch.int64)) for n in (100, 101)]
    assert made(net, train=sizes[0]).fingerprint()["data"] != made(net, train=sizes[1]).fingerprint()["data"]


def test_a_fingerprint_is_the_same_in_every_process(net, tmp_path):
    net.activation = torch.nn.functional.relu
    net.extra_repr = lambda: repr(object())  # an address, another in each process
    task = made(net)
    (tmp_path / "task.pickle").write_bytes(cloudpickle.dumps(task))
    code = f"import cloudpickle; print(cloudpickle.load(open({str(tmp_path / 'task.pickle')!r}, 'rb')).fingerprint())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(task.fingerprint())


class Noisy(Dataset):
    """As a user's training data with augmentation of its own, by a random state that nobody else can fix."""

    source = torch.Generator()
    source.seed()

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.rand(1, 16, 16, generator=self.source), self.labels[i]


def test_a_users_random_training_views_do_not_change_the_fingerprint(net):
    labels = [i % 10 for i in range(50)]
    first, again, other = (
        made(net, train=DatasetSplit(Noisy(kept)), calibration=DatasetSplit(Noisy(kept[:9]))).fingerprint()
        for kept in (labels, labels, labels[::-1])
    )
    assert first == again
    assert first["data"] != other["data"]


def test_a_split_may_be_the_users_own(net):
    class Own:
        def __len__(self):
            return 4

        def batch(self, indices):
            return torch.zeros(len(indices), 1, 16, 16), torch.zeros(len(indices), dtype=torch.int64)

    assert isinstance(Own(), Split)
    assert dataclasses.replace(made(net), train=Own()).fingerprint()["data"]
