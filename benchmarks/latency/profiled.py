"""A net in a session of ONNX Runtime that clocks its own runs: the `model_run` events of ONNX Runtime's profiler.

The profiler writes each node down, which adds some microseconds a node to a run.
"""

import io
import json
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
from torch import nn

WARMUP = 20
ERRORS_ONLY = 3


class Profiled:
    def __init__(self, net: nn.Module, inputs: torch.Tensor, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        self._session = onnxruntime.InferenceSession(_exported(net, inputs), options, ["CPUExecutionProvider"])
        self._fed: dict[str, Any] = {self._session.get_inputs()[0].name: inputs.numpy()}
        self.run(WARMUP)

    def run(self, passes: int) -> None:
        for _ in range(passes):
            self._session.run(None, self._fed)

    def medians(self, passes: int) -> list[float]:
        """Microseconds of a run by the session's own clock, for each round of so many passes. Ends the profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        runs = [event["dur"] for event in events if event["name"] == "model_run"]
        return [median(runs[start : start + passes]) for start in range(WARMUP, len(runs), passes)]


def _exported(net: nn.Module, inputs: torch.Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (inputs,), file, dynamo=False)  # pyright: ignore[reportArgumentType]
    return file.getvalue()
