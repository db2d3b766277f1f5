"""Training batches: the same for every trial of a study, each with what the dense model says of it.

So trials differ by their plans and not by their luck, and the dense model's outputs are computed once.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.inputs import Inputs, forward, in_float32, to_device
from ranksearch.records import FinetuneConfig
from ranksearch.tasks import Task
from ranksearch.tasks.augment import Contrast

__all__ = ["Batch", "autocast", "fixed_batches", "memory_format"]


@dataclass(frozen=True)
class Batch:
    inputs: Inputs
    targets: Any
    teach: Callable[[Inputs], Any] | None = None

    @cached_property
    def teacher(self) -> Any:
        """The dense model's outputs, or None; computed when first asked for, so that a batch is skipped cheaply."""
        return None if self.teach is None else self.teach(self.inputs)


def memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def fixed_batches(
    task: Task, teacher: nn.Module | None, config: FinetuneConfig, seed: int, device: torch.device
) -> Iterator[Batch]:
    """As many augmented training batches as the config has steps, without end where only seconds bound it: the same
    for the same seed. Raises ConfigError where contrast is asked for and the inputs are no images."""

    def teach(inputs: Inputs) -> Any:
        assert teacher is not None
        with torch.no_grad(), autocast(config.precision, device):
            return in_float32(forward(teacher, inputs))

    generator, views = torch.Generator().manual_seed(seed), _views(task, config)
    for indices in _sample(len(task.train), config, generator):
        inputs, targets = task.train.batch(indices)
        for view in views:
            inputs = view(inputs, generator)
        inputs, targets = to_device(inputs, device, layout=config.layout), to_device(targets, device)
        yield Batch(inputs, targets, teach if teacher is not None else None)


def _views(task: Task, config: FinetuneConfig) -> list[Callable[[Any, torch.Generator], Any]]:
    own = [task.augment] if task.augment is not None and config.augmentation != "none" else []
    return [*own, Contrast()] if config.augmentation == "contrast" else own


def _sample(num_examples: int, config: FinetuneConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of each step's batch: epochs of a fresh permutation, as many as the steps need."""
    size = min(config.batch_size, num_examples)
    per_epoch = num_examples // size
    order = torch.empty(0)
    for step in itertools.islice(itertools.count(), config.num_steps(num_examples)):
        if step % per_epoch == 0:
            order = torch.randperm(num_examples, generator=generator)
        yield order[(step % per_epoch) * size :][:size]
