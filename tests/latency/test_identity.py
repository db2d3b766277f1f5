import dataclasses
import math
import os
import sys
import types

import onnxruntime
import pytest
import torch

from ranksearch.latency import conditions, environment, identity, lock_name
from ranksearch.latency import identity as identity_function
from ranksearch.latency.backends import BACKENDS
from ranksearch.latency.identity import _cpu_info, _cpu_model
from ranksearch.latency.nvml import Gpu
from ranksearch.records import Environment, MeasureConfig

CPU = torch.device("cpu")
CONFIG = MeasureConfig()
CPUINFO = """processor\t: 0
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
flags\t\t: fpu avx avx2 avx512f avx512bw avx512_bf16

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(
    "change",
    [
        *({"threads": 2}, {"dtype": "bfloat16"}, {"layout": "channels_last"}, {"batch_size": 1}),
        *({"backend": "onnxruntime"}, {"fold_batchnorm": True}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_latency_changes_the_identity(change):
    assert identity(dataclasses.replace(CONFIG, **change), CPU) != identity(CONFIG, CPU)


@pytest.mark.parametrize(
    "change", [{"half_width": 0.5}, {"max_seconds": 9.0}, {"min_blocks": 3}], ids=lambda change: next(iter(change))
)
def test_how_long_one_measures_does_not(change):
    assert identity(dataclasses.replace(CONFIG, **change), CPU) == identity(CONFIG, CPU)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_version_of_the_backend_changes_the_identity(monkeypatch, backend):
    config = dataclasses.replace(CONFIG, backend=backend)
    before = identity(config, CPU)
    monkeypatch.setattr(onnxruntime, "__version__", "0.1")
    assert (identity(config, CPU) != before) == (backend == "onnxruntime")


def test_the_default_batch_and_the_same_batch_written_out_are_one_identity():
    assert identity(dataclasses.replace(CONFIG, batch_size=8), CPU) == identity_function(CONFIG, CPU)


def test_identity_names_device_library_and_protocol():
    found = identity(CONFIG, CPU)
    assert found["torch"] == torch.__version__
    assert found["latency_protocol"] == "3"
    assert found["device"] == "cpu"
    assert all(type(value) is str and value for value in found.values())


def test_a_cpu_is_named_with_what_tells_it_apart(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert _cpu_model(_cpu_info(tmp_path / "cpuinfo")) == "AMD EPYC (family 26 model 2 avx2 avx512f avx512_bf16)"


def test_a_cpu_that_tells_nothing_still_has_a_name(tmp_path):
    assert _cpu_info(tmp_path / "missing") == {}
    assert _cpu_model({})


def test_conditions_are_recorded_and_plain():
    found = conditions(CPU)
    assert set(found) == {"host", "load_average_1m", "clock_mhz", "temperature_c", "driver"}
    assert all(value is None or isinstance(value, str) or math.isfinite(value) for value in found.values())


def test_environment_travels_as_json():
    found = environment(CPU)
    assert Environment.from_json(found.to_json()) == found
    assert found.device_model == identity(CONFIG, CPU)["device_model"]
    assert found.cores == len(os.sched_getaffinity(0))


def test_a_cpus_lock_is_named_alike_for_every_core():
    assert lock_name(CPU) == lock_name(torch.device("cpu", 0)) == "cpu"


# --- NVML, which may be missing -------------------------------------------------------------------------------------


def fake_nvml(reasons=0, known=True):
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlClocksThrottleReasonSwPowerCap = 4
    nvml.nvmlClocksThrottleReasonHwSlowdown = 8
    nvml.nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvml.nvmlClocksThrottleReasonHwThermalSlowdown = 64
    nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128
    nvml.NVML_CLOCK_SM, nvml.NVML_TEMPERATURE_GPU = 1, 0
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: reasons
    nvml.nvmlDeviceGetClockInfo = lambda handle, kind: 1980
    nvml.nvmlDeviceGetTemperature = lambda handle, kind: 41
    nvml.nvmlSystemGetDriverVersion = lambda: "999.1"

    def handle_of(uuid):
        if not known:
            raise nvml.NVMLError
        return uuid

    nvml.nvmlDeviceGetHandleByUUID = handle_of
    return nvml


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1-2-3"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    return torch.device("cuda")


@pytest.mark.parametrize(("reasons", "throttled"), [(0, False), (1, False), (4, False), (8, True), (32 | 4, True)])
def test_heat_throttles_and_the_power_cap_does_not(monkeypatch, cuda, reasons, throttled):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(reasons))
    assert Gpu.find(cuda).is_throttled() is throttled


def test_a_gpus_conditions_come_from_nvml(monkeypatch, cuda):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    found = conditions(cuda)
    assert (found["clock_mhz"], found["temperature_c"], found["driver"]) == (1980.0, 41.0, "999.1")
    assert environment(cuda).driver == "999.1"
    assert environment(cuda).device_model == "NVIDIA Test"
    assert lock_name(cuda) == "GPU-1-2-3"


@pytest.mark.parametrize("module", [None, fake_nvml(known=False)], ids=["no library", "no such GPU"])
def test_without_nvml_a_gpu_tells_less(monkeypatch, cuda, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert Gpu.find(cuda) is None
    assert conditions(cuda)["driver"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_has_a_name_and_a_lock_of_its_own():
    device = torch.device("cuda")
    assert environment(device).device_model == torch.cuda.get_device_name(0)
    assert lock_name(device).startswith("GPU-")
