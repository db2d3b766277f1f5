"""The layers of a model: what they are, how often they run, and why some must stay as they are."""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.attention import PACKED, SEPARATE, is_separate, projections, qualified
from ranksearch.errors import ModelError
from ranksearch.factorize import KINDS, LayerShape, StandardLayer
from ranksearch.inputs import forward, tensors
from ranksearch.records import Record

__all__ = ["FoundLayer", "activation_bytes", "evaluating", "find_layers", "list_layers", "total_macs"]

# Classes with weights that no method takes: listed, so that nobody has to wonder where they are.
_UNSUPPORTED = (
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose3d,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
)
_ATTENDED = ("query", "key", "value")  # the first arguments of nn.MultiheadAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundLayer(Record):
    """A layer of a model. One with a `skipped` reason stays dense; one without a `shape` has such a reason."""

    name: str  # that of its first registration, as in model.named_modules()
    kind: str  # the module's class
    shape: LayerShape | None = None
    skipped: str | None = None


def list_layers(model: nn.Module, named: Container[str] = ()) -> tuple[FoundLayer, ...]:
    """The layers in order of registration, with what can be said without running the model: no input sizes.

    nn.MultiheadAttention stands there as its projections: in_proj and out_proj, or q_proj, k_proj, v_proj and out_proj
    where its inputs have several sizes or `named`, the layers of a plan or an export, says so.
    """
    reasons = _shared(model)
    packed = {
        m: r for m in model.modules() if isinstance(m, nn.MultiheadAttention) and (r := _stays_packed(m, reasons))
    }
    reasons |= {m.out_proj: "MultiheadAttention reads its weight directly" for m in packed} | packed
    found: list[FoundLayer] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module not in packed:
            parts = projections(module, separate=is_separate(name, named))
            found += [_describe(qualified(name, p), part, None) for p, part in parts.items() if p != "out_proj"]
        elif isinstance(module, (*KINDS, *_UNSUPPORTED, nn.MultiheadAttention)):
            found.append(_describe(name, module, reasons.get(module)))
    return tuple(found)


def find_layers(model: nn.Module, example_input: Any) -> tuple[FoundLayer, ...]:
    """The layers in order of first call, those never called last, with the sizes of what enters them.

    Attention whose query, key and value were not always one and the same tensor is listed by q_proj, k_proj, v_proj.
    The model runs once, in eval mode and without gradients, on a batch of one example.
    Raises ModelError where it fails. The model is left as it was.
    """
    before = {layer.name: layer for layer in list_layers(model)}
    sizes = _input_sizes(model, before, example_input)
    listed = {layer.name: before.get(layer.name, layer) for layer in list_layers(model, sizes)}
    called = [_sized(listed[name], sizes[name]) for name in sizes if name in listed]
    return (*called, *(_never_called(layer) for name, layer in listed.items() if name not in sizes))


def total_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of one forward pass: half of what torch.utils.flop_counter counts. Raises ModelError."""
    counter = FlopCounterMode(display=False)
    with counter:
        _run(model, example_input)
    return counter.get_total_flops() // 2


def activation_bytes(model: nn.Module, example_input: Any) -> int:
    """Bytes of all that modules without parts return for one example: what a pass that is followed back remembers."""
    sizes: list[int] = []
    with evaluating(model), ExitStack() as hooks:
        for module in model.modules():
            if not any(module.children()):
                hook = module.register_forward_hook(lambda _, __, out: sizes.extend(x.nbytes for x in tensors(out)))
                hooks.callback(hook.remove)
        forward(model, example_input)
    return max(1, sum(sizes))


def _describe(name: str, module: nn.Module, reason: str | None) -> FoundLayer:
    kind = type(module).__name__
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
        return FoundLayer(name=name, kind=kind, skipped="lazy and not initialised yet; run the model once")
    if not isinstance(module, tuple(KINDS)):
        return FoundLayer(name=name, kind=kind, skipped=reason or f"no method takes {kind} layers")
    layer = cast("StandardLayer", module)
    return FoundLayer(name=name, kind=kind, shape=LayerShape.of(layer), skipped=reason or _unlike_its_class(layer))


def _unlike_its_class(module: StandardLayer) -> str | None:
    """Why the module is not what its standard class is: its weight is not a parameter, or its forward is another."""
    if not {"weight", "bias"} <= set(module._parameters):
        return "its weight or bias is computed from other tensors (weight norm, a parametrization, pruning)"
    standard = next(standard for standard in KINDS if isinstance(module, standard))
    same = all(getattr(type(module), f, None) is getattr(standard, f, None) for f in ("forward", "_conv_forward"))
    return None if same and "forward" not in vars(module) else f"its forward is not that of {standard.__name__}"


def _shared(model: nn.Module) -> dict[nn.Module, str]:
    """The modules that share a parameter with another one."""
    owned = {m: [p for p in m._parameters.values() if p is not None] for m in model.modules()}
    num_owners = Counter(p for parameters in owned.values() for p in parameters)
    return {
        module: "it shares a parameter with another module"
        for module, parameters in owned.items()
        if any(num_owners[p] > 1 for p in parameters)
    }


def _stays_packed(attention: nn.MultiheadAttention, shared: Mapping[nn.Module, str]) -> str | None:
    """Why its projections cannot become layers of their own."""
    if type(attention) is not nn.MultiheadAttention or "forward" in vars(attention):
        return "its class or its forward is not that of MultiheadAttention"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "no method takes attention with add_bias_kv or add_zero_attn"
    if not set(PACKED) <= set(attention._parameters) or _unlike_its_class(attention.out_proj):
        return "a weight of it is computed from other tensors, or its out_proj is not a plain Linear"
    return shared.get(attention)


_Sizes: TypeAlias = dict[str, tuple[tuple[int, ...], ...]]
_Record: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def _input_sizes(model: nn.Module, listed: Mapping[str, FoundLayer], example_input: Any) -> _Sizes:
    """Layer name -> input sizes, in order of first call, only for layers that are called."""
    sizes: _Sizes = {}
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    attention = [n for n, m in modules.items() if isinstance(m, nn.MultiheadAttention) and n not in listed]
    records = {name: _layer_record(sizes, listed[name]) for name in modules if name in listed}
    records |= {name: _attention_record(sizes, name, names[modules[name].out_proj]) for name in attention}  # type: ignore[index]
    with ExitStack() as hooks:
        for name, record in records.items():
            hooks.callback(modules[name].register_forward_pre_hook(record, with_kwargs=True).remove)
        _run(model, example_input)
    for name in attention:
        _settle(sizes, name)
    return sizes


def _layer_record(sizes: _Sizes, layer: FoundLayer) -> _Record:
    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered = _entering((*args, *kwargs.values())[0], layer.shape) if layer.shape else ()
        sizes[layer.name] = sizes.get(layer.name, ()) + entered

    return record


def _attention_record(sizes: _Sizes, name: str, out_proj: str) -> _Record:
    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(_ATTENDED, args, strict=False)) | kwargs
        query, key, value = (given[argument] for argument in _ATTENDED)
        if query is key and key is value:
            entered = {qualified(name, "in_proj"): query}
        else:
            entered = {qualified(name, p): x for p, x in zip(SEPARATE, (query, key, value), strict=True)}
        for part, tensor in (entered | {out_proj: query}).items():
            sizes[part] = (*sizes.get(part, ()), (math.prod(tensor.shape[:-1]),))

    return record


def _settle(sizes: _Sizes, attention: str) -> None:
    """Attention that ran in both ways is listed as separate: what entered its in_proj entered all three."""
    if is_separate(attention, sizes):
        entered = sizes.pop(qualified(attention, "in_proj"), ())
        for part in SEPARATE:
            sizes[qualified(attention, part)] += entered


def _entering(tensor: Tensor, shape: LayerShape) -> tuple[tuple[int, ...], ...]:
    """The input sizes of one call. What a convolution gets as a batch counts as so many calls."""
    if shape.kind == "linear":
        return ((math.prod(tensor.shape[:-1]),),)
    spatial = len(shape.kernel_size)
    return (tuple(tensor.shape[-spatial:]),) * math.prod(tensor.shape[: -spatial - 1])


def _sized(layer: FoundLayer, sizes: tuple[tuple[int, ...], ...]) -> FoundLayer:
    return replace(layer, shape=replace(layer.shape, input_sizes=sizes)) if layer.shape else layer


def _never_called(layer: FoundLayer) -> FoundLayer:
    return replace(layer, skipped=layer.skipped or "never called in a forward pass; its weight may be used directly")


def _run(model: nn.Module, example_input: Any) -> None:
    with evaluating(model):
        try:
            forward(model, example_input)
        except Exception as error:
            raise ModelError(f"the model fails on its example input: {type(error).__name__}: {error}") from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and attention computed by modules and operators that hooks and counters see.

    Nor do parameters ask for a gradient: a view of one that does would trip the counter, where it enters a module.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in trained:
        parameter.requires_grad = False  # unlike requires_grad_(), also of a lazy one
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad = True
