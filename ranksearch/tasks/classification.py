"""What makes a model and labelled data a classification task: loss, distillation, and the checks that they fit."""

import torch
from torch import nn
from torch.nn import functional

from ranksearch.errors import DataError, ModelError
from ranksearch.inputs import Inputs, forward
from ranksearch.tasks.data import Data
from ranksearch.tasks.metrics import Metric
from ranksearch.tasks.resolve import one_line
from ranksearch.tasks.split import targets_of
from ranksearch.tasks.task import Task

__all__ = ["classification_task", "cross_entropy", "distillation"]


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of logits (N, K, …) and class labels (N, …)."""
    return functional.cross_entropy(outputs, targets)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL(teacher ‖ student) of logits (N, K, …) softened by T, mean over examples.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    logs = [functional.log_softmax(logits / temperature, dim=1) for logits in (student, teacher)]
    return temperature**2 * functional.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(1).mean()


def classification_task(model: nn.Module, data: Data, metric: Metric, *, metric_name: str, model_name: str) -> Task:
    """Raises ModelError or DataError when the model does not give a logit for each of the data's classes."""
    example_input = data.example_input
    _check_logits(model.cpu().eval(), example_input, data)
    return Task(
        model=model,
        train=data.train,
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        loss=cross_entropy,
        metric=metric,
        metric_name=metric_name,
        example_input=example_input,
        augment=data.augment,
        distillation=distillation,
        model_name=model_name,
        data_name=data.name,
    )


def _check_logits(model: nn.Module, example_input: Inputs, data: Data) -> None:
    try:
        with torch.inference_mode():
            logits = forward(model, example_input)
    except Exception as error:
        got = f"input of shape {tuple(data.input_shape)}" if data.input_shape else "input"
        raise ModelError(f"the model does not run on the data's {got}: {one_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() < 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"the model gives {shape}, not logits (N, classes); for another task return a ranksearch.Task")
    largest = max(
        (int(labels.max()) for split in data.splits.values() if (labels := targets_of(split)) is not None), default=0
    )
    if largest >= logits.shape[1]:
        raise DataError(
            f"label {largest} is out of range: the model has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}"
        )
