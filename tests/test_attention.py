"""Attention unpacked: what nn.MultiheadAttention computes, in layers that a plan can replace, and back."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ranksearch.attention import UnpackedAttention, pack, projections, unpack, unpacked
from ranksearch.compress import compress, fold, plan_cost
from ranksearch.errors import SpaceError
from ranksearch.layers import find_layers, list_layers, total_macs
from ranksearch.records import Cost, LayerChoice, Plan
from tests.factorize.cases import DEVICES

B, L, S, E, H = 2, 5, 7, 12, 3


def attention(**options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, H, **options).double()
    with torch.no_grad():  # its own biases are zeros
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    return layer


def full_rank(model: nn.Module, named=(), part: str = "") -> Plan:
    """svd at full rank for every linear layer, or for those whose name ends as `part`."""
    layers = [v for v in list_layers(model, named) if v.kind.endswith("Linear") and v.name.endswith(part)]
    assert not any(v.skipped for v in layers)
    return Plan({v.name: LayerChoice(method="svd", ranks=(min(v.shape.weight_shape),)) for v in layers if v.shape})


def randn(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same_outputs(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


# --- the same function ------------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """Options of a module, and the arguments of one call: everything that its documentation allows."""
    flag = st.booleans()
    batched, batch_first = draw(flag), draw(flag)
    options = {"batch_first": batch_first, "bias": draw(flag), "dropout": draw(st.sampled_from([0.0, 0.5]))}
    kind = draw(st.sampled_from(["self", "key is value", "query is key", "all differ", "sizes"]))

    def tokens(num: int, seed: int, size: int = E) -> Tensor:
        shape = ((B, num, size) if batch_first else (num, B, size)) if batched else (num, size)
        return randn(*shape, seed=seed)

    query, num_keys = tokens(L, 1), L if kind in {"self", "query is key"} else S
    if kind == "sizes":
        options |= {"kdim": 4, "vdim": draw(st.sampled_from([6, None]))}
        inputs = (query, tokens(S, 2, 4), tokens(S, 3, options["vdim"] or E))
    else:
        key = query if kind in {"self", "query is key"} else tokens(S, 2)
        inputs = (query, key, key if kind in {"self", "key is value"} else tokens(num_keys, 3))
    causal = torch.ones(L, num_keys, dtype=torch.bool).triu(1)
    per_head = (randn(B * H if batched else H, L, num_keys, seed=4) > 1).index_fill(2, torch.tensor([0]), False)
    padding = torch.arange(num_keys) >= torch.tensor([[num_keys], [3]])
    padding = padding if batched else padding[1]
    masks = {
        "attn_mask": draw(st.sampled_from([None, causal, per_head])),
        "key_padding_mask": draw(st.sampled_from([None, padding])),
    }
    if draw(flag):  # as numbers to be added
        masks = {k: m if m is None else torch.zeros(m.shape).double().masked_fill(m, -2.5) for k, m in masks.items()}
    masks["is_causal"] = masks["attn_mask"] is causal and draw(flag)
    outputs = {"need_weights": draw(flag), "average_attn_weights": draw(flag)}
    return options, inputs, masks | outputs


@given(call=calls(), separate=st.booleans(), training=st.booleans())
@settings(deadline=None, max_examples=300)
def test_unpacked_computes_what_packed_does(call, separate, training):
    options, inputs, how = call
    layer = attention(**options).train(training)
    small = unpack(copy.deepcopy(layer), separate=separate)
    assert type(small) is UnpackedAttention
    results = []
    for module in (layer, small):
        torch.manual_seed(7)  # so that dropout drops the same
        distinct = {id(x): x.clone().requires_grad_() for x in inputs}
        output, weights = module(*(distinct[id(x)] for x in inputs), **how)
        (output.square().sum() + (0 if weights is None else weights.square().sum())).backward()
        results.append((output, weights, *(x.grad for x in distinct.values()), *weight_gradients(module)))
    assert_same_outputs(*results)


def weight_gradients(module: nn.Module) -> list[Tensor]:
    """All gradients of the three input projections in one, weights then biases; then those of the output projection."""
    if isinstance(module, UnpackedAttention):
        *layers, _ = module.children()
        inputs = [p for which in ("weight", "bias") for m in layers if (p := getattr(m, which)) is not None]
    else:
        inputs = [p for n, p in module.named_parameters() if not n.startswith("out_proj")]
    return [torch.cat([p.grad.flatten() for p in inputs]), *(p.grad for p in module.out_proj.parameters())]


def test_a_hint_without_a_mask_is_refused_as_torch_does():
    x = randn(L, B, E)
    for layer in (attention(), unpack(attention())):
        with pytest.raises(RuntimeError, match="attn_mask"):
            layer(x, x, x, is_causal=True)


# --- packing ----------------------------------------------------------------------------------------------------------

FORMS = [({}, False), ({}, True), ({"bias": False}, True), ({"kdim": 4, "vdim": 6}, False), ({"bias": False}, False)]


@pytest.mark.parametrize(("options", "separate"), FORMS)
def test_packing_gives_back_what_was_unpacked(options, separate):
    layer = attention(batch_first=True, **options).eval()
    layer.out_proj.weight.requires_grad_(False)
    layer.note = "kept"
    handle = layer.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    flags = [(name, p.requires_grad) for name, p in layer.named_parameters()]
    reference, types = layer, [type(m) for m in layer.modules()]
    small = unpack(layer, separate=separate)
    assert small is reference
    assert type(small) is UnpackedAttention
    assert all(isinstance(child, nn.Linear) and not child.training for child in small.children())
    back = pack(small)
    assert back is reference
    assert [type(m) for m in back.modules()] == types
    assert list(back.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in back.state_dict().items())
    assert [(name, p.requires_grad) for name, p in back.named_parameters()] == flags
    assert back.note == "kept"
    assert list(back._forward_hooks) == [handle.id]
    fresh = attention(batch_first=True, **options)
    assert fresh.__dict__.keys() == back.__dict__.keys() - {"note"}
    assert fresh._parameters.keys() == back._parameters.keys()
    back(*(randn(B, L, n) for n in (E, options.get("kdim", E), options.get("vdim", E))))


@pytest.mark.parametrize(("options", "separate"), FORMS)
def test_projections_are_the_tensors_of_the_attention(options, separate):
    layer = attention(**options)
    ours = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    parts = projections(layer, separate=separate)
    assert {p.untyped_storage().data_ptr() for m in parts.values() for p in m.parameters()} == ours
    assert sum(p.numel() for m in parts.values() for p in m.parameters()) == sum(p.numel() for p in layer.parameters())
    assert type(layer) is nn.MultiheadAttention


def test_an_unpacked_model_shares_all_tensors_and_leaves_the_model():
    model = Decoding()
    modules, names = list(model.modules()), {"block.cross.k_proj", "block.own.out_proj"}
    twin = unpacked(model, names)
    assert list(model.modules()) == modules
    assert {id(p) for p in twin.block.own.parameters()} == {id(p) for p in model.block.own.parameters()}
    ours = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert {t.untyped_storage().data_ptr() for t in [*twin.parameters(), *twin.buffers()]} == ours
    assert set(dict(twin.block.cross.named_children())) == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert set(dict(twin.block.own.named_children())) == {"in_proj", "out_proj"}
    assert type(twin.block.left) is nn.MultiheadAttention
    assert unpacked(model, {"block.mlp", "head"}) is model


# --- models -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention to itself and to something else; one of them, and a projection of the other, are held twice."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross, self.left = attention(batch_first=True), attention(batch_first=True), attention()
        self.mlp = nn.Linear(E, E)
        self.alike = self.own
        self.in_order = [self.own, self.cross.out_proj]

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.own(x, x, x, need_weights=False)[0]
        x = x + self.cross(x, memory, memory)[0]
        x = x + self.alike(query=x, key=x, value=x)[0]
        return self.mlp(self.left(x, x, x)[0])


class Decoding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = Block(), nn.Linear(E, 4)
        self.register_buffer("memory", randn(1, S, E))
        self.block.own.register_forward_hook(self.remember)
        self.double().eval()

    def remember(self, module: nn.Module, *_) -> None:
        self.seen = [module]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x, self.memory.expand(len(x), -1, -1)))


X = randn(B, L, E)
FOUND = find_layers(Decoding(), X[:1])
PLAN = full_rank(Decoding(), {v.name for v in FOUND})
LOW = Plan({name: LayerChoice.parse("svd:3") for name in PLAN if ".left" not in name})


def test_layers_are_found_with_the_sizes_that_enter_them():
    sizes = {v.name: v.shape.input_sizes for v in FOUND if v.shape and not v.skipped}
    once, twice, keys = ((L,),), ((L,), (L,)), ((S,),)
    assert sizes == {
        "block.own.in_proj": twice, "block.own.out_proj": twice,
        "block.cross.q_proj": once, "block.cross.k_proj": keys, "block.cross.v_proj": keys,
        "block.cross.out_proj": once, "block.left.in_proj": once, "block.left.out_proj": once,
        "block.mlp": once, "head": once,
    }  # fmt: skip
    assert [v.name for v in FOUND] == list(sizes)
    assert {v.name for v in list_layers(Decoding())} == {
        *(name for name in sizes if "cross" not in name), "block.cross.in_proj", "block.cross.out_proj",
    }  # fmt: skip
    assert {v.name for v in list_layers(Decoding(), sizes)} == set(sizes)


def test_attention_used_in_both_ways_is_separate():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention(batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.attention(x, x, x)[0]
            return self.attention(x, x[:, :2], x[:, :2])[0]

    sizes = {v.name: sorted(v.shape.input_sizes) for v in find_layers(Both(), X[:1]) if v.shape}
    both, short = [(L,), (L,)], [(2,), (L,)]
    parts = {"q_proj": both, "k_proj": short, "v_proj": short, "out_proj": both}
    assert sizes == {f"attention.{part}": entered for part, entered in parts.items()}


def cost(model: nn.Module, example) -> Cost:
    return Cost(parameters=sum(p.numel() for p in model.parameters()), macs=total_macs(model, example))


def test_costs_are_those_of_the_models():
    model, x = Decoding(), X[:1]
    layers = sum(v.shape.cost().macs for v in FOUND if v.shape)
    scores = 2 * E * L * (L + L + S) + 2 * E * L  # `left` takes the example for its sequence's first
    assert total_macs(model, x) == layers + scores
    for plan in (PLAN, LOW):
        assert plan_cost(FOUND, plan, cost(model, x)) == cost(compress(model, plan), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", ["", "in_proj", "out_proj", "k_proj", "own.in_proj", "mlp"])
def test_full_rank_is_the_same_function_and_folds_back(part, device):
    model, x = Decoding().to(device), X.to(device)
    plan = full_rank(model, {v.name for v in FOUND} if part != "in_proj" else (), part)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    types = {name: type(m) for name, m in model.named_modules()}
    expected = model(x)
    small = compress(model, plan)
    touched = {name.rpartition(".")[0] for name in plan if name.endswith("_proj")}
    assert {name for name, m in small.named_modules() if isinstance(m, UnpackedAttention)} == touched
    torch.testing.assert_close(small(x), expected)
    assert small.block.own is small.block.alike is small.block.in_order[0] is small.seen[0]
    assert small.block.cross.out_proj is small.block.in_order[1]
    dense = fold(small, plan, list_layers(model, plan))
    assert {name: type(m) for name, m in dense.named_modules()} == types
    assert dense.block.own is dense.block.in_order[0]
    assert dense.block.cross.out_proj is dense.block.in_order[1]
    torch.testing.assert_close(dense(x), expected)
    torch.testing.assert_close(dict(dense.state_dict()), before)
    assert {name: type(m) for name, m in model.named_modules()} == types
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_copy_shares_nothing_and_all_of_it_is_trained():
    model = Decoding()
    small = compress(model, LOW).train()
    ours = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not ours & {t.untyped_storage().data_ptr() for t in [*small.parameters(), *small.buffers()]}
    small(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in small.block.own.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_requires_grad_and_mode_are_kept():
    model = Decoding()
    model.block.cross.in_proj_weight.requires_grad_(False)
    model.block.own.train()
    small = compress(model, LOW)
    assert [p.requires_grad for p in small.block.cross.k_proj.parameters()] == [False, False, True]
    assert all(m.training for m in small.block.own.modules())
    assert not any(m.training for m in small.block.cross.modules())
    dense = fold(small, LOW, FOUND)
    assert [(n, p.requires_grad) for n, p in dense.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]


def test_random_init_takes_the_state_of_the_decomposed():
    model = Decoding()
    expected = compress(model, LOW)
    built = compress(model, LOW, init="random")
    assert list(built.state_dict()) == list(expected.state_dict())
    assert "block.own.in_proj.1.bias" in built.state_dict()
    assert not torch.equal(built(X), expected(X))
    built.load_state_dict(expected.state_dict())
    assert torch.equal(built(X), expected(X))


def test_the_model_may_be_the_attention():
    layer = attention(batch_first=True)
    plan = full_rank(layer)
    assert set(plan) == {"in_proj", "out_proj"}
    small = compress(layer, plan)
    assert_same_outputs(small(X, X, X), layer(X, X, X))
    assert_same_outputs(small(X, X[:, :3], X[:, 2:]), layer(X, X[:, :3], X[:, 2:]))
    assert type(fold(small, plan, list_layers(layer))) is nn.MultiheadAttention


def test_a_projection_may_have_another_name():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention(batch_first=True)
            self._modules = {"outputs": nn.ModuleList([self.attention.out_proj]), "attention": self.attention}

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    model = Listed()
    found = find_layers(model, X)
    assert [v.name for v in found] == ["attention.in_proj", "outputs.0"]
    plan = full_rank(model, part="outputs.0")
    small = compress(model, plan)
    assert small.outputs[0] is small.attention.out_proj
    assert isinstance(small.outputs[0], nn.Sequential)
    torch.testing.assert_close(small(X), model(X))
    dense = fold(small, plan, found)
    assert type(dense.attention) is nn.MultiheadAttention
    assert dense.outputs[0] is dense.attention.out_proj


def test_folding_a_part_leaves_the_rest():
    model = Decoding()
    small = compress(model, PLAN)
    part = Plan({name: choice for name, choice in PLAN.items() if name in {"block.own.in_proj", "block.mlp"}})
    dense = fold(small, part, FOUND)
    assert type(dense.block.own) is UnpackedAttention
    assert type(dense.block.own.in_proj) is nn.Linear
    torch.testing.assert_close(dense(X), model(X))


def test_compressed_attention_is_copied_saved_and_exported():
    small = compress(Encoding(), full_rank(Encoding()))
    expected = small(X)
    assert torch.equal(copy.deepcopy(small)(X), expected)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(X), expected)
    torch.testing.assert_close(torch.export.export(small, (X,)).module()(X), expected)


# --- what is left alone -----------------------------------------------------------------------------------------------


class Sub(nn.MultiheadAttention):
    """Might compute anything."""


def patched() -> nn.MultiheadAttention:
    layer = attention()
    layer.forward = layer.forward
    return layer


def tied() -> nn.Module:
    model = nn.ModuleList([attention(), attention()])
    model[1].in_proj_weight = model[0].in_proj_weight
    return model


def tied_outside() -> nn.Module:
    model = nn.ModuleList([nn.Linear(E, E).double(), attention()])
    model[1].out_proj.weight = model[0].weight
    return model


def pruned(name: str) -> nn.Module:
    layer = attention()
    prune.l1_unstructured(layer if name.startswith("in_proj") else layer.out_proj, name.rsplit(".", maxsplit=1)[-1], 3)
    return layer


def parametrized() -> nn.Module:
    layer = attention()
    nn.utils.parametrizations.orthogonal(layer, "in_proj_weight")
    return layer


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (attention(add_bias_kv=True), {"": "add_bias_kv", "out_proj": "reads its weight"}),
        (attention(add_zero_attn=True), {"": "add_zero_attn", "out_proj": "reads its weight"}),
        (Sub(E, H).double(), {"": "class or its forward", "out_proj": "reads its weight"}),
        (patched(), {"": "class or its forward", "out_proj": "reads its weight"}),
        (pruned("in_proj_weight"), {"": "computed from other", "out_proj": "reads its weight"}),
        (pruned("out_proj.weight"), {"": "not a plain Linear", "out_proj": "reads its weight"}),
        (parametrized(), {"": "class or its forward", "out_proj": "reads its weight"}),
        (tied(), {n: "shares" if "out" not in n else "reads" for n in ("0", "0.out_proj", "1", "1.out_proj")}),
        (tied_outside(), {"0": "shares a parameter", "1.in_proj": None, "1.out_proj": "shares a parameter"}),
    ],
)
def test_attention_that_must_stay_has_a_reason(model, reasons):
    layers = list_layers(model)
    assert {v.name for v in layers} == set(reasons)
    for layer in layers:
        assert (reasons[layer.name] or "") in (layer.skipped or "")
        if reasons[layer.name]:
            with pytest.raises(SpaceError, match=r"must stay dense"):
                compress(model, {layer.name: LayerChoice.parse("svd:2")})
    with pytest.raises(SpaceError, match=r"names layer 'nothing.in_proj'"):
        compress(model, {"nothing.in_proj": LayerChoice.parse("svd:2")})
    if isinstance(model, nn.MultiheadAttention):
        found = find_layers(model, (X, X, X))
        assert {v.name: v.skipped for v in found} == {v.name: v.skipped for v in layers}


def test_one_parameter_of_two_modules_stays_one():
    model = tied_outside()
    small = compress(model, {"1.in_proj": LayerChoice.parse("svd:4")})
    assert small[1].out_proj.weight is small[0].weight
    assert small[1].out_proj.weight is not model[0].weight


def test_attention_never_called_says_so():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention()

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.attention.in_proj_weight)

    found = find_layers(Reads(), X)
    assert [v.name for v in found] == ["attention.in_proj", "attention.out_proj"]
    assert all("never called" in (v.skipped or "") for v in found)


# --- torch.nn's own blocks --------------------------------------------------------------------------------------------


class Encoding(nn.Module):
    def __init__(self, norm_first: bool = False, activation: str = "relu") -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            E, 2, 16, batch_first=True, norm_first=norm_first, activation=activation, dtype=torch.float64
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.eval()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


PADDING = torch.tensor([[False] * L, [False] * 3 + [True] * (L - 3)])
FUSED = "_transformer_encoder_layer_fwd"


@pytest.fixture
def fused_calls(monkeypatch):
    calls = []
    fused = getattr(torch, FUSED)
    monkeypatch.setattr(torch, FUSED, lambda *args: calls.append(1) or fused(*args))
    return calls


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("part", ["", "in_proj", "out_proj", "linear1", "0.linear2", "1.linear1"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("gradients", [False, True])
def test_an_encoder_compresses_and_is_fused_again_when_folded(part, norm_first, activation, gradients, fused_calls):
    """Padded positions are left out: torch returns zeros there where it is fused, and something else where not."""
    model = Encoding(norm_first, activation)
    plan = full_rank(model, part=part)
    untouched = {n for n in ("0", "1") if not any(f".{n}." in layer for layer in plan)}
    small = compress(model, plan)
    dense = fold(small, plan, list_layers(model))

    def num_fused(m: nn.Module, padding: Tensor | None, expected: Tensor) -> int:
        kept = slice(None) if padding is None else padding.logical_not()
        before = len(fused_calls)
        torch.testing.assert_close(m(X, padding)[kept], expected[kept])
        return len(fused_calls) - before

    with torch.set_grad_enabled(gradients):
        for padding in (None, PADDING):
            expected = model(X, padding)
            assert num_fused(small, padding, expected) == (0 if gradients else len(untouched))
            assert num_fused(dense, padding, expected) == (0 if gradients else 2)
    assert [vars(m).keys() for m in dense.modules()] == [vars(m).keys() for m in model.modules()]
    assert model.encoder.use_nested_tensor is dense.encoder.use_nested_tensor is not norm_first
    assert {m.activation_relu_or_gelu for m in dense.encoder.layers} == {1 if activation == "relu" else 2}
    small.train()(X, PADDING).sum().backward()


def test_a_fused_path_that_was_off_stays_off():
    model = Encoding()
    model.encoder.layers[0].activation_relu_or_gelu = 0
    model.encoder.use_nested_tensor = False
    plan = full_rank(model)
    dense = fold(compress(compress(model, plan), {}), plan, list_layers(model))
    assert [layer.activation_relu_or_gelu for layer in dense.encoder.layers] == [0, 1]
    assert not dense.encoder.use_nested_tensor


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but")
def test_a_whole_transformer_compresses(batch_first):
    torch.manual_seed(0)
    model = nn.Transformer(E, 2, 1, 2, 16, batch_first=batch_first, dtype=torch.float64).eval()
    source, target = (randn(B, S, E, seed=2), X) if batch_first else (randn(S, B, E, seed=2), randn(L, B, E))
    example = (source[:1], target[:1]) if batch_first else (source[:, :1], target[:, :1])
    mask = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    found = find_layers(model, example)
    assert not any(layer.skipped for layer in found)
    assert {v.name.rpartition(".")[2] for v in found if "multihead_attn" in v.name} == {
        "q_proj", "k_proj", "v_proj", "out_proj",
    }  # fmt: skip
    plan = full_rank(model, {v.name for v in found})
    assert set(plan) == {v.name for v in found}
    small = compress(model, plan, layers=found)
    for arguments in ({}, {"tgt_mask": mask, "tgt_is_causal": True}):
        torch.testing.assert_close(small(source, target, **arguments), model(source, target, **arguments))
    low = Plan({name: LayerChoice.parse("svd:2") for name in plan})
    assert plan_cost(found, low, cost(model, example)) == cost(compress(model, low, layers=found), example)


class HandWritten(nn.Module):
    """A block as other libraries write it: q, k, v and out are ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(E, E, bias=False) for _ in range(4))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_separate_layers_of_other_transformers_are_ordinary_layers():
    model = HandWritten()
    plan = full_rank(model)
    assert set(plan) == {"q", "k", "v", "out"}
    torch.testing.assert_close(compress(model, plan)(X), model(X))
