"""How a model is run when it is timed. Another backend is one class here and one word in `BACKENDS`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from ranksearch.records import MeasureConfig

__all__ = ["BACKENDS", "Backend", "Eager"]


class Backend(Protocol):
    """Turns a model, prepared and on its device, into something to call.

    Law: the callable returns what the model returns for `inputs`, within the config's dtype, as often as it is called.
    """

    @property
    def name(self) -> str: ...

    def prepare(
        self, model: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device
    ) -> Callable[[], object]: ...


class Eager:
    """The model as it is, one kernel after another."""

    name = "eager"

    def prepare(
        self,
        model: nn.Module,
        inputs: Any,
        config: MeasureConfig,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> Callable[[], object]:
        if isinstance(inputs, tuple):
            return lambda: model(*inputs)
        if isinstance(inputs, Mapping):
            return lambda: model(**inputs)
        return lambda: model(inputs)


BACKENDS: Mapping[str, Backend] = MappingProxyType({backend.name: backend for backend in (Eager(),)})
