"""What a latency belongs to, and what it was measured under.

The identity decides: two latencies of different identity never stand in one front. The conditions and the environment
are recorded beside it and decide nothing.
"""

import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from ranksearch.latency.backends import BACKENDS
from ranksearch.latency.nvml import Gpu, uuid
from ranksearch.latency.preparation import resolve_batch_size
from ranksearch.latency.protocol import PROTOCOL
from ranksearch.records import Environment, MeasureConfig

__all__ = ["conditions", "device_model", "environment", "identity", "lock_name"]

# Instruction sets that decide which kernels torch picks. The name alone says too little: a virtual machine's CPU is
# often just "AMD EPYC", whatever its generation.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "sve2")


def identity(config: MeasureConfig, device: torch.device) -> dict[str, str]:
    """What must be equal for two latencies to be compared."""
    return {
        "device": device.type,
        "device_model": device_model(device),
        "backend": config.backend,
        "backend_version": BACKENDS[config.backend].version,
        "fold_batchnorm": str(config.fold_batchnorm).lower(),
        "torch": str(torch.__version__),
        "threads": str(config.threads),
        "dtype": config.dtype,
        "layout": config.layout,
        "batch_size": str(resolve_batch_size(config, device)),
        "latency_protocol": str(PROTOCOL),
    }


def conditions(device: torch.device) -> dict[str, float | str | None]:
    """Host, load, clock, temperature and driver now; None where the machine does not tell."""
    gpu = Gpu.find(device) if device.type == "cuda" else None
    return {
        "host": socket.gethostname(),
        "load_average_1m": psutil.getloadavg()[0],
        "clock_mhz": gpu.clock_mhz() if gpu else _cpu_clock_mhz(),
        "temperature_c": gpu.temperature_c() if gpu else _cpu_temperature_c(),
        "driver": gpu.driver() if gpu else None,
    }


def environment(device: torch.device) -> Environment:
    """Where this process runs. `cores` is the number it may use."""
    gpu = Gpu.find(device) if device.type == "cuda" else None
    return Environment(
        device=device.type,
        device_model=device_model(device),
        host=socket.gethostname(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        ranksearch=_own_version(),
        cores=_num_cores(),
        driver=gpu.driver() if gpu else None,
    )


def lock_name(device: torch.device) -> str:
    """The name of a device's lock: the same in every process, however CUDA_VISIBLE_DEVICES numbers the GPUs."""
    return uuid(device) if device.type == "cuda" else device.type


def device_model(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`; of a CPU also family, model and instruction sets."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_model(_cpu_info())


def _cpu_info(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first core's paragraph; empty where the file is not, as on macOS."""
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _cpu_model(info: Mapping[str, str]) -> str:
    name = info.get("model name") or platform.processor() or platform.machine()
    generation = [f"{key.removeprefix('cpu ')} {info[key]}" for key in ("cpu family", "model") if key in info]
    flags = set((info.get("flags") or info.get("Features") or "").split())
    details = " ".join([*generation, *(flag for flag in INSTRUCTION_SETS if flag in flags)])
    return f"{name} ({details})" if details else name


def _cpu_clock_mhz() -> float | None:
    clock = psutil.cpu_freq()
    return float(clock.current) if clock else None


def _cpu_temperature_c() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):  # Linux and FreeBSD alone have it
        return None
    readings = [reading.current for sensor in psutil.sensors_temperatures().values() for reading in sensor]
    return max(readings, default=None)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_version() -> str:
    try:
        return importlib.metadata.version("ranksearch")
    except importlib.metadata.PackageNotFoundError:
        return "source"
