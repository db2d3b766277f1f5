"""What runs come to: hypervolume after so many trials and after so many seconds, the fastest within a drop."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TypeAlias

from benchmarks.hypervolume import hypervolume
from benchmarks.search.race import Run

__all__ = [
    "DROPS",
    "FROM",
    "Curve",
    "Pair",
    "after",
    "by",
    "curve",
    "done_at",
    "fastest",
    "latest_lead",
    "most_ahead",
    "value_at",
]

DROPS = (0.01, 0.02, 0.05)
FROM = 5  # trials, from which on nobody shall be ahead

Curve: TypeAlias = tuple[float, ...]  # hypervolume after 0, 1, 2, … trials

# Hypervolume by trials or by seconds: of a peer, and of ours with the seeds that the peer has.
Pair: TypeAlias = tuple[Callable[[float], float], Callable[[float], float]]


def curve(run: Run, dense: float) -> Curve:
    points = list(zip(run.ratios, run.accuracies, strict=True))
    return tuple(hypervolume(points[:num], dense) for num in range(len(points) + 1))


def value_at(curve: Curve, num: int) -> float:
    """After so many trials, or after all where there are fewer: a rule that has ended stays where it is."""
    return curve[min(num, len(curve) - 1)]


def done_at(run: Run, second: float) -> int:
    """Trials that have ended by then."""
    return bisect_right(run.seconds, second)


def fastest(run: Run, least: float) -> float | None:
    """Latency ratio of the fastest whose accuracy is at least that; None where there is none."""
    found = zip(run.ratios, run.accuracies, strict=True)
    return min((ratio for ratio, accuracy in found if accuracy >= least), default=None)


def most_ahead(moments: Iterable[float], pairs: Mapping[str, Pair]) -> tuple[float, str, float]:
    """How far a peer is ahead of us at most, as a share of ours, who, and when. Below 0: nobody ever is."""
    return max(
        (_lead(theirs(moment), ours(moment)), name, moment)
        for moment in moments
        for name, (theirs, ours) in pairs.items()
    )


def latest_lead(moments: Iterable[float], pairs: Mapping[str, Pair]) -> float | None:
    """The last of the moments at which a peer is ahead; None where there is none."""
    led = (moment for moment in moments if any(theirs(moment) > ours(moment) for theirs, ours in pairs.values()))
    return max(led, default=None)


def _lead(theirs: float, ours: float) -> float:
    if ours == 0:
        return float("inf") if theirs > 0 else 0.0
    return theirs / ours - 1


def after(runs: Sequence[Run], dense: float) -> Callable[[float], float]:
    """Hypervolume after so many trials: the median of a searcher's runs, one a seed."""
    curves = [curve(run, dense) for run in runs]
    return lambda num: median(value_at(found, int(num)) for found in curves)


def by(runs: Sequence[Run], dense: float) -> Callable[[float], float]:
    """At this second."""
    pairs = [(run, curve(run, dense)) for run in runs]
    return lambda second: median(value_at(found, done_at(run, second)) for run, found in pairs)
