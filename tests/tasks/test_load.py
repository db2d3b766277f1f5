import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ranksearch.errors import ConfigError, DataError, ModelError
from ranksearch.evaluate import evaluate
from ranksearch.tasks import build_task, task_from
from ranksearch.tasks.example import ExampleNet
from tests.tasks.usage import refuses

TASK = """
import torch
from ranksearch.tasks import ArraySplit, Task
from torch.nn.functional import mse_loss

def minus_error(outputs, targets):
    return -(outputs - targets).square().mean(1)

def make():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    data = ArraySplit(torch.rand(20, 4), torch.rand(20, 2))
    return Task(model=model, train=data, calibration=data, validation=data, loss=mse_loss, metric=minus_error,
                metric_name="minus error", example_input=torch.rand(1, 4), model_name="line", data_name="rand")
"""


def test_a_users_model_and_data(user_folder):
    task = build_task(model="nets:make", data="sets.py:datasets", seed=3)
    assert (task.model_name, task.data_name, task.metric_name) == ("make", "datasets", "accuracy")
    assert task.example_input.shape == (1, 1, 16, 16)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 90,
        "calibration": 10,
        "validation": 40,
        "test": 30,
    }
    again = build_task(model="nets.py:make", data="sets:datasets", seed=3)
    assert again.fingerprint() == task.fingerprint()
    assert (
        build_task(model="nets:make", data="sets:tensors", seed=4).fingerprint()["data"] != task.fingerprint()["data"]
    )
    assert evaluate(task.model, task.validation, task.metric).num_examples == 40


def test_torchvision_models_take_their_shape_from_the_data(user_folder):
    (user_folder / "big.py").write_text(
        "import torch\ndef make(): return tuple((torch.rand(20, 1, 64, 64), torch.arange(20) % 4) for _ in range(2))\n"
    )
    task = build_task(model="torchvision:squeezenet1_1", data="big:make")
    assert task.model_name == "squeezenet1_1"
    assert task.model(task.example_input).shape == (1, 4)


def test_weights_are_put_in(user_folder):
    weights = {name: torch.full_like(value, 0.25) for name, value in build_task(
        model="nets:make", data="sets:tensors").model.state_dict().items()}  # fmt: skip
    save_file(weights, "w.safetensors")
    task = build_task(model="nets:make", data="sets:tensors", weights="w.safetensors")
    assert all((value == 0.25).all() for value in task.model.state_dict().values())


def test_a_metric_of_ones_own(user_folder):
    (user_folder / "scores.py").write_text("def half(outputs, targets): return 0.5\n")
    task = build_task(model="nets:make", data="sets:tensors", metric="scores:half")
    assert task.metric_name == "scores:half"
    assert evaluate(task.model, task.validation, task.metric).value == 0.5


@pytest.mark.parametrize("place", ["whole", "whole.py"])
def test_a_factory_may_bring_everything(user_folder, place):
    (user_folder / "whole.py").write_text(TASK)
    task = build_task(model=f"{place}:make")
    assert (task.model_name, task.data_name, task.metric_name) == ("line", "rand", "minus error")
    save_file({"weight": torch.zeros(2, 4), "bias": torch.ones(2)}, "w.safetensors")
    changed = build_task(model=f"{place}:make", weights="w.safetensors", metric=f"{place}:minus_error")
    assert changed.model(torch.rand(1, 4)).tolist() == [[1, 1]]
    assert changed.metric_name == f"{place}:minus_error"


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (DataError, ["no data given", "'nets:make_ten'"], {"model": "nets:make_ten"}),
        (DataError, ["no data given"], {"model": "torchvision:resnet18"}),
        (DataError, ["brings its own data"], {"model": "whole:make", "data": "sets:tensors"}),
        (ModelError, ["'mnist:x'", "'digits'"], {"data": "mnist:x"}),
        (ModelError, ["'mnist:x'", "'digits'"], {"model": "example", "data": "mnist:x"}),
        (ConfigError, ["'datset'", "did you mean 'dataset'?"], {"normalize": "datset"}),
        (DataError, ["'none'", "'dataset'"], {"normalize": "none"}),
        (ConfigError, ["'scores'"], {"model": "nets:make", "data": "sets:tensors", "metric": "scores"}),
        (ModelError, ["no weights file"], {"model": "nets:make", "data": "sets:tensors", "weights": "w.pt"}),
        (ModelError, ["no weights file"], {"weights": "w.pt"}),
        (ModelError, ["gave a int"], {"model": "nets:number", "data": "sets:tensors"}),
        (ModelError, ["images (C, H, W)"], {"model": "torchvision:resnet18", "data": "lines:make"}),
        (ModelError, ["does not run", "(1, 16, 8)"], {"model": "nets:make_ten", "data": "sets:wrong_shape"}),
        (DataError, ["label 14", "10 classes, 0 to 9"], {"model": "nets:make_ten", "data": "sets:out_of_range"}),
        (ModelError, ["'resnet81'"], {"model": "torchvision:resnet81", "data": "sets:tensors"}),
        (ModelError, ["NaN"], {"model": "nets:make", "data": "sets:tensors", "weights": "nan.safetensors"}),
        (ModelError, ["NaN"], {"model": "whole:make", "weights": "nan_line.safetensors"}),
        (ModelError, ["gives (1,)", "ranksearch.Task"], {"model": "flat:make", "data": "sets:tensors"}),
    ],
)
def test_what_cannot_be_a_task(user_folder, error, words, arguments):
    (user_folder / "whole.py").write_text(TASK)
    (user_folder / "lines.py").write_text(
        "import torch\ndef make(): return tuple((torch.rand(20, 4), torch.arange(20)) for _ in range(2))\n"
    )
    (user_folder / "flat.py").write_text(
        "from torch import nn\nclass Flat(nn.Module):\n"
        "    def forward(self, x): return x.mean((1, 2, 3))\n\ndef make(): return Flat()\n"
    )
    state = {"layers.1.weight": torch.full((10, 256), torch.nan), "layers.1.bias": torch.zeros(10)}
    save_file(state, "nan.safetensors")
    save_file({"weight": torch.full((2, 4), torch.nan), "bias": torch.zeros(2)}, "nan_line.safetensors")
    before = sorted(p.name for p in user_folder.iterdir() if p.name != "__pycache__")
    with refuses(error, *words):
        build_task(**arguments)
    assert sorted(p.name for p in user_folder.iterdir() if p.name != "__pycache__") == before


def test_from_python_the_model_is_copied(net):
    net.train()
    pair = torch.rand(20, 1, 16, 16), torch.arange(20) % 10
    task = task_from(net, (pair, pair))
    assert task.model is not net
    assert net.training
    assert (task.model_name, task.data_name) == ("ExampleNet", "data")
    assert task.fingerprint()["weights"] == task_from(copy.deepcopy(net), (pair, pair)).fingerprint()["weights"]
    assert task_from(task) is task


def test_from_python_a_metric_leaves_a_task_as_it_was(net):
    pair = torch.rand(20, 1, 16, 16), torch.arange(20) % 10
    task = task_from(net, (pair, pair))
    changed = task_from(task, metric=lambda outputs, targets: 0.5)
    assert changed.metric(None, None) == 0.5
    assert task.metric_name == "accuracy"
    assert changed.metric_name != "accuracy"


@pytest.mark.parametrize(
    ("error", "words", "model", "data"),
    [
        (ModelError, ["a str", "torch.nn.Module"], "resnet18", "digits"),
        (DataError, ["no data given"], ExampleNet(4), None),
        (DataError, ["'digitz'", "did you mean 'digits'?"], ExampleNet(4), "digitz"),
        (ModelError, ["does not run"], nn.Conv2d(3, 4, 3), "digits"),
    ],
)
def test_from_python_what_cannot_be_a_task(error, words, model, data):
    with refuses(error, *words):
        task_from(model, data)


def test_from_python_a_task_has_its_data(net):
    pair = torch.rand(20, 1, 16, 16), torch.arange(20) % 10
    with refuses(DataError, "its own data"):
        task_from(task_from(net, (pair, pair)), "digits")
