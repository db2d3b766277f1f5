"""Rank grids: the ranks of a method that a rule has tried on one layer."""

from collections.abc import Mapping

from ranksearch.errors import SpaceError
from ranksearch.space.config import RankRule

__all__ = ["check_values", "rank_grid"]


def rank_grid(name: str, largest: tuple[int, ...], rule: RankRule, aspect: float = 1.0) -> list[tuple[int, ...]]:
    """Rank tuples along a line: every rank the same share of its own maximum, the first `aspect` times that of the
    others, rounded to the step. And those that the rule gives in full."""
    top = max(largest)
    if rule.values is not None:
        steps = sorted({v for v in rule.values if isinstance(v, int)})
        if steps and steps[-1] > top:
            raise SpaceError(f"rank {steps[-1]} is out of range for layer {name!r}; its largest rank is {top}")
    else:
        steps = sorted({*range(_step(rule, top), top + 1, _step(rule, top)), *rule.also})
    steps = [s for s in steps if rule.minimum <= s <= min(rule.maximum or top, top)]
    shares = (min(1.0, aspect), *[min(1.0, 1 / aspect)] * (len(largest) - 1))
    scaled = [tuple(_scaled(step * s, top, m, rule) for s, m in zip(shares, largest, strict=True)) for step in steps]
    return list(dict.fromkeys(scaled + [v for v in _tuples(rule) if _fits(v, largest)]))


def check_values(name: str, largest: Mapping[str, tuple[int, ...]], rule: RankRule) -> None:
    """Raises SpaceError where a rank tuple fits none of the methods that take the layer; `largest`: theirs."""
    for ranks in _tuples(rule) if largest else ():
        if not any(_fits(ranks, most) for most in largest.values()):
            allowed = ", ".join(f"{method} up to {list(most)}" for method, most in largest.items())
            raise SpaceError(f"ranks {list(ranks)} fit no method of layer {name!r}; allowed are {allowed}")


def _tuples(rule: RankRule) -> list[tuple[int, ...]]:
    return [v for v in rule.values or () if isinstance(v, tuple)]


def _fits(ranks: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    return len(ranks) == len(largest) and all(r <= most for r, most in zip(ranks, largest, strict=True))


def _step(rule: RankRule, top: int) -> int:
    return min(rule.multiple, max(1, top // 4))


def _scaled(step: float, top: int, largest: int, rule: RankRule) -> int:
    if largest == top and step == int(step):
        return int(step)
    unit = _step(rule, largest)
    return min(largest, max(unit, round(step * largest / top / unit) * unit))
