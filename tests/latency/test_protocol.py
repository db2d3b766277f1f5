"""The protocol against simulated machines, whose true ratio is known."""

import dataclasses
import math
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from ranksearch.errors import MeasurementError
from ranksearch.latency import protocol
from ranksearch.latency.protocol import Arm, Visit, time_pair, warm_up
from ranksearch.records import MeasureConfig

CONFIG = MeasureConfig()


@dataclasses.dataclass
class SimulatedTimer:
    """A machine with noise: lognormal from sample to sample and from visit to visit, times `weather(seconds)`, which
    slows both arms alike. Its clock moves by what it measures."""

    dense_ms: float = 3.0
    ratio: float = 1.0
    sample_noise: float = 0.03
    visit_noise: float = 0.0
    weather: Callable[[float], float] = lambda seconds: 1.0
    wall_per_cpu: float = 1.0
    seed: int = 0
    min_sample_ms: float = 1.0
    min_warmup_seconds: float = 0.5
    device_overhead: float = 1.0
    is_hot: Callable[[float], bool] = lambda seconds: False

    def __post_init__(self):
        self.seconds = 0.0
        self.rng = np.random.default_rng([self.seed, 1])
        self.visits = []

    def now(self):
        return self.seconds

    def visit(self, arm, num_samples, passes):
        expected = self.dense_ms * (self.ratio if arm is Arm.CANDIDATE else 1.0) * self.weather(self.seconds)
        noise = self.visit_noise * self.rng.normal() + self.sample_noise * self.rng.normal(size=num_samples)
        samples_ms = expected * np.exp(noise)
        wall_seconds = float(samples_ms.sum()) * passes / 1000
        self.seconds += wall_seconds
        self.visits.append((arm, num_samples, passes))
        return Visit(
            samples_ms=samples_ms.tolist(), wall_seconds=wall_seconds, cpu_seconds=wall_seconds / self.wall_per_cpu
        )

    def throttled(self):
        return self.is_hot(self.seconds)

    def wall_per_device(self):
        return self.device_overhead


# --- fidelity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample_noise", "visit_noise"), [(0.01, 0.0), (0.03, 0.0), (0.03, 0.02)], ids=["quiet", "usual", "noisy"]
)
def test_identical_models_measure_as_identical(sample_noise, visit_noise):
    timings = [
        time_pair(SimulatedTimer(sample_noise=sample_noise, visit_noise=visit_noise, seed=run), CONFIG, seed=run)
        for run in range(200)
    ]
    assert sum(t.ratio_low <= 1 <= t.ratio_high for t in timings) / 200 >= 0.89
    assert sum(t.ratio < 0.98 for t in timings) / 200 <= 0.01
    assert sum(t.ratio < 1 for t in timings) / 200 == pytest.approx(0.5, abs=0.12)  # no arm is favoured


@pytest.mark.parametrize("ratio", [0.1, 0.5, 2.0])
def test_a_true_ratio_is_found(ratio):
    timing = time_pair(SimulatedTimer(ratio=ratio, sample_noise=0.02), CONFIG, seed=0)
    assert timing.ratio == pytest.approx(ratio, rel=0.01)
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high


def test_weather_that_slows_both_arms_leaves_the_ratio_alone():
    """Clocks that wander by 30 % over seconds: each arm alone is off by far more than the ratio is."""

    def wandering(seconds):
        return 1.0 + 0.3 * math.sin(1.7 * seconds)

    config = dataclasses.replace(CONFIG, half_width=0.002, max_seconds=6.0)
    timing = time_pair(SimulatedTimer(ratio=0.5, sample_noise=0.01, weather=wandering), config, seed=0)
    assert timing.ratio == pytest.approx(0.5, rel=0.01)
    assert np.ptp(timing.dense_ms) > 0.8


def test_a_foreign_load_that_comes_and_goes_leaves_the_ratio_alone():
    def stair(seconds):
        return 2.0 if int(seconds * 5) % 3 == 0 else 1.0

    ratios = [
        time_pair(SimulatedTimer(ratio=0.5, sample_noise=0.01, weather=stair, seed=run), CONFIG, seed=run).ratio
        for run in range(20)
    ]
    assert median(ratios) == pytest.approx(0.5, rel=0.01)


def test_an_outlier_is_kept():
    timer = SimulatedTimer(sample_noise=0.0)
    timer.weather = lambda seconds: 40.0 if len(timer.visits) == 500 else 1.0
    config = dataclasses.replace(CONFIG, min_blocks=200)
    timing = time_pair(timer, config, seed=0)
    assert max(timing.dense_ms + timing.candidate_ms) == pytest.approx(120.0)
    assert len(timing.dense_ms) == len(timing.candidate_ms) == timing.num_blocks * 2 * timer.visits[-1][1]


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_quiet_machine_needs_the_fewest_blocks():
    timing = time_pair(SimulatedTimer(sample_noise=0.005), CONFIG, seed=0)
    assert timing.num_blocks == CONFIG.min_blocks
    assert timing.flags == ()


def test_a_noisy_machine_is_stopped_in_time_and_flagged():
    timer = SimulatedTimer(visit_noise=0.2)
    timing = time_pair(timer, CONFIG, seed=0)
    assert "noisy" in timing.flags
    assert (timing.ratio_high - timing.ratio_low) / 2 / timing.ratio > CONFIG.half_width
    block_seconds = 20 * 3e-3 * 2
    assert CONFIG.max_seconds <= timer.now() - timing.warmup_seconds <= CONFIG.max_seconds + 2 * block_seconds


def test_a_machine_that_two_speeds_take_turns_on_is_measured_in_time():
    """As a neighbour on the same core makes it: half as fast again for fractions of a second, seen by both models."""
    rng = np.random.default_rng(0)
    speeds = rng.choice([1.0, 1.5], size=1000)
    block_seconds = 8 * 1.5 * 3e-3
    for run in range(20):
        timer = SimulatedTimer(ratio=0.6, weather=lambda seconds: float(speeds[int(seconds / 0.15)]), seed=run)
        timer.seconds = start = 5.0 * run
        timing = time_pair(timer, CONFIG, seed=run)
        assert timer.now() - start <= timing.warmup_seconds + CONFIG.max_seconds + 2 * block_seconds
        assert timing.warmup_seconds < 2.0
        assert timing.ratio == pytest.approx(0.6, rel=0.02)


def test_more_noise_takes_more_blocks_and_a_wider_target_takes_fewer():
    def num_blocks(noise, half_width=0.01):
        config = dataclasses.replace(CONFIG, half_width=half_width, max_seconds=60.0)
        timings = [time_pair(SimulatedTimer(visit_noise=noise, seed=run), config, seed=run) for run in range(20)]
        return median(t.num_blocks for t in timings)

    assert num_blocks(0.01) < num_blocks(0.03) < num_blocks(0.05)
    assert num_blocks(0.05, half_width=0.02) < num_blocks(0.05)


def test_the_interval_is_looked_at_soon_again():
    timings = [time_pair(SimulatedTimer(visit_noise=0.01, seed=run), CONFIG, seed=run) for run in range(30)]
    assert {10, 12, 14} <= {timing.num_blocks for timing in timings}


def test_never_fewer_blocks_than_asked_for_however_slow_the_model():
    timer = SimulatedTimer(dense_ms=400.0)
    timing = time_pair(timer, CONFIG, seed=0)
    assert timing.num_blocks >= CONFIG.min_blocks
    assert {num_samples for _, num_samples, _ in timer.visits[-4:]} == {1}


def test_the_same_seed_measures_the_same():
    assert time_pair(SimulatedTimer(), CONFIG, seed=5) == time_pair(SimulatedTimer(), CONFIG, seed=5)


# --- blocks and samples ---------------------------------------------------------------------------------------------


def test_blocks_are_abba_or_baab_in_random_order():
    timer = SimulatedTimer()
    timing = time_pair(timer, dataclasses.replace(CONFIG, min_blocks=40), seed=0)
    arms = [arm for arm, _, _ in timer.visits[-4 * timing.num_blocks :]]
    orders = [tuple(arms[i : i + 4]) for i in range(0, len(arms), 4)]
    assert set(orders) == {(0, 1, 1, 0), (1, 0, 0, 1)}
    assert 0.2 < orders.count((0, 1, 1, 0)) / len(orders) < 0.8


@pytest.mark.parametrize(
    ("dense_ms", "ratio", "passes", "samples"),
    [(3.0, 1.0, 1, 5), (1.2, 0.5, 2, 3), (0.2, 1.0, 5, 2), (0.2, 0.5, 10, 2)],
)
def test_a_sample_lasts_at_least_a_millisecond_with_equal_passes_for_both_arms(dense_ms, ratio, passes, samples):
    timer = SimulatedTimer(dense_ms=dense_ms, ratio=ratio, sample_noise=0.0)
    timing = time_pair(timer, dataclasses.replace(CONFIG, iterations_per_block=10, max_seconds=9), seed=0)
    timed = timer.visits[-4 * timing.num_blocks :]
    assert {p for _, _, p in timed} == {passes}
    assert {n for _, n, _ in timed} == {samples}  # ten passes of each arm a block, where they are long enough
    assert median(timing.dense_ms) == pytest.approx(dense_ms)  # still one pass


# --- warm-up --------------------------------------------------------------------------------------------------------


def test_warm_up_lasts_its_least_time_and_samples_on_a_steady_machine():
    steady = warm_up(SimulatedTimer(sample_noise=0.0))
    assert 0.5 <= steady.seconds < 0.52
    assert steady.is_settled
    slow = SimulatedTimer(dense_ms=100.0, sample_noise=0.0)
    assert warm_up(slow).seconds == pytest.approx(2.0)  # 20 samples, half of them of each arm
    assert sum(n for arm, n, _ in slow.visits if arm is Arm.DENSE) == protocol.MIN_WARMUP_SAMPLES


@dataclasses.dataclass
class WarmingCandidate(SimulatedTimer):
    """The candidate alone is slower at first, by `cold(seconds)`."""

    cold: Callable[[float], float] = lambda seconds: 1.0

    def visit(self, arm, num_samples, passes):
        self.weather = self.cold if arm is Arm.CANDIDATE else lambda seconds: 1.0
        return super().visit(arm, num_samples, passes)


def test_warm_up_waits_for_the_ratio_to_settle():
    timer = WarmingCandidate(sample_noise=0.01, cold=lambda seconds: 1.0 + 2.0 * math.exp(-seconds / 0.5))
    warmup = warm_up(timer)
    assert 1.0 < warmup.seconds < protocol.MAX_WARMUP_SECONDS
    assert warmup.candidate_ms == pytest.approx(3.0, rel=0.1)


def test_warm_up_does_not_wait_for_weather_that_both_models_feel():
    def gusts(seconds):
        return 1.5 if int(seconds / 0.2) % 3 == 1 else 1.0

    warmup = warm_up(SimulatedTimer(ratio=0.5, sample_noise=0.01, weather=gusts))
    assert warmup.is_settled
    assert warmup.seconds < 0.7


def test_warm_up_ends_where_the_ratio_never_settles_which_is_flagged():
    timer = WarmingCandidate(sample_noise=0.0, cold=lambda seconds: 1.0 + min(seconds, 10.0))
    timing = time_pair(timer, CONFIG, seed=0)
    assert protocol.MAX_WARMUP_SECONDS <= timing.warmup_seconds < protocol.MAX_WARMUP_SECONDS + 0.2
    assert "unstable" in timing.flags


# --- drift, throttling, other flags ---------------------------------------------------------------------------------


def step_at(seconds_of_step, height=1.1):
    return lambda seconds: height if seconds > seconds_of_step else 1.0


def test_a_step_of_the_dense_time_is_outlasted():
    timer = SimulatedTimer(sample_noise=0.002, weather=step_at(0.55))
    timing = time_pair(timer, CONFIG, seed=0)
    assert timing.flags == ()
    assert CONFIG.min_blocks < timing.num_blocks
    assert len(timing.dense_ms) == 4 * timing.num_blocks  # what came before the step is kept


def test_a_steady_drift_ends_in_time_as_unstable_with_the_right_ratio():
    timer = SimulatedTimer(ratio=0.5, sample_noise=0.002)
    timer.weather = lambda seconds: 1.0 + 0.6 * max(0.0, seconds - 0.5)
    timing = time_pair(timer, CONFIG, seed=0)
    assert timing.flags == ("unstable",)
    assert CONFIG.max_seconds <= timer.now() - timing.warmup_seconds < CONFIG.max_seconds + 0.1
    assert timing.ratio == pytest.approx(0.5, rel=0.01)


def test_a_small_drift_takes_the_fewest_blocks():
    timer = SimulatedTimer(sample_noise=0.002, weather=lambda seconds: 1.0 + 0.02 * seconds)
    timing = time_pair(timer, CONFIG, seed=0)
    assert timing.flags == ()
    assert timing.num_blocks == CONFIG.min_blocks


def test_throttled_blocks_are_dropped_and_counted():
    timer = SimulatedTimer(sample_noise=0.002)
    timer.weather = lambda seconds: 1.5 if 0.7 < seconds < 0.9 else 1.0
    timer.is_hot = lambda seconds: 0.7 < seconds < 1.1
    timing = time_pair(timer, dataclasses.replace(CONFIG, max_seconds=1.5), seed=0)
    assert timing.flags == ("throttled",)
    assert timing.num_dropped_blocks >= 2
    assert timing.num_blocks == CONFIG.min_blocks
    assert max(timing.dense_ms) < 1.2 * timer.dense_ms


def test_a_device_throttled_throughout_is_an_error_that_says_so():
    with pytest.raises(MeasurementError, match=r"\d+ of \d+ blocks were throttled"):
        time_pair(SimulatedTimer(is_hot=lambda seconds: True), CONFIG, seed=0)


@pytest.mark.parametrize(("wall_per_cpu", "flags"), [(1.05, ()), (1.15, ("contended",))])
def test_a_thread_that_had_to_wait_for_its_core_is_contended(wall_per_cpu, flags):
    assert time_pair(SimulatedTimer(wall_per_cpu=wall_per_cpu, sample_noise=0.002), CONFIG, seed=0).flags == flags


class SharedCore(SimulatedTimer):
    """Another process has the core for as long as ours had it, by turns of `slice_ms`."""

    slice_ms = 4.0

    def visit(self, arm, num_samples, passes):
        alone = super().visit(arm, num_samples, passes)
        edges = self.seconds - alone.wall_seconds + np.cumsum([0, *alone.samples_ms]) * passes / 1000
        turns = np.floor(edges * 1000 / self.slice_ms)  # of the other, by the time that ours has worked so long
        walls = np.diff(edges * 1000 + turns * self.slice_ms) / passes
        return Visit(
            samples_ms=walls.tolist(), wall_seconds=walls.sum() * passes / 1000, cpu_seconds=alone.wall_seconds
        )


@pytest.mark.parametrize(("dense_ms", "ratio"), [(2.0, 0.6), (3.5, 0.3), (6.0, 0.5), (30.0, 0.4)])
def test_a_core_shared_with_others_leaves_the_ratio_as_it_is(dense_ms, ratio):
    timing = time_pair(SharedCore(dense_ms=dense_ms, ratio=ratio, sample_noise=0.01), CONFIG, seed=0)
    assert "contended" in timing.flags
    assert timing.ratio == pytest.approx(ratio, rel=0.01)
    assert timing.ratio_high / timing.ratio_low < 1.03
    by_the_wall = median(timing.candidate_ms) / median(timing.dense_ms)
    assert dense_ms == 30.0 or abs(by_the_wall / ratio - 1) > 0.05  # which the stored samples still show


@pytest.mark.parametrize(("device_overhead", "flags"), [(1.1, ()), (1.3, ("launch_bound",))])
def test_a_device_that_waits_for_the_host_is_launch_bound(device_overhead, flags):
    timer = SimulatedTimer(device_overhead=device_overhead, sample_noise=0.002)
    assert time_pair(timer, CONFIG, seed=0).flags == flags
