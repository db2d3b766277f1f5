"""Trials that can hardly join the front any more are stopped: a look after one shot, and at rungs of a long training.

    needed            the best accuracy of the front among what is no slower, no larger, …
    share lost in the end | share lost now  ~  line through the nearest finished trials + Student's t
    P(end better than needed) < Bar.below  →  stopped

The line is fitted to half of the finished trials, at least 10, which are nearest in what they had lost: a trial that
has lost little is made good by a short training, one that has lost much is not, and its end is less certain. The end
is predicted as of a new observation, with the freedom of so few: few trials say little, and stop little. Beyond the
trials that are known nothing is extrapolated: one that has lost less than all of them goes on, one that has lost more
is taken for the worst of them. The driver makes the bar; a worker only looks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ranksearch.records import ONE_SHOT, Bar, Score

__all__ = ["RUNGS", "Forecast", "StoppedError", "Watch", "forecast", "worth_a_look"]

RUNGS = {0.25: "1/4", 0.5: "1/2"}  # part of the training -> stage
MIN_TRIALS = 10
SEED_NOISE = 0.002  # of the share lost: what another seed would change
BACKWARD = 2.0  # a backward pass, in forward ones
LOOK = 0.2  # of what is left of the training: a look may take so much of it


@dataclass(frozen=True, slots=True)
class Forecast:
    """The share of the accuracy that is lost in the end: location and scale of Student's t, and how far each of the
    trials that say so was from what they say of it."""

    mean: float
    scale: float
    misses: tuple[float, ...]

    def chance(self, lost: float) -> float:
        """That less than `lost` is lost: by Student's t or by count, whichever is more, as now and then a training goes
        much better than most. Student's t by the normal (Abramowitz and Stegun 26.7.8)."""
        freedom = len(self.misses) - 2
        t = (lost - self.mean) / self.scale
        z = t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom))
        by_count = (sum(self.mean + miss < lost for miss in self.misses) + 0.5) / (len(self.misses) + 1)
        return max((1 + math.erf(z / math.sqrt(2))) / 2, by_count)


def forecast(lost: float, finished: Sequence[tuple[float, float]]) -> Forecast | None:
    """From (lost by then, in the end) of finished trials; None where they say nothing about a trial with this loss."""
    if len(finished) < MIN_TRIALS or lost < min(then for then, _ in finished):
        return None
    lost = min(lost, max(then for then, _ in finished))
    nearest = sorted(finished, key=lambda pair: abs(pair[0] - lost))[: max(MIN_TRIALS, len(finished) // 2)]
    num = len(nearest)
    middle_then, middle_end = (sum(column) / num for column in zip(*nearest, strict=True))
    spread = sum((then - middle_then) ** 2 for then, _ in nearest) or 1.0
    slope = sum((then - middle_then) * (end - middle_end) for then, end in nearest) / spread
    misses = tuple(end - middle_end - slope * (then - middle_then) for then, end in nearest)
    variance = max(sum(miss**2 for miss in misses) / (num - 2), SEED_NOISE**2)
    of_line = 1 / num + (lost - middle_then) ** 2 / spread
    return Forecast(middle_end + slope * (lost - middle_then), math.sqrt(variance * (1 + of_line)), misses)


def worth_a_look(part: float, num_steps: int, batch_size: int, num_examples: int) -> bool:
    """Whether scoring `num_examples` when this part of the training is done costs little beside the rest of it."""
    return num_examples <= LOOK * (1 - part) * num_steps * batch_size * (1 + BACKWARD)


class StoppedError(Exception):
    """A trial is not worth finishing. `expected`: its accuracy in the end, from −2 to 2 scales of the forecast."""

    def __init__(self, reason: str, expected: Score) -> None:
        super().__init__(reason)
        self.expected = expected


@dataclass
class Watch:
    """Looks at a trial's scores as they come. `known`: its objectives but for the accuracy."""

    bar: Bar
    known: Mapping[str, float]
    in_percent: bool = True
    scores: dict[str, Score] = field(default_factory=dict[str, Score])  # stage -> score

    @property
    def oneshot(self) -> Score:
        return self.scores[ONE_SHOT]

    @property
    def rungs(self) -> dict[str, Score]:
        return {stage: score for stage, score in self.scores.items() if stage != ONE_SHOT}

    def look(self, stage: str, score: Score) -> None:
        """Raises StoppedError."""
        self.scores[stage] = score
        bar, needed = self.bar, self.bar.needed(self.known)
        # A trial keeps its one-shot model where training does not better it.
        if not bar.below or needed is None or self.oneshot.value > needed:
            return
        found = forecast(bar.lost(score.value), bar.finished.get(stage, ()))
        if found is None or (chance := found.chance(bar.lost(needed))) >= bar.below:
            return
        raise StoppedError(self._reason(stage, score, needed, chance), self._expected(found))

    def _reason(self, stage: str, score: Score, needed: float, chance: float) -> str:
        others = " and ".join(name for name in self.bar.objectives if name != "accuracy")
        return (
            f"{stage} {self._shown(score.value)}: with {100 * chance:.2g} % probability above the "
            f"{self._shown(needed)} that its {others} would need on the front"
        )

    def _shown(self, accuracy: float) -> str:
        return f"{100 * accuracy:.1f} %" if self.in_percent else f"{accuracy:.4g}"

    def _expected(self, found: Forecast) -> Score:
        low, value, high = (self.bar.accuracy(found.mean + width * found.scale) for width in (2, 0, -2))
        return Score(value=value, low=low, high=high, num_examples=len(found.misses))
