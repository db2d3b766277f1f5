"""Whether latencies measured here can be trusted: the protocol against what is known, and against another clock.

    A/A        identical copies: their interval covers 1 in most runs, and hardly a run calls one of them faster
    twice      a model that runs twice takes twice as long
    repeats    fresh processes measure the same
    order      fifty nets come in the order in which `torch.utils.benchmark` has them
    contended  a training loop beside a measurement is noticed

All of it within a limit of seconds: a test that does not come to its end is missed.
"""

import copy
import itertools
import logging
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils import benchmark

from ranksearch.inputs import forward
from ranksearch.latency.fresh import measure_fresh
from ranksearch.latency.lock import DeviceLock
from ranksearch.latency.measure import measure
from ranksearch.latency.preparation import prepare, prepare_inputs
from ranksearch.latency.quiet import quiet
from ranksearch.records import MeasureConfig, Measurement, Record

__all__ = ["LIMIT_SECONDS", "Check", "Subject", "coverage", "false_alarms", "kendall_tau", "self_test", "variation"]

log = logging.getLogger(__name__)

LIMIT_SECONDS = 570.0  # after these nothing more begins; what has begun ends within ten minutes
NUM_COPIES, NUM_REPEATS, NUM_ROUNDS = 200, 8, 5
MIN_COVERAGE = 0.89  # a correct bootstrap over so few blocks covers 91 to 94 %, give or take the runs' own chance
MAX_FALSE_ALARMS, FASTER = 0.01, 0.98
TWICE = (1.98, 2.02)
MAX_VARIATION = {"cpu": 0.02, "cuda": 0.01}
MIN_TAU = 0.95
SHORT = MeasureConfig(half_width=0.01, max_seconds=1.0)
LONG = MeasureConfig(half_width=0.005, max_seconds=5.0)
ORACLE_SECONDS = 0.2
# A loop of training steps large enough for every core, or for the whole GPU.
TRAINING = """
import sys, torch
net = torch.nn.Linear(2048, 2048).to(sys.argv[1])
x = torch.randn(2048, 2048, device=sys.argv[1])
while True:
    net(x).square().mean().backward()
    if sys.argv[1] == "cuda":
        torch.cuda.synchronize()
    print(flush=True)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured: a dense model, nets of many latencies with their MACs, a batch of one."""

    dense: nn.Module
    nets: Sequence[nn.Module]
    macs: Sequence[int]
    example: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Check(Record):
    """One test: what was found, what it must be, and whether all of it was done in time."""

    test: str
    value: float | None  # None: nothing was found in time
    at_least: float | None = None
    at_most: float | None = None
    num_done: int
    num_wanted: int
    note: str
    seconds: float

    @property
    def passed(self) -> bool:
        if self.value is None or self.num_done < self.num_wanted:
            return False
        low, high = (bound if bound is not None else self.value for bound in (self.at_least, self.at_most))
        return low <= self.value <= high


# --- what is known of numbers: no clock, no device -------------------------------------------------------------------


def coverage(intervals: Sequence[tuple[float, float]], truth: float) -> float:
    """Share of the intervals that hold the truth."""
    return statistics.fmean(low <= truth <= high for low, high in intervals)


def false_alarms(ratios: Sequence[float]) -> float:
    """Share of the runs of equal models that call one of them more than 2 % faster."""
    return statistics.fmean(ratio < FASTER for ratio in ratios)


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation (n − 1) over mean."""
    return statistics.stdev(values) / statistics.fmean(values)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """τ_b = (concordant − discordant) / √(pairs not tied in a · pairs not tied in b) (Kendall 1945); NaN where all of
    one are equal."""
    signs = [
        ((x > y) - (x < y), (u > v) - (u < v)) for (x, u), (y, v) in itertools.combinations(zip(a, b, strict=True), 2)
    ]
    untied = math.prod(sum(s != 0 for s in one) for one in zip(*signs, strict=True)) if signs else 0
    return sum(s * t for s, t in signs) / math.sqrt(untied) if untied else math.nan


# --- the tests -------------------------------------------------------------------------------------------------------


def self_test(
    subject: Subject,
    *,
    device: torch.device,
    lock: DeviceLock | None,
    limit_seconds: float = LIMIT_SECONDS,
    num_copies: int = NUM_COPIES,
    num_repeats: int = NUM_REPEATS,
    num_rounds: int = NUM_ROUNDS,
) -> Iterator[Check]:
    """Each test as it ends. The longest comes last and takes what the others leave of `limit_seconds`."""
    bench = _Bench(subject, device, lock, perf_counter() + limit_seconds)
    yield _twice(bench, num_rounds)
    yield _noticed(bench)
    yield _repeats(bench, num_repeats)
    yield _order(bench, num_rounds)
    yield from _copies(bench, num_copies)


@dataclass(frozen=True, slots=True)
class _Bench:
    subject: Subject
    device: torch.device
    lock: DeviceLock | None
    deadline: float

    def measure(self, dense: nn.Module, candidate: nn.Module, config: MeasureConfig, seed: int = 0) -> Measurement:
        inputs = prepare_inputs(self.subject.example, config, self.device)
        own, other = prepare(dense, config, self.device), prepare(candidate, config, self.device)
        return measure(own, other, inputs, config, device=self.device, seed=seed, lock=self.lock)

    def alone(self) -> AbstractContextManager[None]:
        return self.lock.exclusive() if self.lock else nullcontext()

    def until_late(self, work: Callable[[int], Any], wanted: int) -> list[Any]:
        """What `work` gives for 0, 1, …, as many times as wanted, or until the time is over."""
        found = []
        while len(found) < wanted and perf_counter() < self.deadline:
            found.append(work(len(found)))
        return found


class Repeated(nn.Module):
    """A model run `times` times: two of these differ by that alone."""

    def __init__(self, model: nn.Module, times: int) -> None:
        super().__init__()
        self.model, self.times = model, times

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = [self.model(*args, **kwargs) for _ in range(self.times)]
        return outputs[-1]


def _twice(bench: _Bench, wanted: int) -> Check:
    """As the median of several measurements: where its copy lies in memory moves each by some tenths of a per cent."""
    start = perf_counter()
    once, twice = (Repeated(bench.subject.dense, times) for times in (1, 2))
    found = bench.until_late(lambda seed: bench.measure(once, twice, LONG, seed).ratio, wanted)
    return Check(
        test="a model run twice takes twice as long",
        value=statistics.median(found) if found else None,
        at_least=TWICE[0],
        at_most=TWICE[1],
        num_done=len(found),
        num_wanted=wanted,
        note=_range(found),
        seconds=perf_counter() - start,
    )


def _noticed(bench: _Bench) -> Check:
    """As the flag `contended` of a measurement that a training loop runs beside."""
    start = perf_counter()
    with _training(bench.device):
        found = bench.until_late(lambda seed: bench.measure(bench.subject.dense, bench.subject.dense, SHORT, seed), 1)
    return Check(
        test="a training loop beside is noticed",
        value=float("contended" in found[0].flags) if found else None,
        at_least=1.0,
        num_done=len(found),
        num_wanted=1,
        note="; ".join(map(_flags, found)),
        seconds=perf_counter() - start,
    )


@contextmanager
def _training(device: torch.device) -> Iterator[None]:
    """A training loop in a process of its own, from its first step on."""
    command = [sys.executable, "-c", TRAINING, device.type]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as loop:  # noqa: S603 - this very interpreter
        assert loop.stdout is not None
        try:
            loop.stdout.readline()
            yield
        finally:
            loop.kill()


def _repeats(bench: _Bench, wanted: int) -> Check:
    start = perf_counter()
    dense, net = bench.subject.dense, bench.subject.nets[0]

    def work(seed: int) -> float:
        log.info("fresh process %d of %d", seed + 1, wanted)
        config = replace(LONG, max_seconds=2.0)
        return measure_fresh(
            dense, net, bench.subject.example, config, device=bench.device, seed=seed, lock=bench.lock
        ).ratio

    ratios = bench.until_late(work, wanted)
    return Check(
        test="fresh processes measure the same",
        value=variation(ratios) if len(ratios) > 1 else None,
        at_most=MAX_VARIATION[bench.device.type],
        num_done=len(ratios),
        num_wanted=wanted,
        note=_range(ratios),
        seconds=perf_counter() - start,
    )


def _order(bench: _Bench, rounds: int) -> Check:
    """τ of our ratios against another clock's medians of several rounds over all nets: it has no dense model beside it,
    so that the machine's drift is its own, and one round of it agrees with the next to no more than 0.93 to 0.96."""
    start = perf_counter()
    subject = bench.subject
    num = len(subject.nets)
    log.info("%d nets, each by two clocks", num)
    ours = bench.until_late(lambda place: bench.measure(subject.dense, subject.nets[place], SHORT, place).ratio, num)
    seconds = bench.until_late(lambda turn: _other_clock(bench, subject.nets[turn % num]), rounds * num)
    theirs = [statistics.median(seconds[place::num]) for place in range(min(num, len(seconds)))]
    both = min(len(ours), len(theirs))
    return Check(
        test="nets come in torch.utils.benchmark's order (Kendall's tau)",
        value=kendall_tau(ours[:both], theirs[:both]) if both > 1 else None,
        at_least=MIN_TAU,
        num_done=len(seconds) // rounds,
        num_wanted=num,
        note=f"tau of MACs {kendall_tau(subject.macs[:both], theirs[:both]):.3f}" if both > 1 else "",
        seconds=perf_counter() - start,
    )


def _other_clock(bench: _Bench, net: nn.Module) -> float:
    """Median seconds of a pass, by PyTorch's own benchmark, which synchronises CUDA by itself."""
    model, inputs = prepare(net, SHORT, bench.device), prepare_inputs(bench.subject.example, SHORT, bench.device)
    with torch.inference_mode(), quiet(SHORT, bench.device), bench.alone():
        timer = benchmark.Timer(
            "forward(model, inputs)", globals={"forward": forward, "model": model, "inputs": inputs}
        )
        return timer.blocked_autorange(min_run_time=ORACLE_SECONDS).median


def _copies(bench: _Bench, wanted: int) -> tuple[Check, Check]:
    start = perf_counter()
    dense = bench.subject.dense

    def work(seed: int) -> Measurement:
        if seed % 20 == 0:
            log.info("identical copies: %d of %d", seed, wanted)
        return bench.measure(dense, copy.deepcopy(dense), SHORT, seed)

    runs: list[Measurement] = bench.until_late(work, wanted)
    contended = sum("contended" in run.flags for run in runs)
    return (
        Check(
            test="the interval of identical copies covers 1",
            value=coverage([(run.ratio_low, run.ratio_high) for run in runs], 1.0) if runs else None,
            at_least=MIN_COVERAGE,
            num_done=len(runs),
            num_wanted=wanted,
            note=f"{contended} runs contended",
            seconds=perf_counter() - start,
        ),
        Check(
            test="identical copies called more than 2 % faster",
            value=false_alarms([run.ratio for run in runs]) if runs else None,
            at_most=MAX_FALSE_ALARMS,
            num_done=len(runs),
            num_wanted=wanted,
            note="the same runs",
            seconds=0.0,
        ),
    )


def _range(ratios: Sequence[float]) -> str:
    return f"ratios {min(ratios):.3f} to {max(ratios):.3f}" if ratios else ""


def _flags(measurement: Measurement) -> str:
    return ", ".join(measurement.flags) or "no flag"
