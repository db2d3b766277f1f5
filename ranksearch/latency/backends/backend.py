"""What a backend promises, and how it says that it cannot run a model."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from ranksearch.errors import MeasurementError
from ranksearch.records import MeasureConfig

__all__ = ["Backend", "Call", "cannot_run"]

Call = Callable[[], object]


class Backend(Protocol):
    """Turns a model, prepared and on its device, into something to call.

    Law: the callable returns what the model returns for `inputs`, within the config's dtype, as often as it is called.
    What it returned before may be overwritten then.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Of the library that runs the model; part of a latency's identity."""
        ...

    def check(self, config: MeasureConfig, device: torch.device) -> None:
        """Raises ConfigError where something is not installed, or the device or its dtype is none that it can use."""
        ...

    def prepare(self, model: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device) -> Call:
        """Raises MeasurementError on a model that it cannot run."""
        ...


def cannot_run(name: str, error: Exception) -> MeasurementError:
    return MeasurementError(f"backend {name!r} cannot run this model: {' '.join(str(error).split())[:300]}")
