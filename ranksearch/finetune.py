"""A trial's short training: SGD on fixed batches, distilling the dense model's outputs.

Every trial of a study sees the same batches in the same order, so trials differ by their plans and not by their luck,
and the dense model's outputs on them are computed once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ranksearch.errors import NonFiniteError
from ranksearch.inputs import Inputs, forward, to_device
from ranksearch.records import FinetuneConfig
from ranksearch.tasks import Task

__all__ = ["Batch", "autocast", "finetune", "fixed_batches", "memory_format"]


@dataclass(frozen=True, slots=True)
class Batch:
    inputs: Inputs
    targets: Any
    teacher: Any  # the dense model's outputs, or None


def memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def in_float32(outputs: Any) -> Any:
    """Outputs of an autocast forward, ready for a loss: half-precision tensors become float32."""
    return tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, outputs)


def fixed_batches(
    task: Task, teacher: nn.Module | None, config: FinetuneConfig, seed: int, device: torch.device
) -> Iterator[Batch]:
    """`config.steps` training batches, augmented, with the teacher's outputs: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for indices in _sample(len(task.train), config, generator):
        inputs, targets = task.train.batch(indices)
        if task.augment is not None:
            inputs = task.augment(inputs, generator)
        inputs, targets = to_device(inputs, device, layout=config.layout), to_device(targets, device)
        with torch.no_grad(), autocast(config.precision, device):
            outputs = in_float32(forward(teacher, inputs)) if teacher is not None else None
        yield Batch(inputs, targets, outputs)


def _sample(num_examples: int, config: FinetuneConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of each step's batch: epochs of a fresh permutation, as many as the steps need."""
    size = min(config.batch_size, num_examples)
    per_epoch = num_examples // size
    for step in range(config.steps):
        if step % per_epoch == 0:
            order = torch.randperm(num_examples, generator=generator)
        yield order[(step % per_epoch) * size :][:size]


def finetune(
    model: nn.Module,
    batches: Sequence[Batch] | Iterator[Batch],
    task: Task,
    config: FinetuneConfig,
    device: torch.device,
) -> float:
    """Train `model` in place for one step a batch, learning rate falling linearly to zero. Returns the last loss.

    Raises NonFiniteError at the first loss that is NaN or infinite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    loss_of = _loss(task, config)
    value = math.nan
    model.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / config.steps)
        optimizer.zero_grad(set_to_none=True)
        with autocast(config.precision, device):
            outputs = in_float32(forward(model, batch.inputs))
        loss = loss_of(outputs, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss was {value} at fine-tuning step {step + 1} of {config.steps}")
        loss.backward()
        optimizer.step()
    model.eval()
    return value


def _loss(task: Task, config: FinetuneConfig) -> Callable[[Any, Batch], Tensor]:
    distil = task.distillation

    def loss(outputs: Any, batch: Batch) -> Tensor:
        if distil is None or config.distillation == 0:
            return task.loss(outputs, batch.targets)
        taught = distil(outputs, batch.teacher, config.temperature)
        if config.distillation == 1:
            return taught
        return config.distillation * taught + (1 - config.distillation) * task.loss(outputs, batch.targets)

    return loss
