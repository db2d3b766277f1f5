"""Tells a training that will not recover from one that only had a bad moment.

A loss that is NaN or infinite ends it at once. So does one that stays worse than at the start for long: its moving
average (a tenth of each new loss) is more than a tenth above the mean of the first ten for half of the training without
a break, and for a hundred steps at least. A rate that is too high for a while, until the schedule lowers it, is
forgiven; so is the little that a start from a good decomposition loses before it gains.
"""

import math
from dataclasses import dataclass

from ranksearch.errors import DivergedError, NonFiniteError

__all__ = ["Watch"]

FIRST = 10
SMOOTHING = 0.9
MARGIN = 0.1  # of the first losses
PATIENCE = 0.5  # of the training …
LEAST_PATIENCE = 100  # … and in steps


@dataclass(slots=True)
class Watch:
    """What is kept of the losses so far."""

    seen: int = 0
    skipped: int = 0  # of these, what was seen of the model before it was made smaller
    start: float = 0.0  # mean of the first losses
    recent: float = 0.0  # moving average since
    worse_since: tuple[int, float] | None = None  # (losses seen, progress) when it went above the start

    def begin_again(self) -> None:
        """The model has been made smaller: what it was before is no measure of it."""
        self.skipped, self.worse_since = self.seen, None

    def look(self, loss: float, progress: float) -> None:
        """`progress`: the part of training that is done, 0 to 1. Raises NonFiniteError or DivergedError."""
        self.seen += 1
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss was {loss} at fine-tuning step {self.seen}")
        if (counted := self.seen - self.skipped) <= FIRST:
            self.start += (loss - self.start) / counted
            self.recent = self.start
            return
        self.recent = SMOOTHING * self.recent + (1 - SMOOTHING) * loss
        if self.recent <= self.start + MARGIN * abs(self.start):
            self.worse_since = None
            return
        self.worse_since = self.worse_since or (self.seen, progress)
        if progress - self.worse_since[1] >= PATIENCE and self.seen - self.worse_since[0] >= LEAST_PATIENCE:
            raise DivergedError(
                f"the loss stayed worse than at the start ({self.recent:.4g}, then {self.start:.4g}) "
                f"from fine-tuning step {self.worse_since[0]} to {self.seen}"
            )
