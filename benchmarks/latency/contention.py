"""The same while a training loop, which wants all cores, runs beside in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from time import perf_counter

from benchmarks.latency.additivity import additivity
from benchmarks.latency.bench import CPU, Bench
from benchmarks.latency.runtime import compared, ratios
from benchmarks.latency.selfchecks import selfchecks
from ranksearch.latency.selftest import TRAINING, Check


def contention(bench: Bench) -> list[Check]:
    """ONNX Runtime times itself after the loop has ended: what is judged is our ratios, not its own times."""
    start = perf_counter()
    with training():
        checks = [*selfchecks(bench), *additivity(bench)]
        ours = ratios(bench)
    checks.append(compared(bench, ours))
    flagged = Check(
        test="share of the runs that raise `contended`",
        value=fmean("contended" in run.flags for run in bench.made),
        at_least=1.0,
        num_done=len(bench.made),
        num_wanted=len(bench.made),
        note="copies, single layers, plans, nets in ONNX Runtime",
        seconds=perf_counter() - start,
    )
    return [flagged, *checks]


@contextmanager
def training() -> Iterator[None]:
    """From its first step on."""
    with subprocess.Popen([sys.executable, "-c", TRAINING, CPU.type], stdout=subprocess.PIPE) as loop:
        assert loop.stdout is not None
        try:
            loop.stdout.readline()
            yield
        finally:
            loop.kill()
