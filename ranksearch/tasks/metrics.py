"""Metrics: (outputs, targets) -> one score an example, a tensor (N,), or one number for all. Higher is better."""

from collections.abc import Callable
from typing import Any

import torch

from ranksearch.errors import ConfigError
from ranksearch.tasks.resolve import resolve

__all__ = ["Metric", "accuracy", "find_metric"]

Metric = Callable[[Any, Any], "torch.Tensor | float"]


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Top-1: 1.0 where the largest logit is the target's, else 0.0. outputs (N, K), targets (N,) -> (N,)."""
    return (outputs.argmax(1) == targets).float()


def find_metric(metric: str | Metric | None) -> tuple[Metric, str]:
    """A metric and its name, from `module:function`, `accuracy`, a function, or None (accuracy).

    Raises ConfigError when the text names nothing that can be called.
    """
    if metric is None or metric == "accuracy":
        return accuracy, "accuracy"
    if isinstance(metric, str):
        return resolve(metric, error=ConfigError, words=["accuracy"]), metric
    return metric, getattr(metric, "__qualname__", type(metric).__name__)
