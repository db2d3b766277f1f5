"""The model compiled by torch.compile (inductor): seconds a model, so for a front rather than for every trial.

The whole pass is one graph of fixed shapes. Where torch would break it in two, the model is refused: which parts then
run compiled depends on what was compiled before.
"""

import importlib.util
import os
import shutil
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from ranksearch.errors import ConfigError
from ranksearch.inputs import forward
from ranksearch.latency.backends.backend import Call, cannot_run
from ranksearch.records import MeasureConfig
from ranksearch.threads import threads

__all__ = ["Compiled"]


class Compiled:
    name = "compile"
    version = str(torch.__version__)

    def check(self, config: MeasureConfig, device: torch.device) -> None:
        if device.type == "cpu" and not _compiler():
            raise ConfigError(
                f"backend is {config.backend!r}; on a CPU it needs a C++ compiler and finds none of "
                f"{', '.join(_compilers())}: install one, name it in CXX, or measure with another backend"
            )
        if device.type == "cuda" and not importlib.util.find_spec("triton"):
            raise ConfigError(
                f"backend is {config.backend!r}; on a GPU it needs the package triton, which is not installed: "
                "install it, or measure with another backend"
            )

    def prepare(self, model: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device) -> Call:
        options: Any = {"cpp.cxx": (_compiler(),)} if device.type == "cpu" else None
        compiled = torch.compile(_own(lambda: forward(model, inputs)), fullgraph=True, dynamic=False, options=options)
        try:
            with threads(config.threads):  # the code is made for so many
                compiled()
        except Exception as error:
            raise cannot_run(self.name, error) from error
        return compiled


def _own(function: Call) -> Call:
    """With a code object of its own. torch keeps what it compiles with the code object it came from, and gives up
    after eight: with one for all, the ninth model would fail and each call search through the others' conditions."""
    function = cast("FunctionType", function)
    return FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)


def _compilers() -> list[str]:
    return [*filter(None, [os.environ.get("CXX")]), "g++", "clang++", "c++"]


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _compilers())), None)
