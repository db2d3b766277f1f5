"""What a training step minimises: the dense model's outputs, the task's own loss, and a mixture of the two."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ranksearch.finetune.batches import Batch
from ranksearch.records import FinetuneConfig
from ranksearch.tasks import Task

__all__ = ["batch_loss"]


def batch_loss(task: Task, config: FinetuneConfig) -> Callable[[Any, Batch], Tensor]:
    """(outputs, batch) -> scalar. The loss of the task alone where it has no distillation."""
    distil, share = task.distillation, config.distillation

    def loss(outputs: Any, batch: Batch) -> Tensor:
        if distil is None or share == 0:
            return task.loss(outputs, batch.targets)
        taught = distil(outputs, batch.teacher, config.temperature)
        if share == 1:
            return taught
        return share * taught + (1 - share) * task.loss(outputs, batch.targets)

    return loss
