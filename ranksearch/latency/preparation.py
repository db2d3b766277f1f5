"""Bringing config, model and inputs into the form that is measured."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ranksearch.errors import DataError
from ranksearch.records import MeasureConfig

__all__ = ["DEFAULT_BATCH_SIZES", "prepare", "prepare_inputs", "resolve", "resolve_batch_size"]

DEFAULT_BATCH_SIZES = {"cpu": 8, "cuda": 32}


def resolve_batch_size(config: MeasureConfig, device: torch.device) -> int:
    """The batch size that `config` asks for; 0 means 8 on a CPU, 32 on a GPU."""
    return config.batch_size or DEFAULT_BATCH_SIZES[device.type]


def resolve(config: MeasureConfig, device: torch.device) -> MeasureConfig:
    """`config` with its batch size written out."""
    return replace(config, batch_size=resolve_batch_size(config, device))


def prepare(model: nn.Module, config: MeasureConfig, device: torch.device) -> nn.Module:
    """A copy of `model` to measure: eval mode, no gradients, on the device, in the config's dtype and layout."""
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    return prepared.to(device=device, dtype=_dtype(config)).to(memory_format=_memory_format(config))


def prepare_inputs(example: Any, config: MeasureConfig, device: torch.device) -> Any:
    """The batch to measure with: `example`, a batch of one, repeated to the config's batch size.

    `example` is a tensor, or tuples, lists and dicts of them; tensors without dimensions and what is no tensor stay as
    they are. Floating tensors get the config's dtype, those of four dimensions its layout. Raises DataError on a
    tensor whose first dimension is not 1.
    """
    return tree_map(lambda leaf: _prepare_leaf(leaf, config, device), example)


def _prepare_leaf(leaf: Any, config: MeasureConfig, device: torch.device) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    dtype = _dtype(config) if leaf.is_floating_point() else leaf.dtype
    batch = _repeat(leaf.to(device=device, dtype=dtype), resolve_batch_size(config, device))
    return batch.contiguous(memory_format=_memory_format(config)) if batch.dim() == 4 else batch


def _repeat(example: torch.Tensor, batch_size: int) -> torch.Tensor:
    if example.dim() == 0:
        return example
    if example.shape[0] != 1:
        raise DataError(
            f"the example input has shape {tuple(example.shape)}; its first dimension must be 1: give one example, "
            f"which is repeated to the batch of {batch_size} that is measured"
        )
    return example.repeat(batch_size, *[1] * (example.dim() - 1))


def _dtype(config: MeasureConfig) -> torch.dtype:
    return getattr(torch, config.dtype)


def _memory_format(config: MeasureConfig) -> torch.memory_format:
    return torch.channels_last if config.layout == "channels_last" else torch.contiguous_format
