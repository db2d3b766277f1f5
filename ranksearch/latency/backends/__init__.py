"""How a model is run when it is timed. Another backend is one file here and one word in `BACKENDS`.

backend      the seam, and its law
eager        torch, one kernel after another
onnxruntime  exported, in an ONNX Runtime session                 CPU, CUDA
cuda_graph   all kernels of a pass, launched at once              CUDA
compiled     torch.compile                                        CPU, CUDA
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from ranksearch.latency.backends.backend import Backend
from ranksearch.latency.backends.compiled import Compiled
from ranksearch.latency.backends.cuda_graph import CudaGraph
from ranksearch.latency.backends.eager import Eager
from ranksearch.latency.backends.onnxruntime import OnnxRuntime
from ranksearch.records import MeasureConfig

__all__ = ["BACKENDS", "Backend", "check"]

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {backend.name: backend for backend in (Eager(), OnnxRuntime(), CudaGraph(), Compiled())}
)


def check(config: MeasureConfig, device: torch.device) -> None:
    """Raises ConfigError where the config's backend cannot work on this device of this machine."""
    BACKENDS[config.backend].check(config, device)
