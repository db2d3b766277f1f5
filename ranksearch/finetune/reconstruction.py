"""Layer-wise reconstruction: every replaced layer learns what the dense one makes of its input, one after the other.

    minimise Σ ‖small(x̂) − dense(x)‖²   layer after layer, in the order in which they are called

x is what enters the layer in the dense model, x̂ what enters it in the compressed one, whose earlier layers are done:
a layer also makes up for the errors before it. Sources: Zhang, Zou, He, Sun 2016 (arXiv 1505.06798), section 3.3, who
solve it in closed form; Adam's steps here take any method's layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.attention import unpacked
from ranksearch.inputs import Inputs, forward
from ranksearch.layers import FoundLayer
from ranksearch.records import Plan

__all__ = ["reconstruct"]

LEARNING_RATE = 1e-3
BATCH = 32
KEEP_BYTES = 256 * 2**20  # inputs and targets of a layer; fewer examples where all would take more


def reconstruct(
    model: nn.Module,
    dense: nn.Module,
    plan: Plan,
    layers: Iterable[FoundLayer],
    batches: Sequence[Inputs],
    *,
    steps: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """`steps` of Adam for each layer of the plan, in place. Returns layer -> its relative error before and after.

    layers: the dense model's, in order of call, from `find_layers`. batches: calibration inputs, on the device.
    Errors are those on the same inputs; a layer that got no better keeps what it had. What a layer gets in its first
    call counts. BatchNorm of the compressed model uses the statistics of each batch and keeps its own as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    twin = unpacked(dense, plan)
    errors: dict[str, tuple[float, float]] = {}
    for name in (layer.name for layer in layers if layer.name in plan):
        small = model.get_submodule(name)
        x, y = _examples(model, small, twin, twin.get_submodule(name), batches)
        errors[name] = _fit(small, x, y, steps, generator)
    return errors


def _fit(small: nn.Module, x: Tensor, y: Tensor, steps: int, generator: torch.Generator) -> tuple[float, float]:
    parameters = [p for p in small.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    first = _relative_error(small, x, y)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE) if parameters else None
    for step in range(steps if optimizer else 0):
        assert optimizer is not None
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        chosen = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
        optimizer.zero_grad(set_to_none=True)
        functional.mse_loss(small(x[chosen]), y[chosen]).backward()
        optimizer.step()
    last = _relative_error(small, x, y)
    if not last < first:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        return first, first
    return first, last


@torch.no_grad()
def _relative_error(small: nn.Module, x: Tensor, y: Tensor) -> float:
    """‖small(x) − y‖ / ‖y‖."""
    squares = sum((small(a) - b).double().square().sum() for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True))
    return float((squares / y.double().square().sum()) ** 0.5)


def _examples(
    model: nn.Module, small: nn.Module, dense: nn.Module, layer: nn.Module, batches: Sequence[Inputs]
) -> tuple[Tensor, Tensor]:
    """What enters the small layer, and what the dense one makes of its own input, along dimension 0."""
    pairs: list[tuple[Tensor, Tensor]] = []
    size = 0
    with torch.no_grad():
        for inputs in batches:
            with _batch_statistics(model):
                x = _entering(model, small, inputs)
            y = layer(_entering(dense, layer, inputs))
            pairs.append((x, y))
            size += x.nbytes + y.nbytes
            if size >= KEEP_BYTES:
                break
    xs, ys = zip(*pairs, strict=True)
    return torch.cat(xs), torch.cat(ys)


class _Reached(Exception):  # noqa: N818 - it ends a forward pass, and is no error
    pass


def _entering(model: nn.Module, layer: nn.Module, inputs: Inputs) -> Tensor:
    """The layer's first input; nothing behind it runs."""
    found: list[Tensor] = []

    def record(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((*args, *kwargs.values())[0])
        raise _Reached

    hook = layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        forward(model, inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch, and remembers nothing of it."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not m.training]
    for layer in layers:
        layer.train()
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
            layer.track_running_stats = True
