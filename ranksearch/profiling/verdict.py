"""What low-rank layers can reach on this model and device, told by its profile before any trial is spent.

Latencies and losses of layers are added up. At a budget of loss the options come from the greedy solution of the
multiple-choice knapsack: on every layer's lower convex hull of (loss, latency), steps of the steepest descent first
(Sinha and Zoltners 1979), which is optimal for the loss where it stops.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from ranksearch.records import OptionProfile, Profile

__all__ = ["verdict"]

LOSS_BUDGETS = (0.01, 0.03, 0.1, 0.3)  # nats
CERTAIN = 2.0  # standard errors


def verdict(profile: Profile, loss_budgets: Sequence[float] = LOSS_BUDGETS) -> str:
    """A few lines: the smallest latency ratio that all layers together reach, the ratio within predicted losses, and
    the layers where nothing is faster than the dense layer."""
    layers = {name: tuple(options) for name, options in groupby(profile.options, key=lambda option: option.layer)}
    never = [name for name, options in layers.items() if not any(map(_saves, options))]
    if len(never) == len(layers):
        return "nothing worth having: no option of any layer saves more time than the noise of its measurement"
    fastest = {name: min(options, key=lambda option: option.latency) for name, options in layers.items()}
    lines = [f"smallest latency ratio, losses aside: {_ratio(o.latency for o in fastest.values()):.3f}"]
    if all(option.loss is not None for option in profile.options):
        reached = _reached(layers, loss_budgets)
        lines += [f"at a predicted loss of {loss:g} nats: {ratio:.3f}" for loss, ratio in reached.items()]
    if never:
        lines.append(f"nothing is faster than the dense layer in {len(never)} of {len(layers)}: {', '.join(never)}")
    return "\n".join(lines)


def _saves(option: OptionProfile) -> bool:
    return option.latency < -CERTAIN * option.latency_deviation and not option.choice.is_dense


def _ratio(effects: Iterator[float]) -> float:
    return 1 + math.fsum(effects)


def _reached(layers: Mapping[str, Sequence[OptionProfile]], budgets: Sequence[float]) -> dict[float, float]:
    """Loss budget -> predicted latency ratio."""
    steps = sorted(
        (step for options in layers.values() for step in _steps(options)), key=lambda step: step[1] / step[0]
    )
    found: dict[float, float] = {}
    for budget in budgets:
        loss, ratio = 0.0, 1.0
        for more_loss, change in steps:
            if loss + more_loss > budget:
                break
            loss, ratio = loss + more_loss, ratio + change
        found[budget] = ratio
    return found


def _steps(options: Sequence[OptionProfile]) -> list[tuple[float, float]]:
    """(more loss, change of latency) from one point of the lower convex hull to the next, the dense option first."""
    hull = [(0.0, 0.0)]
    for point in sorted((max(o.loss or 0.0, 1e-12), o.latency) for o in options if _saves(o)):
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        if point[1] < hull[-1][1]:
            hull.append(point)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(hull)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else math.inf
