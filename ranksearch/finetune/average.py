"""An exponential moving average of a model's weights, to be evaluated instead of the last ones.

average ← decay · average + (1 − decay) · weights,   after every step; the first step's weights begin it
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Of the parameters that are trained. Buffers are not averaged: BatchNorm's are re-estimated afterwards."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values: list[Tensor] = []  # none before the first step

    @torch.no_grad()
    def update(self) -> None:
        if not self.values:
            self.values = [parameter.clone() for parameter in self.parameters]
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def write(self) -> None:
        """Into the parameters themselves."""
        for value, parameter in zip(self.values, self.parameters, strict=False):
            parameter.copy_(value)
