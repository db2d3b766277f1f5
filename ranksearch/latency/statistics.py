"""The numbers drawn from timings. Pure functions of samples: no clock, no device."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILE_FLOORS", "bootstrap_median_interval", "drift", "is_settled", "percentile"]

# percentile -> samples without which it is not known: with fewer, its 95 % interval reaches past the largest sample
PERCENTILE_FLOORS = {90: 64, 95: 130, 99: 662}


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """The `percent`-th percentile (90, 95 or 99), or None where too few samples were taken to know it."""
    if len(samples) < PERCENTILE_FLOORS[percent]:
        return None
    return float(np.percentile(samples, percent))


def bootstrap_median_interval(
    values: Sequence[float], *, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the median of `values` (Efron and Tibshirani 1993, section 13.3)."""
    medians = _resampled_medians(np.sort(np.asarray(values, dtype=np.float64)), rng, num_resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def _resampled_medians(ordered: NDArray[np.float64], rng: np.random.Generator, num: int) -> NDArray[np.float64]:
    """Medians of `num` resamples, drawn without the resamples: O(num), however many values there are.

    Drawing n values with replacement is drawing n uniforms U and taking ordered[floor(n U)], so the resample's middle
    values sit at the uniforms' middle order statistics, whose laws are known (David and Nagaraja 2003, sections 2.1
    and 2.5): U_(k) is Beta(k, n + 1 − k), and the next one is the smallest of the n − k uniforms left in (U_(k), 1).
    """
    n = len(ordered)
    half = n // 2
    if n % 2:
        return _at(ordered, rng.beta(half + 1, half + 1, num))
    lower = rng.beta(half, half + 1, num)
    upper = 1 - (1 - lower) * rng.random(num) ** (1 / half)
    return (_at(ordered, lower) + _at(ordered, upper)) / 2


def _at(ordered: NDArray[np.float64], uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(ordered)
    return ordered[np.minimum((uniforms * n).astype(np.intp), n - 1)]


def is_settled(samples: Sequence[float], *, tolerance: float = 0.01) -> bool:
    """Whether the medians of the last two of three equal windows differ by less than `tolerance`, relatively.

    The windows grow with the samples, so that noise, unlike a trend, cannot keep it False for long.
    """
    window = len(samples) // 3
    if window == 0:
        return False
    earlier = statistics.median(samples[-2 * window : -window])
    later = statistics.median(samples[-window:])
    return abs(later - earlier) < tolerance * earlier


def drift(values: Sequence[float]) -> float:
    """How far the median of the last third of `values` lies from that of the first third, relatively and unsigned."""
    third = math.ceil(len(values) / 3)
    return abs(statistics.median(values[-third:]) / statistics.median(values[:third]) - 1)
