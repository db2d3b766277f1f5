"""What NVIDIA's management library says of a GPU. Without the library or its driver there is simply no `Gpu`."""

from dataclasses import dataclass
from typing import Any, Self

import torch

__all__ = ["Gpu"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU, as NVML knows it."""

    nvml: Any  # the pynvml module
    handle: Any

    @classmethod
    def find(cls, device: torch.device) -> Self | None:
        """The GPU behind a CUDA device, whatever CUDA_VISIBLE_DEVICES renumbers, or None where NVML cannot say."""
        try:
            import pynvml  # pyright: ignore[reportMissingImports]
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid(device)))
        except pynvml.NVMLError:
            return None

    def is_throttled(self) -> bool:
        """Whether heat or a power brake holds the clocks down now. Running at the configured power cap is normal."""
        reasons = (
            self.nvml.nvmlClocksThrottleReasonHwSlowdown
            | self.nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | self.nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
            | self.nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        )
        return bool(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle) & reasons)

    def process_shares(self, since_us: int) -> dict[int, float] | None:
        """Process → share of the time since `since_us`, microseconds of the epoch, in which its kernels ran; None where
        the driver names no process, as in containers that hide them."""
        try:
            samples = self.nvml.nvmlDeviceGetProcessUtilization(self.handle, since_us)
        except self.nvml.NVMLError:  # also where none ran
            return None
        shares = {s.pid: s.smUtil / 100 for s in samples if s.timeStamp > since_us}  # others are left from before
        return shares or None

    def busy_share(self) -> float | None:
        """Share of the last sampling period, up to a second, in which any kernel ran; None where it is not told."""
        try:
            return self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100
        except self.nvml.NVMLError:  # a part of a GPU (MIG) has none
            return None

    def clock_mhz(self) -> float:
        return float(self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM))

    def temperature_c(self) -> float:
        return float(self.nvml.nvmlDeviceGetTemperature(self.handle, self.nvml.NVML_TEMPERATURE_GPU))

    def driver(self) -> str:
        return str(self.nvml.nvmlSystemGetDriverVersion())


def uuid(device: torch.device) -> str:
    """The physical GPU's name, `GPU-…`, the same in every process."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
