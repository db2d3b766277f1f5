"""A plan applied to a model, and taken back: layers replaced by small ones, small ones by dense ones."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ranksearch.attention import UnpackedAttention, pack, switch_fused_paths, unpacked
from ranksearch.errors import ModelError, SpaceError
from ranksearch.factorize import FactorCache, LayerShape, Method, StandardLayer, method_named
from ranksearch.factorize.metric import Metric
from ranksearch.layers import FoundLayer, list_layers
from ranksearch.records import Cost, LayerChoice, Plan, nearest

__all__ = ["compress", "fold", "plan_cost"]


@torch.no_grad()
def compress(
    model: nn.Module,
    plan: Mapping[str, LayerChoice],
    *,
    cache: FactorCache | None = None,
    layers: Iterable[FoundLayer] | None = None,
    init: Literal["decompose", "random"] = "decompose",
    metrics: Mapping[str, Metric] | None = None,
) -> nn.Module:
    """A copy of the model with the layers of the plan replaced, by standard modules wherever the method allows.

    The model is not changed and shares nothing with the copy. Dtype, device, memory format, train or eval mode and
    requires_grad are those of the replaced layer. init="random" builds the same layers without decomposing, to be
    trained or to take a state dict. Attention with a projection in the plan becomes an UnpackedAttention.

    `layers`, from `find_layers`, saves looking and brings reasons that only a forward pass can tell. `metrics`, from
    `gather_metrics`, say by layer how the methods that take one measure errors.

    Raises SpaceError for a layer that the model does not have, that must stay as it is or that the method refuses,
    and for ranks out of range; ModelError for a weight that is not finite.
    """
    cache = cache or FactorCache(max_bytes=0)
    steps = _steps(list_layers(model, plan) if layers is None else layers, plan)
    twin = unpacked(model, {step.name for step in steps})
    replacements: dict[int, Any] = {}  # deepcopy's memo: id of a module -> what stands for it wherever it is held
    for step in steps:
        dense = cast("StandardLayer", twin.get_submodule(step.name))
        metric = (metrics or {}).get(step.name)
        replacements[id(dense)] = _build(dense, step) if init == "random" else _decompose(dense, step, cache, metric)
    small = copy.deepcopy(twin, replacements)
    switch_fused_paths(small)
    return small


@torch.no_grad()
def fold(model: nn.Module, plan: Mapping[str, LayerChoice], layers: Iterable[FoundLayer]) -> nn.Module:
    """A copy of a compressed model with the layers of the plan dense again: the same function, up to rounding.

    `layers` are those of the dense model. Raises SpaceError where the plan does not fit them.
    """
    replacements: dict[int, Any] = {}
    for step in _steps(layers, plan):
        small = model.get_submodule(step.name)
        replacements[id(small)] = _fold(small, step)
    dense = copy.deepcopy(model, replacements)
    for module in list(dense.modules()):
        if isinstance(module, UnpackedAttention) and all(isinstance(part, nn.Linear) for part in module.children()):
            pack(module)
    switch_fused_paths(dense)
    return dense


def plan_cost(layers: Iterable[FoundLayer], plan: Mapping[str, LayerChoice], dense: Cost) -> Cost:
    """What the model costs under the plan, from what it costs dense. Raises SpaceError as `compress` does."""
    parameters, macs = dense.parameters, dense.macs
    for step in _steps(layers, plan):
        before, after = step.shape.cost(), step.method.cost(step.shape, step.ranks)
        parameters += after.parameters - before.parameters
        macs += after.macs - before.macs
    return Cost(parameters=parameters, macs=macs)


class _Step(NamedTuple):
    """One replacement that a plan asks for, known to be possible."""

    name: str
    shape: LayerShape
    method: Method
    ranks: tuple[int, ...]


def _steps(layers: Iterable[FoundLayer], plan: Mapping[str, LayerChoice]) -> list[_Step]:
    found = {layer.name: layer for layer in layers}
    return [_step(found, name, choice) for name, choice in Plan(plan).items()]


def _step(found: Mapping[str, FoundLayer], name: str, choice: LayerChoice) -> _Step:
    shape = _replaceable(found, name)
    try:
        method = method_named(choice.method)
        method.check(shape, choice.ranks)
    except SpaceError as error:
        raise SpaceError(f"layer {name!r}: {error}") from None
    return _Step(name, shape, method, choice.ranks)


def _replaceable(found: Mapping[str, FoundLayer], name: str) -> LayerShape:
    if name not in found:
        raise SpaceError(f"the plan names layer {name!r}{nearest(name, found)}; the model has {_some(found)}")
    layer = found[name]
    if layer.skipped or layer.shape is None:
        raise SpaceError(f"layer {name!r} ({layer.kind}) must stay dense: {layer.skipped}; take it out of the plan")
    return layer.shape


def _some(names: Mapping[str, FoundLayer], most: int = 4) -> str:
    shown = ", ".join(list(names)[:most]) or "no layer that can be replaced"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _build(dense: StandardLayer, step: _Step, device: str | torch.device | None = None) -> nn.Module:
    """The small layer with everything of the dense one but its numbers."""
    device = device or dense.weight.device
    small = step.method.build(step.shape, step.ranks, device=device, dtype=dense.weight.dtype)
    _take_after(dense, small)
    return small.to(memory_format=_memory_format(dense))


def _decompose(dense: StandardLayer, step: _Step, cache: FactorCache, metric: Metric | None) -> nn.Module:
    small = _build(dense, step, "meta").to_empty(device=dense.weight.device)  # no initial numbers are drawn
    try:
        factors = cache.factors(step.method, dense.weight, step.shape, step.ranks, metric)
    except ModelError as error:
        raise ModelError(f"layer {step.name!r}: {error}") from None
    step.method.assign(small, factors, step.ranks, dense.bias)
    return small


def _fold(small: nn.Module, step: _Step) -> StandardLayer:
    exact = copy.deepcopy(small).double()  # so that the product is rounded once
    weight, bias = step.method.weight_of(exact, step.shape), step.method.bias_of(exact)
    like = next(parameter for name, parameter in small.named_parameters() if not _is_bias(name))
    dense = step.shape.build(device="meta", dtype=like.dtype).to(memory_format=_memory_format(small))
    dense = dense.to_empty(device=like.device).train(small.training)
    dense.load_state_dict({"weight": step.shape.native(weight)} | ({} if bias is None else {"bias": bias}))
    for name, parameter in small.named_parameters():
        (dense.bias if _is_bias(name) else dense.weight).requires_grad_(parameter.requires_grad)  # type: ignore[union-attr]
    return dense


def _take_after(old: StandardLayer, new: nn.Module) -> None:
    new.train(old.training)
    for name, parameter in new.named_parameters():  # 0.weight, 1.bias, cores.0 …
        parameter.requires_grad_((old.bias if _is_bias(name) else old.weight).requires_grad)  # type: ignore[union-attr]


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _memory_format(module: nn.Module) -> torch.memory_format:
    """channels_last where a weight has its strides; is_contiguous() would say yes to both where there is one tap."""
    channels_last = any(p.dim() == 4 and _strides_tell_channels_last(p) for p in module.parameters())
    return torch.channels_last if channels_last else torch.contiguous_format


def _strides_tell_channels_last(weight: Tensor) -> bool:
    return weight[0].numel() > 1 and weight.stride(1) == 1 and weight.stride(3) == weight.size(1)
