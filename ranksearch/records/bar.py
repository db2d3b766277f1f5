"""What a trial is held against while it trains: the front to join, and how others that stood where it stands ended."""

from collections.abc import Mapping
from dataclasses import dataclass

from ranksearch.records.record import Record, require

__all__ = ["ONE_SHOT", "Bar"]

ONE_SHOT = "one-shot"  # the stage before fine-tuning; the rungs that follow are named by the part of it that is done


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar(Record):
    """Plain data from the driver, as it stood when the trial started.

    A trial is stopped once it joins the front with a probability of less than `below`; 0: never. Accuracies lost are
    shares of the dense model's: 1 − accuracy / dense accuracy.
    """

    below: float
    dense_accuracy: float
    objectives: tuple[str, ...]
    front: tuple[tuple[float, ...], ...]  # the objectives of each of its trials
    # stage -> (accuracy lost by then, in the end) of finished trials that were trained alike
    finished: Mapping[str, tuple[tuple[float, float], ...]]

    def __post_init__(self) -> None:
        require(0 <= self.below < 1, "below", self.below, "0 (never stop) or a probability")

    def lost(self, accuracy: float) -> float:
        return (self.dense_accuracy - accuracy) / (abs(self.dense_accuracy) or 1.0)

    def accuracy(self, lost: float) -> float:
        return self.dense_accuracy - lost * (abs(self.dense_accuracy) or 1.0)

    def needed(self, known: Mapping[str, float]) -> float | None:
        """The accuracy that a trial must exceed to join the front, given its other objectives; None: any will do."""
        accuracy = self.objectives.index("accuracy")
        rivals = [
            point[accuracy]
            for point in self.front
            if all(v <= known[o] for o, v in zip(self.objectives, point, strict=True) if o != "accuracy")
        ]
        return max(rivals, default=None)
