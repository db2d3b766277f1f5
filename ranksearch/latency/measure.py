"""Measuring one candidate against the dense model, on the device, with nothing else of ours running there."""

import time
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import nn

from ranksearch.latency.backends import BACKENDS
from ranksearch.latency.identity import conditions, identity
from ranksearch.latency.lock import DeviceLock
from ranksearch.latency.outputs import check_outputs
from ranksearch.latency.preparation import resolve
from ranksearch.latency.protocol import PROTOCOL, Arm, Timing, time_pair
from ranksearch.latency.quiet import CpuWatch, quiet
from ranksearch.latency.statistics import percentile
from ranksearch.latency.timer import Calls, make_timer
from ranksearch.records import MeasureConfig, Measurement

__all__ = ["measure"]

# Less is the machine's own housekeeping; one busy loop beside a measurement on two cores is 0.5.
MAX_FOREIGN_SHARE = 0.2


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
    given, is held exclusively meanwhile. Where a model is so fast that several passes make a sample, percentiles are of
    the samples' means. Raises MeasurementError when the candidate's output has another structure or shape than the
    dense model's or the device throttles throughout, NonFiniteError when an output is not finite.
    """
    config = resolve(config, device)
    with _exclusive(lock), quiet(config, device), torch.inference_mode():
        start = time.perf_counter()
        calls = _calls(dense, candidate, inputs, config, device)
        check_outputs(calls[Arm.DENSE](), calls[Arm.CANDIDATE]())
        watch = CpuWatch()
        timing = time_pair(make_timer(calls, device, threads=config.threads), config, seed=seed)
        is_shared = watch.foreign_share() > MAX_FOREIGN_SHARE
        seconds = time.perf_counter() - start
    return _measurement(timing, config, device, is_shared=is_shared, seconds=seconds)


def _exclusive(lock: DeviceLock | None) -> AbstractContextManager[None]:
    return lock.exclusive() if lock else nullcontext()


def _calls(dense: nn.Module, candidate: nn.Module, inputs: Any, config: MeasureConfig, device: torch.device) -> Calls:
    backend = BACKENDS[config.backend]
    arms = {Arm.DENSE: dense, Arm.CANDIDATE: candidate}
    return {arm: backend.prepare(model, inputs, config, device) for arm, model in arms.items()}


def _measurement(
    timing: Timing, config: MeasureConfig, device: torch.device, *, is_shared: bool, seconds: float
) -> Measurement:
    flags = {*timing.flags, "contended"} if is_shared else timing.flags
    return Measurement(
        protocol=PROTOCOL,
        identity=identity(config, device),
        conditions=conditions(device),
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
    )
