"""How long single layers take within a pass of their network, as eager torch runs it: a look, not a measurement."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from ranksearch.inputs import forward

__all__ = ["layer_seconds"]

MIN_PASSES, MAX_SECONDS = 5, 1.0


@torch.inference_mode()
def layer_seconds(models: Sequence[nn.Module], names: Iterable[str], inputs: Any) -> list[dict[str, float]]:
    """For each model, name → median seconds of that layer in a pass. The models take turns, at least five passes each
    and as many as fit into a second; a first pass of each does not count.

    On a GPU the host waits before and after each layer, so that what it takes to launch one is part of it. A layer that
    runs several times in a pass counts by its single runs. Names that a model does not have are left out.
    """
    wanted = list(names)
    with ExitStack() as stack:
        seen = [stack.enter_context(_timed(model, wanted)) for model in models]
        for model in models:
            forward(model, inputs)
        for times in seen:
            times.clear()
        start, passes = time.perf_counter(), 0
        while passes < MIN_PASSES or time.perf_counter() - start < MAX_SECONDS:
            for model in models:
                forward(model, inputs)
            passes += 1
    return [{name: median(seconds) for name, seconds in times.items()} for times in seen]


@contextmanager
def _timed(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[float]]]:
    """While it lasts every pass adds its layers' seconds to what this gives."""
    times: dict[str, list[float]] = {}
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    is_cuda = any(parameter.is_cuda for parameter in model.parameters())

    def now() -> float:
        if is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    with ExitStack() as hooks:
        for name in names:
            if name in modules:
                started: list[float] = []
                enter = modules[name].register_forward_pre_hook(lambda *_, s=started: s.append(now()))
                leave = modules[name].register_forward_hook(
                    lambda *_, s=started, n=name: times.setdefault(n, []).append(now() - s.pop())
                )
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
        yield times
