"""Finding layers: names, order and sizes as the model runs them, and a reason for every one that must stay."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from ranksearch.errors import ModelError
from ranksearch.factorize import METHODS
from ranksearch.layers import FoundLayer, activation_bytes, find_layers, list_layers, total_macs


def by_name(layers: tuple[FoundLayer, ...]) -> dict[str, FoundLayer]:
    return {layer.name: layer for layer in layers}


class Crossed(nn.Module):
    """Registered in another order than it runs; `twice` runs twice, `unused` never."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.unused = nn.Linear(2, 2)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 5, (1, 3), groups=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        x = self.twice(F.max_pool2d(self.twice(x), 2))
        x = self.mix(input=x)
        return self.head(x.flatten(2).mT)


def test_layers_come_in_order_of_first_call_with_the_sizes_of_every_call():
    layers = find_layers(Crossed(), torch.zeros(1, 3, 16, 20))
    assert [layer.name for layer in layers] == ["stem", "twice", "mix", "head", "unused"]
    assert [layer.kind for layer in layers] == ["Conv2d", "Conv2d", "Conv2d", "Linear", "Linear"]
    sizes = {layer.name: layer.shape.input_sizes for layer in layers if layer.shape}
    assert sizes == {"stem": ((16, 20),), "twice": ((8, 10), (4, 5)), "mix": ((4, 5),), "head": ((12,),), "unused": ()}
    assert [layer.name for layer in layers if layer.skipped] == ["unused"]
    assert "never called" in (layers[-1].skipped or "")


def test_total_macs_are_those_of_the_layers():
    model, x = Crossed(), torch.zeros(1, 3, 16, 20)
    macs = sum(layer.shape.cost().macs for layer in find_layers(model, x) if layer.shape)
    by_hand = 4 * 3 * 9 * 80 + 4 * 4 * 9 * (80 + 20) + 5 * 4 * 3 * 12 + 15 * 12
    assert total_macs(model, x) == macs == by_hand


def test_a_batch_inside_one_example_counts_as_so_many_calls():
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.reshape(4, 3, 6, 6)) if x.dim() == 4 else self.conv(x)

    (layer,) = find_layers(Patches(), torch.zeros(1, 3, 12, 12))
    assert layer.shape is not None
    assert layer.shape.input_sizes == ((6, 6),) * 4
    assert layer.shape.cost().macs == total_macs(Patches(), torch.zeros(1, 3, 12, 12))
    (unbatched,) = find_layers(Patches(), torch.zeros(3, 7, 8))
    assert unbatched.shape is not None
    assert unbatched.shape.input_sizes == ((7, 8),)


def test_example_inputs_may_be_positional_or_by_keyword():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.a(left) + self.b(right)

    left, right = torch.zeros(1, 2), torch.zeros(1, 4)
    expected = find_layers(Two(), (left, right))
    assert [layer.skipped for layer in expected] == [None, None]
    assert find_layers(Two(), {"right": right, "left": left}) == expected
    assert total_macs(Two(), (left, right)) == total_macs(Two(), {"right": right, "left": left}) == 18


def test_a_parameter_may_enter_a_layer():
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.layer = nn.Parameter(torch.zeros(5, 4)), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.queries.expand(len(x), -1, -1)) + x

    (layer,) = find_layers(Queries(), torch.zeros(1, 1, 3))
    assert layer.shape is not None
    assert layer.shape.cost().macs == total_macs(Queries(), torch.zeros(1, 1, 3)) == 5 * 4 * 3


def snapshot(model: nn.Module) -> list[object]:
    state = [value.clone() for value in model.state_dict().values()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    return [*state, modes, hooks, [parameter.requires_grad for parameter in model.parameters()]]


def assert_same(before: list[object], after: list[object]) -> None:
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def test_the_model_is_left_as_it_was_even_where_it_fails():
    model = Crossed().train()
    model.mix.eval()
    model.head.weight.requires_grad_(False)
    before = snapshot(model)
    find_layers(model, torch.randn(1, 3, 16, 20))
    total_macs(model, torch.randn(1, 3, 16, 20))
    assert_same(before, snapshot(model))
    for fails in (find_layers, total_macs):
        with pytest.raises(ModelError, match=r"fails on its example input: RuntimeError: .*\b7\b"):
            fails(model, torch.zeros(1, 7, 16, 20))
    assert_same(before, snapshot(model))
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_registered_twice_is_one_layer_under_its_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model.append(model[0])
    (layer,) = find_layers(model, torch.zeros(1, 3))
    assert layer.name == "0"
    assert layer.shape is not None
    assert layer.shape.input_sizes == ((1,), (1,))


class Scaled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return 2 * super().forward(input)


class Padded(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):  # noqa: A002
        return super()._conv_forward(F.pad(input, (1, 0)), weight, bias)


class Named(nn.Linear):
    """A subclass that computes what its parent does."""


def patched() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def tied_bias() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    return model


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (tied(), ["shares", None, "shares"]),
        (tied_bias(), ["shares", "shares"]),
        (parametrizations.weight_norm(nn.Linear(4, 4)), ["computed from other"]),
        (nn.utils.spectral_norm(nn.Linear(4, 4)), ["computed from other"]),
        (parametrizations.orthogonal(nn.Linear(4, 4)), ["computed from other"]),
        (prune.l1_unstructured(nn.Linear(4, 4), "weight", 3), ["computed from other"]),
        (prune.l1_unstructured(nn.Linear(4, 4), "bias", 3), ["computed from other"]),
        (nn.Conv1d(4, 4, 1), [None]),
        (nn.ConvTranspose2d(4, 4, 1), [None]),
        (nn.LSTM(4, 4), ["no method takes LSTM layers"]),
        (Scaled(4, 4), ["forward is not that of Linear"]),
        (Padded(4, 4, 1), ["forward is not that of Conv2d"]),
        (patched(), ["forward is not that of Linear"]),
        (Named(4, 4), [None]),
        (nn.LazyLinear(4), ["lazy"]),
        (nn.LazyConv2d(4, 1), ["lazy"]),
        (nn.BatchNorm2d(4), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.filterwarnings("ignore:.*(spectral_norm|weight_norm).*deprecated", "ignore:Lazy modules are a new feature")
def test_a_layer_that_must_stay_has_a_reason(model, reasons):
    layers = list_layers(model)
    assert [layer.shape is None for layer in layers] == [bool(r) and ("lazy" in r or "no method" in r) for r in reasons]
    for layer, reason in zip(layers, reasons, strict=True):
        assert reason in layer.skipped if reason else layer.skipped is None
    x = (
        torch.randn(1, 4, 4, 4)
        if isinstance(model, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)
        else torch.randn(4, 4)
    )
    found = by_name(find_layers(model, x))
    assert {name: layer.skipped for name, layer in found.items()} == {layer.name: layer.skipped for layer in layers}


def test_projections_of_attention_are_layers():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(encoder, nn.Linear(8, 3))
    layers = by_name(find_layers(model, torch.randn(1, 5, 8)))
    assert list(layers) == ["0.self_attn.in_proj", "0.self_attn.out_proj", "0.linear1", "0.linear2", "1"]
    assert [layer.name for layer in list_layers(model)] == list(layers)
    assert not any(layer.skipped for layer in layers.values())
    assert {layer.shape.input_sizes for layer in layers.values() if layer.shape} == {((5,),)}
    assert str(layers["0.self_attn.in_proj"].shape) == "8→24"


def test_fused_attention_is_counted_and_put_back():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layers = sum(layer.shape.cost().macs for layer in find_layers(encoder, torch.randn(1, 5, 8)) if layer.shape)
    scores = 2 * 5 * 5 * 8
    assert layers == 5 * (3 * 64 + 64) + 5 * 2 * 8 * 16
    assert total_macs(encoder, torch.randn(1, 5, 8)) == layers + scores
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_layers_of_a_real_network():
    model = torchvision.models.mobilenet_v2(width_mult=0.25).train()
    x = torch.zeros(1, 3, 64, 64)
    layers = find_layers(model, x)
    assert layers[0].name == "features.0.0"
    assert layers[-1].name == "classifier.1"
    assert not any(layer.skipped for layer in layers)
    assert sum(layer.shape.cost().macs for layer in layers if layer.shape) == total_macs(model, x)
    assert all(any(m.refuses(layer.shape) is None for m in METHODS.values()) for layer in layers if layer.shape)


def test_activation_bytes_are_those_that_modules_without_parts_return_of_one_example():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten(), nn.Linear(4 * 5 * 5, 7))
    sizes = (4 * 5 * 5, 4 * 5 * 5, 4 * 5 * 5, 7)
    assert activation_bytes(net, torch.zeros(1, 3, 5, 5)) == 4 * sum(sizes)
