"""Measuring one candidate against the dense model, on the device, with nothing else of ours running there."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import nn

from ranksearch.latency.backends import BACKENDS
from ranksearch.latency.backends.backend import Call
from ranksearch.latency.folding import fold_batchnorm
from ranksearch.latency.identity import conditions, identity
from ranksearch.latency.lock import DeviceLock
from ranksearch.latency.outputs import check_outputs
from ranksearch.latency.preparation import resolve
from ranksearch.latency.protocol import PROTOCOL, Arm, Timing, time_pair
from ranksearch.latency.quiet import CpuWatch, GpuWatch, deployed_kernels, quiet
from ranksearch.latency.statistics import percentile
from ranksearch.latency.timer import make_timer
from ranksearch.records import MeasureConfig, Measurement, Samples

__all__ = ["measure"]

# Less is the machine's own housekeeping; one busy loop beside a measurement on two cores is 0.5.
# A GPU does nothing by itself.
MAX_FOREIGN = {"foreign_share": 0.2, "foreign_gpu_share": 0.05}


def measure(
    dense: nn.Module,
    candidate: nn.Module,
    inputs: Any,
    config: MeasureConfig,
    *,
    device: torch.device,
    seed: int,
    lock: DeviceLock | None,
) -> Measurement:
    """Latency of `candidate` beside `dense` (see docs/latency.md for the protocol).

    Both models and `inputs` (a tensor, a tuple of arguments or a dict of keyword arguments, one batch) are on `device`,
    in the config's dtype and layout, the models in eval mode: `prepare` and `prepare_inputs` make them so. `lock`, if
    given, is held exclusively while they are timed. Where a model is so fast that several passes make a sample,
    percentiles are of the samples' means. `seconds` are those alone with the device. Raises MeasurementError when the
    backend cannot run a model, the candidate's output has another structure or shape than the dense model's or the
    device throttles throughout, NonFiniteError when an output is not finite.
    """
    config = resolve(config, device)
    with _shared(lock), deployed_kernels(), torch.inference_mode():
        calls = {
            Arm.DENSE: _kept_call(dense, inputs, config, device),
            Arm.CANDIDATE: _call(candidate, inputs, config, device),
        }
    with _exclusive(lock), quiet(config, device), deployed_kernels(), torch.inference_mode():
        start = time.perf_counter()
        check_outputs(calls[Arm.DENSE](), calls[Arm.CANDIDATE]())
        cpu, gpu = CpuWatch(), GpuWatch(device)
        timing = time_pair(make_timer(calls, device, threads=config.threads), config, seed=seed)
        foreign = {"foreign_share": cpu.foreign_share(), "foreign_gpu_share": gpu.foreign_share()}
        seconds = time.perf_counter() - start
    return _measurement(timing, config, device, foreign=foreign, seconds=seconds)


def _exclusive(lock: DeviceLock | None) -> AbstractContextManager[None]:
    return lock.exclusive() if lock else nullcontext()


def _shared(lock: DeviceLock | None) -> AbstractContextManager[None]:
    return lock.shared() if lock else nullcontext()


_KEPT: dict[tuple[int, int, MeasureConfig, torch.device], tuple[nn.Module, Any, Call]] = {}


def _kept_call(dense: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device) -> Call:
    """Made once for as long as every candidate meets the same dense model: an export or a compilation takes seconds."""
    key = (id(dense), id(inputs), config, device)
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = dense, inputs, _call(dense, inputs, config, device)
    return _KEPT[key][-1]


def _call(model: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device) -> Call:
    model = fold_batchnorm(model, inputs) if config.fold_batchnorm else model
    return BACKENDS[config.backend].prepare(model, inputs, config, device)


def _measurement(
    timing: Timing, config: MeasureConfig, device: torch.device, *, foreign: Mapping[str, float | None], seconds: float
) -> Measurement:
    is_shared = any((foreign[name] or 0.0) > limit for name, limit in MAX_FOREIGN.items())
    flags = {*timing.flags, "contended"} if is_shared else timing.flags
    return Measurement(
        protocol=PROTOCOL,
        identity=identity(config, device),
        conditions={**conditions(device), **foreign},
        batch_size=config.batch_size,
        ratio=timing.ratio,
        ratio_low=timing.ratio_low,
        ratio_high=timing.ratio_high,
        dense_p50_ms=median(timing.dense_ms),
        p50_ms=median(timing.candidate_ms),
        p90_ms=percentile(timing.candidate_ms, 90),
        p95_ms=percentile(timing.candidate_ms, 95),
        p99_ms=percentile(timing.candidate_ms, 99),
        num_blocks=timing.num_blocks,
        num_samples=len(timing.candidate_ms),
        num_dropped_blocks=timing.num_dropped_blocks,
        warmup_seconds=timing.warmup_seconds,
        seconds=seconds,
        flags=tuple(sorted(flags)),
        samples=Samples.of(timing.dense_ms, timing.candidate_ms, timing.num_blocks),
    )
