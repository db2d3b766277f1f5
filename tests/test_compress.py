"""Applying a plan and taking it back: the same function at full rank, and the original untouched."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from ranksearch.compress import compress, fold, plan_cost
from ranksearch.errors import ModelError, SpaceError
from ranksearch.factorize import METHODS, FactorCache, LayerShape
from ranksearch.layers import find_layers, list_layers, total_macs
from ranksearch.records import DENSE, Cost, LayerChoice, Plan
from tests.factorize.cases import DEVICES

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def make_net() -> nn.Sequential:
    """Every sort of layer, in float64, with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 12, (3, 5), stride=2, padding=1, groups=2), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10),
    ).double()  # fmt: skip
    net.train()(X)
    return net.eval()


def full_rank(model: nn.Module, method: str) -> Plan:
    """Every layer that the method takes, at full rank; svd for those that only it takes."""
    choices: dict[str, LayerChoice] = {}
    for layer in list_layers(model):
        assert layer.shape is not None
        taker = next((METHODS[m] for m in (method, "svd") if METHODS[m].refuses(layer.shape) is None), None)
        if taker:
            choices[layer.name] = LayerChoice(method=taker.name, ranks=taker.max_ranks(layer.shape))
    return Plan(choices)


MIXED = Plan(
    {
        "0": LayerChoice.parse("spatial_svd:4"),
        "3": LayerChoice.parse("spatial_svd:2"),
        "4": LayerChoice.parse("svd:5"),
        "5": LayerChoice.parse("tucker2:3x4"),
        "9": LayerChoice.parse("svd:6"),
    }
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_full_rank_is_the_same_function(method, device):
    model = make_net().to(device)
    plan = full_rank(model, method)
    small = compress(model, plan)
    assert {name for name, m in small.named_children() if type(m) is not type(model.get_submodule(name))} == set(plan)
    torch.testing.assert_close(small(X.to(device)), model(X.to(device)))


def test_only_the_layers_of_the_plan_change():
    model = make_net()
    small = compress(model, MIXED)
    for name, child in small.named_children():
        assert type(child) is (nn.Sequential if name in MIXED else type(model.get_submodule(name)))
        if name not in MIXED:
            before, after = model.get_submodule(name).state_dict(), child.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before)
    assert compress(model, {}).state_dict().keys() == model.state_dict().keys()
    assert type(compress(model, {"9": DENSE})[9]) is nn.Linear


def test_the_original_is_not_touched_nor_shared():
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    small = compress(model, MIXED).train()
    storages = {t.untyped_storage().data_ptr() for t in [*small.parameters(), *small.buffers()]}
    assert not storages & {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        small(X).square().mean().backward()
        optimizer.step()
    assert list(model.modules()) == modules
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_training_one_copy_leaves_the_next_as_the_first_was():
    model, cache = make_net(), FactorCache()
    first = compress(model, MIXED, cache=cache)
    expected = copy.deepcopy(first.state_dict())
    with torch.no_grad():
        for p in first.parameters():
            p.mul_(2)
    again = compress(model, MIXED, cache=cache).state_dict()
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    compress(MODEL, MIXED)
    assert torch.equal(before, torch.get_rng_state())


MODEL = make_net()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("init", ["decompose", "random"])
def test_dtype_and_device_are_kept(dtype, device, init):
    model = make_net().to(device, dtype)
    small = compress(model, MIXED, init=init)
    assert {(p.dtype, p.device.type) for p in small.parameters()} == {(dtype, device)}
    assert small(X.to(device, dtype)).isfinite().all()


def test_half_precision_is_as_good_as_its_rounding():
    model = make_net().bfloat16()
    small = compress(model, full_rank(model, "tucker2"))
    expected = model.double()(X)
    error = (small.double()(X) - expected).norm() / expected.norm()
    assert error < 0.05


@pytest.mark.parametrize("init", ["decompose", "random"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format_is_kept(memory_format, init):
    """Told by strides, which differ even where a weight is contiguous in both formats."""
    model = make_net().to(memory_format=memory_format)
    for p in compress(model, MIXED, init=init).parameters():
        assert (
            p.stride()
            == torch.empty_like(p, memory_format=torch.contiguous_format if p.dim() != 4 else memory_format).stride()
        )


def test_mode_and_requires_grad_are_kept():
    model = make_net().train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[9].bias.requires_grad_(False)
    for init in ("decompose", "random"):
        small = compress(model, MIXED, init=init)
        assert [c.training for c in small] == [c.training for c in model]
        assert all(m.training == small[int(name.split(".")[0])].training for name, m in small.named_modules() if name)
        assert [p.requires_grad for p in small[0].parameters()] == [False, False, True]
        assert [p.requires_grad for p in small[9].parameters()] == [True, True, False]
        assert all(p.requires_grad for p in small[5].parameters())


def test_random_init_builds_the_same_layers_and_takes_their_state(monkeypatch):
    expected = compress(MODEL, MIXED)
    monkeypatch.setattr(FactorCache, "factors", lambda *_: pytest.fail("decomposed"))
    built = compress(MODEL, MIXED, init="random")
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert not torch.equal(built[0][0].weight, expected[0][0].weight)
    built.load_state_dict(expected.state_dict())
    assert torch.equal(built(X), expected(X))


def test_random_init_works_without_numbers_at_all():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3))
    assert compress(model, {"0": LayerChoice.parse("tucker2:4x2")}, init="random")[0][1].weight.is_meta


def test_the_result_knows_nothing_of_ranksearch():
    assert b"ranksearch" not in pickle.dumps(compress(MODEL, MIXED))


class Reused(nn.Module):
    """One convolution under two names and in a plain list; two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.b = self.a
        self.steps = [self.a, torch.relu, self.b]
        self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)
        self.right.weight = self.left.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return self.right(self.left(x.mean((2, 3))))


def test_a_module_held_in_several_places_is_replaced_in_all_of_them():
    model = Reused().double()
    small = compress(model, {"a": LayerChoice.parse("spatial_svd:9")})
    assert isinstance(small.a, nn.Sequential)
    assert small.a is small.b is small.steps[0] is small.steps[2]
    assert small.left.weight is small.right.weight
    assert small.left.weight is not model.left.weight
    torch.testing.assert_close(small(X), model(X))


def test_the_model_may_be_the_layer():
    layer = nn.Linear(6, 5)
    small = compress(layer, {"": LayerChoice.parse("svd:5")})
    assert isinstance(small, nn.Sequential)
    torch.testing.assert_close(small(torch.ones(1, 6)), layer(torch.ones(1, 6)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"10": "svd:1"}, r"layer '10' .*the model has 0, 3, 4, 5 and 1 more"),
        ({"layer3.conv": "svd:1"}, r"layer 'layer3.conv'; the model has"),
        ({"0": "svd:1"}, r"layer '0': svd cannot take 3→8 3×3: its kernel"),
        ({"3": "tucker2:1x1"}, r"layer '3': tucker2 cannot take .* depthwise"),
        ({"0": "spatial_svd:10"}, r"layer '0': spatial_svd got rank 10 for 3→8 3×3; choose 1 to 9"),
        ({"5": "tucker2:3"}, r"layer '5': tucker2 got ranks \(3,\); it takes 2"),
        ({"0": "tuker2:1x1"}, r"'tuker2' \(did you mean 'tucker2'\?\)"),
        ({"1": "svd:1"}, r"layer '1'"),
    ],
)
@pytest.mark.parametrize("init", ["decompose", "random"])
def test_a_plan_that_does_not_fit_says_why(plan, message, init):
    plan = Plan.from_json(plan)
    with pytest.raises(SpaceError, match=message) as error:
        compress(MODEL, plan, init=init)
    assert "\n" not in str(error.value)
    with pytest.raises(SpaceError, match=message):
        plan_cost(list_layers(MODEL), plan, Cost(parameters=0, macs=0))


def test_a_mistyped_layer_gets_a_suggestion():
    model = torchvision.models.resnet18()
    with pytest.raises(SpaceError, match=r"'layer1.0.conv3' \(did you mean 'layer1.0.conv\d'\?\)"):
        compress(model, {"layer1.0.conv3": LayerChoice.parse("spatial_svd:8")})


def test_a_layer_that_must_stay_dense_is_refused_with_the_reason():
    choice = {"left": LayerChoice.parse("svd:2")}
    with pytest.raises(SpaceError, match=r"layer 'left' \(Linear\) must stay dense: it shares a parameter"):
        compress(Reused(), choice)
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    with pytest.raises(SpaceError, match=r"'out_proj' .* MultiheadAttention reads its weight"):
        compress(attention, {"out_proj": LayerChoice.parse("svd:2")})

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.hidden.weight

    layers = find_layers(Functional(), torch.zeros(1, 3))
    with pytest.raises(SpaceError, match=r"'hidden' .* never called"):
        compress(Functional(), {"hidden": LayerChoice.parse("svd:2")}, layers=layers)


def test_a_weight_that_is_not_finite_is_named():
    model = make_net()
    with torch.no_grad():
        model[9].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layer '9': .*NaN"):
        compress(model, {"9": LayerChoice.parse("svd:2")})


def test_plan_cost_is_the_cost_of_the_compressed_model():
    model, x = make_net(), X[:1]
    layers = find_layers(model, x)

    def cost(m: nn.Module) -> Cost:
        return Cost(parameters=sum(p.numel() for p in m.parameters()), macs=total_macs(m, x))

    assert plan_cost(layers, {}, cost(model)) == cost(model)
    for plan in (MIXED, *(full_rank(model, method) for method in METHODS)):
        small = compress(model, plan)
        with torch.no_grad():
            small(x)  # what computes its weight does so once
        assert plan_cost(layers, plan, cost(model)) == cost(small)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", [*METHODS, "mixed"])
def test_folding_gives_the_same_function_in_the_dense_shape(method, device):
    model = make_net().to(device).to(memory_format=torch.channels_last)
    model[9].weight.requires_grad_(False)
    plan = MIXED if method == "mixed" else full_rank(model, method)
    small = compress(model, plan)
    with torch.no_grad():  # as training would
        for p in small.parameters():
            p.mul_(1.1)
    before = copy.deepcopy(small.state_dict())
    dense = fold(small, plan, list_layers(model))
    assert [type(m) for m in dense] == [type(m) for m in model]
    assert [LayerShape.of(dense[int(n)]) for n in plan] == [LayerShape.of(model[int(n)]) for n in plan]
    assert [p.stride() for p in dense.parameters()] == [p.stride() for p in model.parameters()]
    assert [p.requires_grad for p in dense.parameters()] == [p.requires_grad for p in model.parameters()]
    torch.testing.assert_close(dense(X.to(device)), small(X.to(device)))
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    model.load_state_dict(dense.state_dict())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("method", METHODS)
def test_folding_keeps_the_memory_format_at_rank_one(method, memory_format):
    """There the last factor has one number per output channel, and its strides tell nothing."""
    model = make_net().to(memory_format=memory_format)
    plan = Plan(
        {n: LayerChoice(method=c.method, ranks=(1,) * len(c.ranks)) for n, c in full_rank(model, method).items()}
    )
    dense = fold(compress(model, plan), plan, list_layers(model))
    assert [p.stride() for p in dense.parameters()] == [p.stride() for p in model.parameters()]


def test_folding_full_rank_gives_the_weights_back():
    model = make_net().float()
    plan = full_rank(model, "tucker2")
    dense = fold(compress(model, plan), plan, list_layers(model))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(dense.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert {p.dtype for p in dense.parameters()} == {torch.float32}


def test_folding_asks_for_layers_that_the_dense_model_has():
    small = compress(MODEL, MIXED)
    with pytest.raises(SpaceError, match="the plan names layer '9'; the model has 0, 3, 4, 5"):
        fold(small, MIXED, list_layers(MODEL)[:-1])


def test_a_plan_is_applied_again_without_a_decomposition(monkeypatch):
    """How long that takes is a benchmark: benchmarks.apply_plan."""
    model = torchvision.models.resnet18()
    layers, cache = list_layers(model), FactorCache()
    plan = full_rank(model, "channel_svd")
    first = compress(model, plan, cache=cache, layers=layers).state_dict()

    for name in ("svd", "qr", "eigh"):
        monkeypatch.setattr(torch.linalg, name, lambda *_, **__: pytest.fail("the factors are in memory"))
    again = compress(model, plan, cache=cache, layers=layers).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    with pytest.raises(pytest.fail.Exception):
        compress(model, plan, layers=layers)
