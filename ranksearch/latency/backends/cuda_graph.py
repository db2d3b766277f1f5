"""A whole pass captured once and launched at once: what is left is the GPU's own time.

Source: CUDA C++ Programming Guide, "CUDA Graphs"; torch.cuda.graph for how torch captures one.
"""

from typing import Any

import torch
from torch import nn

from ranksearch.errors import ConfigError
from ranksearch.inputs import forward
from ranksearch.latency.backends.backend import Call, cannot_run
from ranksearch.records import MeasureConfig

__all__ = ["CudaGraph"]

NUM_WARMUP_PASSES = 3  # libraries choose kernels and take their workspace in these: neither may happen in a capture


class CudaGraph:
    name = "cuda-graph"
    version = str(torch.__version__)

    def check(self, config: MeasureConfig, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f"backend is {config.backend!r}; it needs a GPU and the device is {device.type!r}: "
                "measure on a GPU, or with backend eager, onnxruntime or compile"
            )

    def prepare(
        self,
        model: nn.Module,
        inputs: Any,
        config: MeasureConfig,  # noqa: ARG002
        device: torch.device,
    ) -> Call:
        with torch.cuda.device(device):
            _warm_up(model, inputs)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    outputs = forward(model, inputs)
            except RuntimeError as error:  # a pass that waits for the host, or takes another way each time
                raise cannot_run(self.name, error) from error

        def replay() -> object:
            graph.replay()
            return outputs

        return replay


def _warm_up(model: nn.Module, inputs: Any) -> None:
    """On a side stream, as a capture is: what the default stream keeps for itself would be missing there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARMUP_PASSES):
            forward(model, inputs)
    torch.cuda.current_stream().wait_stream(stream)
