"""BatchNorm folded into the layer before it: the same function, and none left where it could go."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from ranksearch import nets
from ranksearch.compress import compress
from ranksearch.factorize import METHODS
from ranksearch.latency import prepare
from ranksearch.latency.folding import LAYERS, fold_batchnorm
from ranksearch.layers import find_layers
from ranksearch.records import LayerChoice, MeasureConfig
from tests.toy import ToyNet

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


def ready(model: nn.Module) -> nn.Module:
    """As if it had been trained, in double precision."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return model.double().eval().requires_grad_(False)


def folded(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Folded, once it is clear that it computes the same and that the original is as it was."""
    before = copy.deepcopy(model.state_dict())
    found = fold_batchnorm(model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(found(inputs), model(inputs), rtol=1e-9, atol=1e-9)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in found.modules())
    return found


def foldable(model: nn.Module) -> list[str]:
    """BatchNorms that alone take what a convolution or linear layer gives, by the traced graph."""
    modules, graph = dict(model.named_modules()), symbolic_trace(model).graph
    return [
        str(node.target)
        for node in graph.nodes
        if node.op == "call_module"
        and isinstance(modules[node.target], NORMS)
        and node.args[0].op == "call_module"
        and isinstance(modules[node.args[0].target], LAYERS)
        and len(node.args[0].users) == 1
    ]


NETS = {
    "torchvision resnet18": (torchvision.models.resnet18, 3),
    "torchvision mobilenet_v3": (torchvision.models.mobilenet_v3_small, 3),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 8), 3),
    "toy": (ToyNet, 1),
} | {name: (lambda name=name: getattr(nets, name)(width=0.25), 3) for name in nets.__all__}


@pytest.mark.parametrize("name", NETS)
def test_no_batchnorm_is_left_behind_a_layer_and_the_function_is_the_same(name):
    factory, channels = NETS[name]
    torch.manual_seed(0)
    model = ready(factory())
    found = folded(model, torch.randn(2, channels, 32, 32, dtype=torch.float64))
    assert norms(found) == norms(model) - len(foldable(model))
    assert foldable(found) == []


@pytest.mark.parametrize("name", ["spatial_svd", "tucker2", "channel_svd", "svd", "separable"])
def test_the_last_factor_takes_the_batchnorm(name):
    torch.manual_seed(0)
    model, image = ready(ToyNet()).float(), torch.randn(2, 1, 12, 12)
    method = METHODS[name]
    shapes = {layer.name: layer.shape for layer in find_layers(model, image[:1])}
    plan = {
        layer: LayerChoice(method=name, ranks=tuple((most + 1) // 2 for most in method.max_ranks(shape)))
        for layer, shape in shapes.items()
        if layer != "stem" and shape and not method.refuses(shape)
    }
    small = compress(model, plan).double().requires_grad_(False)
    assert norms(folded(small, image.double())) == 0


@pytest.mark.parametrize("name", ["linearconv", "tt_conv"])
def test_a_layer_that_computes_its_weight_keeps_its_batchnorm(name):
    model, image = ready(ToyNet()).float(), torch.randn(2, 1, 12, 12)
    ranks = {"linearconv": (8,), "tt_conv": (4, 4, 4)}[name]
    small = compress(model, {"conv1": LayerChoice(method=name, ranks=ranks)}).double().requires_grad_(False)
    assert norms(folded(small, image.double())) == 1


class Twice(nn.Module):
    """One convolution for two BatchNorms, one after the other."""

    def __init__(self):
        super().__init__()
        self.layer, self.one, self.two = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.two(self.layer(self.one(self.layer(x))))


class Both(Twice):
    """Two BatchNorms take the same output."""

    def forward(self, x):
        y = self.layer(x)
        return self.one(y) + self.two(y)


class Skip(Twice):
    """The layer's output goes past the first BatchNorm too."""

    def forward(self, x):
        y = self.layer(x)
        return self.one(y) + y


class Returned(Twice):
    def forward(self, x):
        y = self.layer(x)
        return self.one(y), [y]


class Looked(Twice):
    """A view of the output is taken before."""

    def forward(self, x):
        y = self.layer(x)
        first = y[:, :1]
        return self.one(y) + first


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.other, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.other.weight = self.layer.weight

    def forward(self, x):
        return self.norm(self.layer(x)) + self.other(x)


class Own(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight.tanh(), self.bias)


IMAGE, ROWS = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("model", "inputs", "left"),
    [
        (Twice, IMAGE, 2),
        (Both, IMAGE, 2),
        (Skip, IMAGE, 2),
        (Returned, IMAGE, 2),
        (Looked, IMAGE, 2),
        (Tied, IMAGE, 1),
        (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)), IMAGE, 1),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), IMAGE, 1),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), IMAGE, 1),
        (lambda: nn.Sequential(Own(2, 3, 1), nn.BatchNorm2d(3)), IMAGE, 1),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(2)), ROWS, 1),
        (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 1)), nn.BatchNorm2d(3)), IMAGE, 1),
    ],
)
def test_what_others_see_is_left_alone(model, inputs, left):
    torch.manual_seed(0)
    assert norms(folded(ready(model()), inputs)) == left


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)), ROWS),
        (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), torch.randn(2, 2, 4, 4, 4).double()),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(4)), IMAGE),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, affine=False, eps=0.1)), IMAGE),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)), IMAGE),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)), IMAGE),
    ],
)
def test_what_can_be_folded_is(model, inputs):
    torch.manual_seed(0)
    assert norms(folded(ready(model()), inputs)) == 0


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.run = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
        self.kept = self.run[1]

    def forward(self, x):
        return self.run(x)


def test_a_norm_under_two_names_is_gone_under_both():
    torch.manual_seed(0)
    assert norms(folded(ready(Aliased()), IMAGE)) == 0


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_and_layout_stay(dtype, layout, inference):
    torch.manual_seed(0)
    config = MeasureConfig(dtype=dtype, layout=layout)
    model = prepare(
        ready(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4))), config, torch.device("cpu")
    )
    inputs = IMAGE.to(getattr(torch, dtype))
    with torch.inference_mode(inference):
        found = fold_batchnorm(model, inputs)
        torch.testing.assert_close(found(inputs), model(inputs), rtol=0.03, atol=0.03)
    assert norms(found) == 0
    assert {p.dtype for p in found.parameters()} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in found.parameters())
    assert found[0].weight.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
