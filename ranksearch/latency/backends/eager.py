"""The model as it is, one kernel after another."""

from typing import Any

import torch
from torch import nn

from ranksearch.inputs import forward
from ranksearch.latency.backends.backend import Call
from ranksearch.records import MeasureConfig

__all__ = ["Eager"]


class Eager:
    name = "eager"
    version = str(torch.__version__)

    def check(self, config: MeasureConfig, device: torch.device) -> None:
        """torch runs every dtype everywhere, some of them slowly."""

    def prepare(
        self,
        model: nn.Module,
        inputs: Any,
        config: MeasureConfig,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> Call:
        return lambda: forward(model, inputs)
