"""Timing two models against each other: warm-up, paired blocks, stopping, flags.

Dense and candidate are timed in turns, in blocks of ABBA or BAAB by the toss of a coin, so that whatever slows the
machine for longer than a block slows both and leaves their ratio alone, and a linear drift within a block cancels. The
result is the median over blocks of candidate / dense, with a bootstrap interval over blocks; of CPU times where a CPU's
thread had to share its core. No sample is ever deleted. Nothing here knows a clock or a device: a `Timer` does, and
tests bring simulated ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import fmean, median
from typing import Protocol

import numpy as np

from ranksearch.errors import MeasurementError
from ranksearch.latency.statistics import bootstrap_median_interval, drift, is_settled
from ranksearch.records import MeasureConfig

__all__ = ["PROTOCOL", "Arm", "Timer", "Timing", "Visit", "Warmup", "time_pair", "warm_up"]

PROTOCOL = 3  # raise it when a change here can change a number: measurements of two protocols are never compared

MIN_WARMUP_SAMPLES = 10  # of each arm, so 20 passes in all: of a slow model they are most of what measuring costs
MAX_WARMUP_SECONDS = 10.0
MAX_DRIFT = 0.03
MAX_WALL_PER_CPU = 1.1
MAX_WALL_PER_DEVICE = 1.2
# The interval is looked at after every 15 % more blocks, not after every one: each look is another chance to stop on
# an interval that is narrow by luck.
GROWTH_BETWEEN_LOOKS = 1.15


class Arm(IntEnum):
    DENSE = 0
    CANDIDATE = 1


ABBA = (Arm.DENSE, Arm.CANDIDATE, Arm.CANDIDATE, Arm.DENSE)
BAAB = (Arm.CANDIDATE, Arm.DENSE, Arm.DENSE, Arm.CANDIDATE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """Some samples of one arm in a row, each in milliseconds per forward pass."""

    samples_ms: Sequence[float]
    wall_seconds: float
    cpu_seconds: float | None = None  # of the timing thread; None where other threads or a GPU do the work

    @property
    def has_waited(self) -> bool:
        """Whether the timing thread had to wait for its core."""
        return self.cpu_seconds is not None and self.wall_seconds > MAX_WALL_PER_CPU * self.cpu_seconds

    @property
    def cpu_ms(self) -> float:
        """CPU time of a pass, mean."""
        assert self.cpu_seconds is not None
        return fmean(self.samples_ms) * self.cpu_seconds / self.wall_seconds


def _joined(visits: Sequence[Visit]) -> Visit:
    cpu_seconds = [visit.cpu_seconds for visit in visits if visit.cpu_seconds is not None]
    return Visit(
        samples_ms=[ms for visit in visits for ms in visit.samples_ms],
        wall_seconds=sum(visit.wall_seconds for visit in visits),
        cpu_seconds=sum(cpu_seconds) if cpu_seconds else None,
    )


class Timer(Protocol):
    """Runs and times the two arms. Times are in the units their names say."""

    @property
    def min_sample_ms(self) -> float:
        """A sample of less is too short for this clock; several passes then make one sample."""
        ...

    @property
    def min_warmup_seconds(self) -> float: ...

    def now(self) -> float:
        """Seconds on the clock that limits are counted on."""
        ...

    def visit(self, arm: Arm, num_samples: int, passes: int) -> Visit:
        """Times `num_samples` samples of `passes` forward passes each."""
        ...

    def throttled(self) -> bool:
        """Whether the device says that heat or power is slowing it down now."""
        ...

    def wall_per_device(self) -> float:
        """Synchronised wall time over the device's own busy time, of the arm where it is larger; 1 on a CPU."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    seconds: float
    dense_ms: float  # one pass, median
    candidate_ms: float
    is_settled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Both visits of each arm, joined."""

    dense: Visit
    candidate: Visit


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What one pair of models measured. `flags` are the noisy, contended, unstable, launch_bound, throttled of
    `records.Measurement`."""

    ratio: float
    ratio_low: float
    ratio_high: float
    dense_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]
    num_blocks: int
    num_dropped_blocks: int
    warmup_seconds: float
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """Blocks measured without a break. `interval` is that of the median ratio.

    Where the thread had to wait for its core, all is told by the CPU time that it had: others stretch the wall time of
    a long pass, and spare a short one that ends within its slice of the core.
    """

    ratios: tuple[float, ...]  # of each block
    dense_ms: tuple[float, ...]  # of each block, by what the ratios are told by
    interval: tuple[float, float]
    blocks: tuple[Block, ...]
    num_dropped: int
    has_waited: bool

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def half_width(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2 / self.ratio

    @property
    def has_drifted(self) -> bool:
        return drift(self.dense_ms) > MAX_DRIFT


def time_pair(timer: Timer, config: MeasureConfig, *, seed: int) -> Timing:
    """Measures the candidate against the dense model as docs/latency.md says.

    `seed` decides the order of the arms and the bootstrap's draws. Raises MeasurementError where the device throttled
    throughout.
    """
    rng = np.random.default_rng(seed)
    warmup = warm_up(timer)
    window = _measure_window(timer, config, warmup, rng)
    low, high = window.interval
    return Timing(
        ratio=window.ratio,
        ratio_low=low,
        ratio_high=high,
        dense_ms=tuple(ms for block in window.blocks for ms in block.dense.samples_ms),
        candidate_ms=tuple(ms for block in window.blocks for ms in block.candidate.samples_ms),
        num_blocks=len(window.blocks),
        num_dropped_blocks=window.num_dropped,
        warmup_seconds=warmup.seconds,
        flags=_flags(window, warmup, config, timer.wall_per_device()),
    )


def _flags(window: _Window, warmup: Warmup, config: MeasureConfig, wall_per_device: float) -> tuple[str, ...]:
    raised = {
        "noisy": window.half_width > config.half_width,
        "contended": window.has_waited,
        "unstable": window.has_drifted or not warmup.is_settled,
        "launch_bound": wall_per_device > MAX_WALL_PER_DEVICE,
        "throttled": window.num_dropped > 0,
    }
    return tuple(flag for flag, is_raised in raised.items() if is_raised)


def warm_up(timer: Timer) -> Warmup:
    """Runs both arms in turns until the ratio of their times has settled, or for MAX_WARMUP_SECONDS.

    The ratio, for that is what is reported: a machine that others slow down and release moves both arms alike, and
    waiting for it to stop would take seconds and change nothing.
    """
    start = timer.now()
    samples_ms: dict[Arm, list[float]] = {arm: [] for arm in Arm}
    while True:
        for arm in Arm:
            visit = timer.visit(arm, num_samples=2, passes=1)
            samples_ms[arm] += [visit.cpu_ms] * 2 if visit.has_waited else visit.samples_ms
        seconds = timer.now() - start
        enough = len(samples_ms[Arm.DENSE]) >= MIN_WARMUP_SAMPLES and seconds >= timer.min_warmup_seconds
        settled = (enough or seconds >= MAX_WARMUP_SECONDS) and is_settled(_ratios(*samples_ms.values()))
        if (enough and settled) or seconds >= MAX_WARMUP_SECONDS:
            break
    dense_ms, candidate_ms = (median(ms[-(len(ms) // 2) :]) for ms in samples_ms.values())
    return Warmup(seconds=seconds, dense_ms=dense_ms, candidate_ms=candidate_ms, is_settled=settled)


def _measure_window(timer: Timer, config: MeasureConfig, warmup: Warmup, rng: np.random.Generator) -> _Window:
    passes = _passes_per_sample(timer, warmup)
    num_samples = _samples_per_visit(config, warmup, passes)
    deadline = timer.now() + config.max_seconds
    blocks: list[Block] = []
    num_dropped, next_look = 0, config.min_blocks
    while True:
        block = _measure_block(timer, ABBA if rng.random() < 0.5 else BAAB, num_samples, passes)
        if timer.throttled():
            num_dropped += 1
        else:
            blocks.append(block)
        is_late = timer.now() >= deadline and len(blocks) + num_dropped >= config.min_blocks
        if not is_late and len(blocks) < next_look:
            continue
        window = _window(blocks, num_dropped, rng)
        if is_late or (window.half_width <= config.half_width and not window.has_drifted):
            return window
        next_look = math.ceil(len(blocks) * GROWTH_BETWEEN_LOOKS)


def _window(blocks: Sequence[Block], num_dropped: int, rng: np.random.Generator) -> _Window:
    if len(blocks) < 2:
        raise MeasurementError(
            f"{num_dropped} of {num_dropped + len(blocks)} blocks were throttled by heat or power, which leaves "
            "nothing to compare; let the device cool down or raise its power limit"
        )
    has_waited = _joined([visit for block in blocks for visit in (block.dense, block.candidate)]).has_waited
    dense_ms, candidate_ms = (
        tuple(visit.cpu_ms if has_waited else median(visit.samples_ms) for visit in visits)
        for visits in zip(*((block.dense, block.candidate) for block in blocks), strict=True)
    )
    ratios = _ratios(dense_ms, candidate_ms)
    return _Window(
        ratios=ratios,
        dense_ms=dense_ms,
        interval=bootstrap_median_interval(ratios, rng=rng),
        blocks=tuple(blocks),
        num_dropped=num_dropped,
        has_waited=has_waited,
    )


def _ratios(dense_ms: Sequence[float], candidate_ms: Sequence[float]) -> tuple[float, ...]:
    return tuple(b / a for a, b in zip(dense_ms, candidate_ms, strict=True))


def _measure_block(timer: Timer, order: Sequence[Arm], num_samples: int, passes: int) -> Block:
    visits = [(arm, timer.visit(arm, num_samples, passes)) for arm in order]
    dense, candidate = (_joined([visit for visited, visit in visits if visited is arm]) for arm in Arm)
    return Block(dense=dense, candidate=candidate)


def _passes_per_sample(timer: Timer, warmup: Warmup) -> int:
    """The same for both arms: the median of means over 2 passes and over 3 differ where noise is skewed."""
    return max(1, math.ceil(timer.min_sample_ms / min(warmup.dense_ms, warmup.candidate_ms)))


def _samples_per_visit(config: MeasureConfig, warmup: Warmup, passes: int) -> int:
    """As many as are half of `iterations_per_block` passes, but two; for a slow model, as let `min_blocks` end within
    `max_seconds`, but one."""
    block_ms = 2 * passes * (warmup.dense_ms + warmup.candidate_ms)  # of one sample a visit
    affordable = int(1000 * config.max_seconds / (config.min_blocks * block_ms))
    return max(1, min(max(2, math.ceil(config.iterations_per_block / 2 / passes)), affordable))
