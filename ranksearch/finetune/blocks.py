"""Distillation of block outputs: the compressed net's blocks shall give what the dense net's give.

    mean over blocks of  mean((ours − theirs)²) / mean(theirs²)     ours, theirs: a block's output for the same batch

A block is a child of the model that holds a replaced layer, or is one, and whose output is one tensor. The children of
a model's only child count instead of it where that is a Sequential, and those of a ModuleList or ModuleDict, which has
no output. What a block gives in its first call counts. The dense model runs along in eval mode: such outputs are too
large to be kept. Replaced layers change no shapes, so nothing need be learnt between the two nets.

Source: Romero et al. 2015 (FitNets, arXiv 1412.6550), who match one hidden layer before the training proper; here all
blocks are matched, in the course of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import ConfigError
from ranksearch.finetune.batches import autocast
from ranksearch.inputs import Inputs, forward, in_float32

__all__ = ["BlockTeacher", "outputs_of"]


class BlockTeacher:
    """The dense model, and the names of its `blocks` that hold one of the `replaced` layers. It is left as it is."""

    def __init__(self, dense: nn.Module, replaced: Iterable[str], precision: str, device: torch.device) -> None:
        self.dense, self.precision, self.device = dense, precision, device
        starts = {f"{name}." for name in replaced}
        self.blocks = [name for name in _children(dense) if any(s.startswith(f"{name}.") for s in starts)]

    def distance(self, ours: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """From the outputs of the compressed model's blocks for these inputs; a scalar. Raises ConfigError where the
        model has no block."""
        with torch.no_grad(), autocast(self.precision, self.device), outputs_of(self.dense, self.blocks) as theirs:
            forward(self.dense, inputs)
        if not theirs:
            raise ConfigError(
                f"no child of {type(self.dense).__name__} both holds a replaced layer and gives one tensor, which "
                "block_distillation needs; set it to 0"
            )
        return torch.stack([_relative(in_float32(ours[name]), in_float32(theirs[name])) for name in theirs]).mean()


@contextmanager
def outputs_of(model: nn.Module, blocks: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Block -> its output, if that is a tensor, filled by a forward pass inside of the context."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in blocks:

            def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    found.setdefault(name, output)

            hooks.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def _children(model: nn.Module) -> list[str]:
    only = list(model.named_children())
    if len(only) == 1 and isinstance(only[0][1], nn.Sequential):
        return [f"{only[0][0]}.{name}" for name in _children(only[0][1])]
    return [name for child in only for name in _opened(*child)]


def _opened(name: str, module: nn.Module) -> list[str]:
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [name]
    return [f"{name}.{inner}" for child in module.named_children() for inner in _opened(*child)]


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean() / theirs.square().mean()
