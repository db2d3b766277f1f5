"""The learning rate as training goes on, and the optimizer that uses it."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from ranksearch.records import FinetuneConfig

__all__ = ["learning_rate", "make_optimizer"]

# schedule -> (progress in [0, 1], the config's decay_every) -> factor
_FACTORS: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "constant": lambda _, __: 1.0,
        "linear": lambda progress, _: 1 - progress,
        "cosine": lambda progress, _: (1 + math.cos(math.pi * progress)) / 2,
        "step": lambda progress, every: 0.1 ** math.floor(progress / every + 1e-9),
    }
)


def learning_rate(config: FinetuneConfig, progress: float) -> float:
    """At `progress`, the part of training that is done, 0 to 1."""
    return config.learning_rate * _FACTORS[config.schedule](progress, config.decay_every)


def make_optimizer(parameters: Iterable[nn.Parameter], config: FinetuneConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return adam(parameters, lr=rate, betas=(config.momentum, 0.999), weight_decay=decay)
