"""Our ratios with backend onnxruntime beside the times that ONNX Runtime takes of itself."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks.latency.bench import CPU, Bench
from benchmarks.latency.profiled import Profiled
from ranksearch import latency
from ranksearch.latency.quiet import quiet
from ranksearch.latency.selftest import MIN_TAU, SHORT, Check, kendall_tau

log = logging.getLogger(__name__)

CONFIG = replace(SHORT, backend="onnxruntime")
PASSES = 100  # of a net in a round


def runtime(bench: Bench) -> list[Check]:
    return [compared(bench, ratios(bench))]


def ratios(bench: Bench) -> list[float]:
    nets = bench.subject.nets
    log.info("%d nets in ONNX Runtime", len(nets))
    return bench.until_late(lambda place: bench.measure(nets[place], CONFIG, place).ratio, len(nets))


def compared(bench: Bench, ours: Sequence[float]) -> Check:
    start, num = perf_counter(), len(ours)
    rounds = own_times(bench)
    theirs = [median(times) for times in zip(*rounds, strict=True)][:num]
    between = [kendall_tau(a, b) for a, b in combinations(rounds, 2)]
    return Check(
        test="nets come in the order of ONNX Runtime's own timing (Kendall's tau)",
        value=kendall_tau(ours, theirs),
        at_least=MIN_TAU,
        num_done=num,
        num_wanted=len(bench.subject.nets),
        note=f"tau of MACs {kendall_tau(bench.subject.macs[:num], theirs):.3f}; "
        f"of one of its rounds with another {median(between):.3f}",
        seconds=perf_counter() - start,
    )


def own_times(bench: Bench) -> list[list[float]]:
    """Rounds over all nets: microseconds of each, by ONNX Runtime's clock."""
    config, lock = latency.resolve(CONFIG, CPU), bench.workbench.lock
    log.info("%d rounds of ONNX Runtime's own timing", bench.counts.rounds)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        inputs = latency.prepare_inputs(bench.subject.example, config, CPU)
        sessions = [Profiled(latency.prepare(net, config, CPU), inputs, Path(folder)) for net in bench.subject.nets]
        with lock.exclusive(), quiet(config, CPU):
            for _ in range(bench.counts.rounds):
                for session in sessions:
                    session.run(PASSES)
        return [list(times) for times in zip(*(session.medians(PASSES) for session in sessions), strict=True)]
