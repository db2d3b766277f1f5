"""The clock for single calls: of layers, and of the network beside them.

On a CPU it is the one that networks are measured with; where one thread works, CPU time counts.

On a GPU a single call of a layer begins before an idle device, and a pair of events around it spans the gaps in which
the device waits for the host to launch. In a pass of the network there are none, or nothing else: the host runs ahead,
so that a pass takes as long as its launches, H, or as the device's own work, G, whichever is longer. What a layer adds
to that is read accordingly:

    H ≤ G or a CUDA graph    its work on the device, queued behind a kernel that waits until all of it is launched
    H > G                    what the host takes to launch it

Which of the two, the dense network decides once. Where a plan's H passes its G, its latency is larger than predicted.
"""

import logging
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from ranksearch.latency.backends.backend import Call
from ranksearch.latency.timer import busy_ms_of, launch_ms_of, make_timer, wall_ms_of
from ranksearch.records import MeasureConfig

__all__ = ["Clock", "layer_backend", "make_clock"]

log = logging.getLogger(__name__)

NUM_PROBES = 5

Clock = Callable[[Any], float]  # which call -> milliseconds that it takes


def layer_backend(config: MeasureConfig) -> str:
    """How layers are run for a network run as `config` says. A graph of each would hold memory of its own; called one
    after another behind a waiting kernel they run as they do within a graph."""
    return "eager" if config.backend == "cuda-graph" else config.backend


def make_clock(calls: Mapping[Any, Call], config: MeasureConfig, device: torch.device) -> Clock:
    """calls: what is timed, the network under None."""
    if device.type == "cuda":
        return _CudaClock(calls, device, is_graph=config.backend == "cuda-graph")
    timer = make_timer(dict(calls), device, threads=config.threads)

    def milliseconds(item: Any) -> float:
        visit = timer.visit(item, num_samples=1, passes=1)
        return visit.samples_ms[0] if visit.cpu_seconds is None else visit.cpu_seconds * 1e3

    return milliseconds


class _CudaClock:
    def __init__(self, calls: Mapping[Any, Call], device: torch.device, *, is_graph: bool) -> None:
        self._calls, self._device = calls, device
        self._counts_launches = False if is_graph else None  # None: not known yet
        self._wall_ms: dict[Any, float] = {}

    def __call__(self, item: Any) -> float:
        with torch.cuda.device(self._device):
            call = self._calls[item]
            if item not in self._wall_ms:
                call()  # loads its kernels
                self._wall_ms[item] = wall_ms_of(call)
            if self._counts_launches is None:
                self._counts_launches = self._is_launch_bound()
            return launch_ms_of(call) if self._counts_launches else busy_ms_of(call, self._wall_ms[item])

    def _is_launch_bound(self) -> bool:
        network = self._calls[None]
        launch_ms, wall_ms = (median(of(network) for _ in range(NUM_PROBES)) for of in (launch_ms_of, wall_ms_of))
        busy_ms = median(busy_ms_of(network, wall_ms) for _ in range(NUM_PROBES))
        if launch_ms > busy_ms:
            log.warning(
                "a pass of the dense model is %.3g ms of launching for %.3g ms of work of the GPU: only launches count "
                "in its latency; larger batches (--measure-batch-size) or --measure-backend cuda-graph change that",
                launch_ms, busy_ms,
            )  # fmt: skip
        return launch_ms > busy_ms
