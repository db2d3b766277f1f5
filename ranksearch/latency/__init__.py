"""Latency one can trust: measured on the device, beside the dense model, with an interval.

statistics    intervals, percentiles, settling, drift           pure functions
protocol      warm-up, paired blocks, stopping, flags           against a Timer
timer         the CPU's and CUDA's clocks
backends/     how a model is run                                 eager, onnxruntime, cuda-graph, compile
folding       BatchNorm as a part of the layer before it
outputs       is the candidate's output usable at all
quiet         threads, core, garbage collection; foreign load
preparation   config, model and inputs in the form measured
identity      what a latency belongs to, what it was measured under
nvml          what NVIDIA's library knows
lock          one lock per device and host
measure       all of it together
"""

from ranksearch.latency.backends import check
from ranksearch.latency.identity import conditions, environment, identity, lock_name
from ranksearch.latency.lock import DeviceLock
from ranksearch.latency.measure import measure
from ranksearch.latency.preparation import prepare, prepare_inputs, resolve, resolve_batch_size

__all__ = [
    "DeviceLock",
    "check",
    "conditions",
    "environment",
    "identity",
    "lock_name",
    "measure",
    "prepare",
    "prepare_inputs",
    "resolve",
    "resolve_batch_size",
]
