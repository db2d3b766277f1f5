"""The model exported to ONNX and run by ONNX Runtime, on buffers that stay where they are: no copy is timed.

A session runs its nodes one after the other, all graph optimisations on, on as many threads as the config says.
"""

import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ranksearch.errors import ConfigError, MeasurementError
from ranksearch.inputs import forward, tensors
from ranksearch.latency.backends.backend import Call, cannot_run
from ranksearch.records import MeasureConfig

__all__ = ["OnnxRuntime"]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PROVIDERS: Mapping[str, str] = MappingProxyType({"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"})
# Of the others a session has kernels for some operations only, and casts around the rest.
DTYPES: Mapping[str, tuple[str, ...]] = MappingProxyType({"cpu": ("float32",), "cuda": ("float32", "float16")})
ERRORS_ONLY = 3  # a session's log


class OnnxRuntime:
    name = "onnxruntime"

    @property
    def version(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def check(self, config: MeasureConfig, device: torch.device) -> None:
        if missing := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
            raise ConfigError(
                f"backend is {self.name!r}; it needs {', '.join(PACKAGES)}, and {missing[0]} is not installed: "
                "pip install 'ranksearch[onnx]', or measure with another backend"
            )
        import onnxruntime

        if PROVIDERS[device.type] not in onnxruntime.get_available_providers():
            raise ConfigError(
                f"backend is {self.name!r} on {device.type!r}; the installed onnxruntime has no "
                f"{PROVIDERS[device.type]}: install onnxruntime-gpu in its place, or measure with another backend"
            )
        if config.dtype not in DTYPES[device.type]:
            raise ConfigError(
                f"dtype is {config.dtype!r}; backend {self.name!r} runs whole models on {device.type!r} in "
                f"{' or '.join(DTYPES[device.type])} only: take that, or another backend"
            )
        if config.layout != "contiguous":
            raise ConfigError(
                f"layout is {config.layout!r}; backend {self.name!r} takes contiguous tensors and chooses its own "
                "layouts inside: take contiguous, or another backend"
            )

    def prepare(self, model: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device) -> Call:
        leaves, structure = tree_flatten(forward(model, inputs))
        model = _Flat(model, inputs).eval()  # an export puts back the mode it finds, into all modules
        fed = [leaf.contiguous() for leaf in tensors(inputs)]
        buffers = [torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in tensors(leaves)]
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        try:
            session = _session(_export(model, fed), config, device, stream)
            run = _runner(session, fed, buffers, device, stream)
        except Exception as error:
            raise cannot_run(self.name, error) from error
        rest = iter(buffers)
        outputs = tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], structure)
        return _Bound(run=run, fed=fed, outputs=outputs)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A session that reads `fed`, which it does not itself keep, and writes into `outputs`."""

    run: Call
    fed: list[Tensor]
    outputs: object

    def __call__(self) -> object:
        self.run()
        return self.outputs


class _Flat(nn.Module):
    """Takes and returns tensors one by one, in the order they have in the model's inputs and outputs."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.leaves, self.structure = tree_flatten(inputs)

    def forward(self, *fed: Tensor) -> tuple[Tensor, ...]:
        given = iter(fed)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return tuple(tensors(forward(self.model, tree_unflatten(leaves, self.structure))))


def _export(model: nn.Module, fed: list[Tensor]) -> bytes:
    """By tracing, in a fraction of the seconds that torch's newer exporter takes; by that one where tracing fails."""
    names = [f"input_{i}" for i in range(len(fed))]
    with _exporting():
        try:
            torch._C._jit_set_onnx_log_output_stream("stderr")  # stdout is for data
            file: Any = io.BytesIO()
            torch.onnx.export(model, tuple(fed), file, input_names=names, dynamo=False)
            return file.getvalue()
        except Exception:  # noqa: BLE001 - it fails in many ways, and the other exporter may not
            program = torch.onnx.export(model, tuple(fed), input_names=names, dynamo=True, verbose=False)
            return program.model_proto.SerializeToString()  # pyright: ignore[reportOptionalMemberAccess]


@contextmanager
def _exporting() -> Iterator[None]:
    """Without torch's own fused attention, which ONNX does not know, and its warnings, which are for other readers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _session(model: bytes, config: MeasureConfig, device: torch.device, stream: torch.cuda.Stream | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = config.threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else one arm's idle threads slow the other
    options.log_severity_level = ERRORS_ONLY
    provider = PROVIDERS[device.type]
    settings = {"device_id": str(device.index or 0), "user_compute_stream": str(stream.cuda_stream)} if stream else {}
    session = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:  # it goes to the CPU, without an error, where CUDA does not load
        raise MeasurementError(f"onnxruntime could not load its {provider}; its CUDA and cuDNN must match those here")
    return session


def _runner(
    session: Any, fed: list[Tensor], buffers: list[Tensor], device: torch.device, stream: torch.cuda.Stream | None
) -> Call:
    binding = session.io_binding()
    names = {node.name for node in session.get_inputs()}  # those that the model does not use may be gone
    for i, tensor in enumerate(fed):
        if f"input_{i}" in names:
            binding.bind_input(f"input_{i}", *_place(tensor, device))
    for node, tensor in zip(session.get_outputs(), buffers, strict=True):
        binding.bind_output(node.name, *_place(tensor, device))
    return partial(_run_on, stream, session, binding) if stream else partial(session.run_with_iobinding, binding)


def _place(tensor: Tensor, device: torch.device) -> tuple[str, int, Any, list[int], int]:
    """As io bindings take it: device and its number, type of the numbers, shape, address."""
    numbers = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return device.type, device.index or 0, numbers, list(tensor.shape), tensor.data_ptr()


def _run_on(stream: torch.cuda.Stream, session: Any, binding: Any) -> None:
    """Without waiting for the GPU. A session cannot run on torch's default stream, where the timer's events are: the
    two streams wait for each other."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    session.run_with_iobinding(binding, options)
    current.wait_stream(stream)
