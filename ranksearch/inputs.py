"""What a model takes: a tensor, a tuple (positional arguments) or a dict (keyword arguments) of tensors.

A list is one argument, as detection models want it. Tensors have the examples along dimension 0; scalars stay as they
are.
"""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = ["Inputs", "forward", "in_float32", "num_examples", "select", "take", "tensors", "to_device"]


Inputs = torch.Tensor | tuple[Any, ...] | dict[str, Any] | list[Any]


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """`model(inputs)`, `model(*inputs)` of a tuple or `model(**inputs)` of a dict."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a nest of tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def to_device(
    inputs: Any, device: torch.device | str, *, layout: str = "contiguous", dtype: torch.dtype | None = None
) -> Any:
    """A nest of tensors on `device`. `layout` ("contiguous" or "channels_last") is applied to 4-D tensors, `dtype` to
    floating-point ones; what is no tensor is passed on as it is."""
    asynchronous = torch.device(device).type != "cpu"  # a copy to the CPU must have arrived before it is read

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        order = torch.channels_last if layout == "channels_last" and leaf.dim() == 4 else torch.preserve_format
        cast = dtype if leaf.is_floating_point() else None
        return leaf.to(device, dtype=cast, memory_format=order, non_blocking=asynchronous)

    return tree_map(move, inputs)


def in_float32(outputs: Any) -> Any:
    """What a model returned, ready for a loss: half-precision tensors, as autocast makes them, become float32."""
    half = (torch.bfloat16, torch.float16)
    return tree_map_only(torch.Tensor, lambda leaf: leaf.float() if leaf.dtype in half else leaf, outputs)


def take(tree: Any, indices: torch.Tensor) -> Any:
    """The examples `indices` of a nest of tensors; scalars and what is no tensor stay."""
    return tree_map(lambda leaf: leaf[indices] if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf, tree)


def num_examples(tree: Any) -> int:
    """How many examples a nest of tensors holds. Raises ValueError when it holds no tensor that has any dimension."""
    for leaf in tensors(tree):
        if leaf.dim():
            return len(leaf)
    raise ValueError("no tensor with a batch dimension")


def select(inputs: Any, batch_size: int) -> Any:
    """`inputs` cut or repeated along the batch to `batch_size` examples."""
    return take(inputs, torch.arange(batch_size) % num_examples(inputs))
