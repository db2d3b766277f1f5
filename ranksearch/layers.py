"""The layers of a model: what they are, how often they run, and why some must stay as they are."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.errors import ModelError
from ranksearch.factorize import KINDS, LayerShape, StandardLayer
from ranksearch.inputs import forward
from ranksearch.records import Record

__all__ = ["FoundLayer", "find_layers", "list_layers", "total_macs"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundLayer(Record):
    """A layer of a model. One with a `skipped` reason stays dense; one without a `shape` has such a reason."""

    name: str  # that of its first registration, as in model.named_modules()
    kind: str  # the module's class
    shape: LayerShape | None = None
    skipped: str | None = None


def list_layers(model: nn.Module) -> tuple[FoundLayer, ...]:
    """The layers in order of registration, with what can be said without running the model: no input sizes."""
    reasons = {**_shared(model), **_read_by_parent(model)}
    return tuple(
        _describe(name, module, reasons.get(module))
        for name, module in model.named_modules()
        if isinstance(module, (*KINDS, *_UNSUPPORTED))
    )


def find_layers(model: nn.Module, example_input: Any) -> tuple[FoundLayer, ...]:
    """The layers in order of first call, those never called last, with the sizes of what enters them.

    The model runs once, in eval mode and without gradients, on a batch of one example.
    Raises ModelError where it fails. The model is left as it was.
    """
    listed = {layer.name: layer for layer in list_layers(model)}
    sizes = _input_sizes(model, listed, example_input)
    called = [_sized(listed[name], sizes[name]) for name in sizes]
    return (*called, *(_never_called(layer) for name, layer in listed.items() if name not in sizes))


def total_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of one forward pass: half of what torch.utils.flop_counter counts. Raises ModelError."""
    counter = FlopCounterMode(display=False)
    with counter:
        _run(model, example_input)
    return counter.get_total_flops() // 2


def _describe(name: str, module: nn.Module, reason: str | None) -> FoundLayer:
    kind = type(module).__name__
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
        return FoundLayer(name=name, kind=kind, skipped="lazy and not initialised yet; run the model once")
    if not isinstance(module, tuple(KINDS)):
        return FoundLayer(name=name, kind=kind, skipped=f"no method takes a {kind}")
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


def _read_by_parent(model: nn.Module) -> dict[nn.Module, str]:
    """The modules whose weight their parent reads, so that a replacement would break it."""
    reasons: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            reasons[module.out_proj] = "MultiheadAttention reads its weight directly"
        if isinstance(module, nn.TransformerEncoderLayer):
            fused = "TransformerEncoderLayer reads its weight directly in eval mode"
            reasons |= {module.linear1: fused, module.linear2: fused}
    return reasons


def _input_sizes(
    model: nn.Module, listed: dict[str, FoundLayer], example_input: Any
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Layer name -> input sizes, in order of first call, only for layers that are called."""
    sizes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def recorder(layer: FoundLayer) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered = _entering((*args, *kwargs.values())[0], layer.shape) if layer.shape else ()
            sizes[layer.name] = sizes.get(layer.name, ()) + entered

        return record

    with ExitStack() as hooks:
        for name, layer in listed.items():
            hook = model.get_submodule(name).register_forward_pre_hook(recorder(layer), with_kwargs=True)
            hooks.callback(hook.remove)
        _run(model, example_input)
    return sizes


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
    with _evaluating(model):
        try:
            forward(model, example_input)
        except Exception as error:
            raise ModelError(f"the model fails on its example input: {type(error).__name__}: {error}") from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and attention computed by modules and operators that hooks and counters see."""
    modes = [(module, module.training) for module in model.modules()]
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for module, training in modes:
            module.training = training
