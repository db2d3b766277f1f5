import urllib.error
import urllib.request
import zipfile

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from ranksearch.errors import ModelError
from ranksearch.tasks.models import load_weights, model_of_factory, torchvision_model
from tests.tasks.usage import refuses


def filled(net, value):
    return {name: torch.full_like(tensor, value) for name, tensor in net.state_dict().items()}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def torch_save(content, path):
    torch.save(content, path)
    return path


WAYS = {
    "safetensors": lambda state, folder: save_file(state, folder / "w.safetensors") or folder / "w.safetensors",
    "state dict": lambda state, folder: torch_save(state, folder / "w.pt"),
    "checkpoint": lambda state, folder: torch_save({"state_dict": state, "epoch": 3}, folder / "w.pth"),
    "tutorial": lambda state, folder: torch_save({"model_state_dict": state, "epoch": 3}, folder / "w.pth"),
    "parallel": lambda state, folder: torch_save({"state_dict": prefixed(state, "module.")}, folder / "w.ckpt"),
    "compiled": lambda state, folder: torch_save(prefixed(state, "module._orig_mod."), folder / "w.pt"),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_loaded(net, tmp_path, way):
    state = filled(net, 3)
    load_weights(net, WAYS[way](state, tmp_path))
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights_may_be_there_once(tmp_path):
    saved, loaded = Tied(), Tied()
    save_model(saved, str(tmp_path / "w.safetensors"))
    load_weights(loaded, tmp_path / "w.safetensors")
    assert loaded.second.weight.equal(saved.first.weight)
    assert loaded.second.bias.equal(saved.second.bias)


def changed(net, *, without=(), plus=(), shapes=()):
    state = {name: value for name, value in net.state_dict().items() if name not in without}
    return state | {name: torch.zeros(1) for name in plus} | {name: torch.zeros(1, 2, 3) for name in shapes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"without": ["head.weight"]}, ["1 missing (head.weight)"]),
        ({"plus": ["fc.bias", "fc.weight"]}, ["2 foreign (fc.bias, fc.weight)"]),
        ({"plus": list("abcde")}, ["5 foreign (a, b, c, …)"]),
        ({"shapes": ["head.bias"]}, ["1 misshapen (head.bias (1, 2, 3) instead of (10,))"]),
        ({"without": ["head.bias"], "plus": ["fc.bias"]}, ["1 missing (head.bias), 1 foreign (fc.bias)"]),
    ],
)
@pytest.mark.parametrize("way", ["safetensors", "parallel"])
def test_weights_must_be_the_models(net, tmp_path, way, changes, words):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    path = WAYS[way](changed(net, **changes), tmp_path)
    with refuses(ModelError, path.name, "does not fit the model", *words):
        load_weights(net, path)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


class Code:
    """Runs when unpickled without care."""

    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("content", [[1, 2], 5, {}, {"epoch": 3}, {1: torch.zeros(1)}])
def test_other_content(net, tmp_path, content):
    with refuses(ModelError, "w.pt"):
        load_weights(net, torch_save(content, tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [Code(), nn.Linear(2, 2)])
def test_nothing_of_a_weights_file_is_run(net, tmp_path, capsys, content):
    with refuses(ModelError, "w.pt", "not a plain state dict", "model.state_dict()"):
        load_weights(net, torch_save(content, tmp_path / "w.pt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"\x80\x02"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_unreadable_files(net, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with refuses(ModelError, name):
        load_weights(net, tmp_path / name)


def test_a_zip_of_something_else(net, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("x", "y")
    with refuses(ModelError, "w.pt"):
        load_weights(net, tmp_path / "w.pt")


def test_no_file(net, tmp_path):
    with refuses(ModelError, "no weights file", "w.pt"):
        load_weights(net, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("text", "num_classes", "classes"),
    [
        ("nets:make", 7, 7),
        ("nets.py:make", 7, 7),
        ("nets:make_ten", 7, 10),
        ("nets:Net", 7, 7),
        ("nets:Net", None, 10),
        ("nets:fixed", 7, 10),
    ],
)
def test_factories(user_folder, text, num_classes, classes):
    model = model_of_factory(text, num_classes=num_classes)
    assert isinstance(model, nn.Module)
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, classes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nets:number", ["nets:number gave a int", "torch.nn.Module"]),
        ("nets:broken", ["nets:broken raised ValueError: first line second line"]),
        ("nets:wants_width", ["'width'", "num_classes"]),
        ("nets:mkae", ["did you mean 'make'?"]),
        ("resnet18", ["'resnet18'", "torchvision:NAME"]),
        ("exmaple", ["did you mean 'example'?"]),
    ],
)
def test_factories_that_give_no_model(user_folder, text, words):
    with refuses(ModelError, *words):
        model_of_factory(text, num_classes=7)


def test_a_factory_that_needs_an_unknown_number_of_classes(user_folder):
    with refuses(ModelError, "'num_classes'"):
        model_of_factory("nets:make", num_classes=None)


NAMES = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:The default weight initialization")  # of googlenet, slow in future
def test_torchvision_models_fit_the_data(name):
    model = torchvision_model(name, num_classes=7, in_channels=1, pretrained=True)
    outputs = model.train()(torch.randn(2, 1, 64, 64))
    assert isinstance(outputs, torch.Tensor)
    assert outputs.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "num_classes", "words"),
    [
        ("resnet81", 7, ["'resnet81'", "did you mean 'resnet18'?"]),
        ("fasterrcnn_resnet50_fpn", 7, ["no classification model"]),
        ("resnet18", None, ["number of classes", "`targets`"]),
    ],
)
def test_torchvision_models_that_cannot_be_had(name, num_classes, words):
    with refuses(ModelError, *words):
        torchvision_model(name, num_classes=num_classes, in_channels=3, pretrained=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_published_weights_are_used_where_they_fit(hub):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    published = squeezenet1_1()
    torch.save(published.state_dict(), hub / SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[1])
    ours = torchvision_model("squeezenet1_1", num_classes=1000, in_channels=3, pretrained=True)
    assert all(value.equal(published.state_dict()[name]) for name, value in ours.state_dict().items())
    for other in ({"num_classes": 10}, {"in_channels": 1}, {"pretrained": False}):
        options = {"num_classes": 1000, "in_channels": 3, "pretrained": True} | other
        assert (
            not torchvision_model("squeezenet1_1", **options)
            .features[3]
            .squeeze.weight.equal(published.features[3].squeeze.weight)
        )


def test_published_weights_that_cannot_be_fetched(hub):
    with refuses(ModelError, "squeezenet1_1", "no network", str(hub), "--weights"):
        torchvision_model("squeezenet1_1", num_classes=1000, in_channels=3, pretrained=True)


def test_random_weights_are_not_silent(caplog):
    torchvision_model("squeezenet1_1", num_classes=7, in_channels=3, pretrained=False)
    assert not caplog.records
    torchvision_model("squeezenet1_1", num_classes=7, in_channels=3, pretrained=True)
    assert "random" in caplog.text
