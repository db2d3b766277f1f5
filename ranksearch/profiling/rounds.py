"""Timing many things against one reference, all of them in every round.

What slows the machine for a while slows neighbours in time alike. So nothing is timed twice in a row: a round visits
every item once, in an order of its own, and the reference again and again in between; a time counts as its ratio to the
reference's median within the same slice, a second or less. The result is the median over rounds. The first round warms
up and does not count.

Nothing here knows a clock: `visit` does, and tests bring simulated ones.
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

__all__ = ["Ratio", "Rounds"]

K = TypeVar("K", bound=Hashable)

MIN_ROUNDS = 5
SHARE_OF_REFERENCE = 0.2  # of the time that goes to the items


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over rounds of an item's time over the reference's, and the standard error of it."""

    value: float
    deviation: float


@dataclass(kw_only=True)
class Rounds(Generic[K]):
    """visit: runs one item, milliseconds. alone: entered around every slice, to have the machine to oneself."""

    items: Sequence[K]
    reference: K
    visit: Callable[[K], float]
    alone: Callable[[], AbstractContextManager[object]]
    seed: int = 0
    slice_ms: float = 500.0
    num_rounds: int = 0
    reference_ms: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._ratios: dict[K, list[float]] = {item: [] for item in self.items}
        self._slice()  # nothing but the reference: how long it takes

    def run(self) -> None:
        """One round."""
        left = self._random.sample(self.items, len(self.items))
        while left:
            for item, ratio in self._slice(left):
                if self.num_rounds:
                    self._ratios[item].append(ratio)
        self.num_rounds += 1

    def _slice(self, left: list[K] | None = None) -> list[tuple[K, float]]:
        """Takes items off the end of `left` while there is time; each with its ratio to the reference's median."""
        times: list[tuple[K, float]] = []
        with self.alone():
            references = [self.visit(self.reference)]
            since = total = 0.0
            while left and total < max(self.slice_ms, references[0] / SHARE_OF_REFERENCE):
                times.append((left[-1], self.visit(left.pop())))
                since, total = since + times[-1][1], total + times[-1][1]
                if since * SHARE_OF_REFERENCE >= references[-1]:
                    references.append(self.visit(self.reference))
                    since = 0.0
            references.append(self.visit(self.reference))
        self.reference_ms += references if self.num_rounds else []
        return [(item, ms / median(references)) for item, ms in times]

    def result(self) -> dict[K, Ratio]:
        return {item: Ratio(median(ratios), _deviation_of_median(ratios)) for item, ratios in self._ratios.items()}


def _deviation_of_median(values: Sequence[float]) -> float:
    """√(π/2) σ/√n with σ from the median absolute deviation, which single stalls do not move."""
    middle = median(values)
    sigma = 1.4826 * median(abs(value - middle) for value in values)
    return math.sqrt(math.pi / 2) * sigma / math.sqrt(len(values))
