"""Hypervolume of two objectives."""

from collections.abc import Iterable

# A point counts when it is faster than the dense model and keeps more than half of its accuracy.
RATIO = 1.0


def hypervolume(points: Iterable[tuple[float, float]], dense_accuracy: float) -> float:
    """Area dominated by (latency ratio, accuracy) points, beyond ratio 1.0 and half of the dense accuracy."""
    floor, area, right = dense_accuracy / 2, 0.0, RATIO
    # From the most accurate to the least: each point adds the strip between its ratio and the fastest one so far.
    for ratio, accuracy in sorted(points, key=lambda p: (-p[1], p[0])):
        if ratio < right and accuracy > floor:
            area += (right - ratio) * (accuracy - floor)
            right = ratio
    return area
