"""Hypervolume of two objectives."""

from collections.abc import Iterable

from ranksearch import allocate

# A point counts when it is faster than the dense model and keeps more than half of its accuracy.
RATIO = 1.0


def hypervolume(points: Iterable[tuple[float, float]], dense_accuracy: float) -> float:
    """Area dominated by (latency ratio, accuracy) points, beyond ratio 1.0 and half of the dense accuracy."""
    return allocate.hypervolume(list(points), (RATIO, dense_accuracy / 2))
