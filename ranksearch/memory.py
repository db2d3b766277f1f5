"""Peak memory of a worker, what it gives back, and the size of tensors."""

import ctypes
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

__all__ = ["peak", "reset_peak", "tensor_bytes", "trim"]


def tensor_bytes(tensors: Any) -> int:
    """Bytes of all tensors in a nest of dicts, lists and tuples."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, torch.Tensor))


def reset_peak(device: torch.device) -> None:
    """Start counting anew: the allocator's peak on CUDA, the process's resident peak on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes, since `reset_peak`: allocated on CUDA, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trim() -> None:
    """Gives freed memory back to the system, in some hundredths of a second. glibc by itself keeps what lies between
    pieces that are still in use, hundreds of megabytes where tensors of many sizes come and go; other libraries have no
    such call."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
