"""A trial: all that decides it, what came of it, and how it stands in the database."""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ranksearch.records.config import FinetuneConfig, MeasureConfig
from ranksearch.records.measurement import Environment, Measurement
from ranksearch.records.plan import Plan
from ranksearch.records.record import Record, require

__all__ = ["OBJECTIVES", "Score", "TrialRecord", "TrialResult", "TrialSpec", "TrialState"]


# objective -> is a smaller value better?
OBJECTIVES: Mapping[str, bool] = types.MappingProxyType(
    {"latency": True, "accuracy": False, "parameters": True, "bytes": True, "macs": True}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(Record):
    """A metric's value on one split, higher is better, with its 95 % interval."""

    value: float
    low: float
    high: float
    num_examples: int

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, (self.value, self.low, self.high))), "score", self.value, "finite")


class TrialState(StrEnum):
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec(Record):
    """All that decides a trial's outcome. `study` is the key of the study's fingerprint.

    `parent` is the key of the spec whose trained weights this one takes over where the plans agree; None for one that
    starts from the dense model, as those of a search do unless they inherit.
    """

    study: str
    plan: Plan
    seed: int
    finetune: FinetuneConfig
    measure: MeasureConfig
    parent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult(Record):
    """What came of a trial. One that is failed or pruned has a `reason`; a failed one may lack the rest.

    A pruned trial was stopped since it would hardly have joined the front: it has no score, but what was `expected`.
    """

    key: str  # key_of(spec)
    state: TrialState
    reason: str | None = None
    details: str | None = None  # a traceback, kept for people
    score: Score | None = None
    oneshot: Score | None = None  # after BatchNorm re-estimation, before fine-tuning
    rungs: Mapping[str, Score] = field(default_factory=dict[str, Score])  # part of the fine-tuning done -> score then
    expected: Score | None = None  # in the end, when it was pruned: forecast from so many trials
    measurement: Measurement | None = None
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    peak_memory_bytes: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # phase -> seconds
    environment: Environment | None = None
    retryable: bool = False  # the machine's fault (a killed worker), not the plan's

    def value_of(self, objective: str) -> float:
        """The value of an objective of OBJECTIVES. Raises ValueError when the trial has none."""
        found = {
            "latency": self.measurement and self.measurement.ratio,
            "accuracy": self.score and self.score.value,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
        }[objective]
        require(found is not None, objective, found, "measured")
        return float(found)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord(Record):
    """A trial as it stands in the database. A retry is a new row that names the row it replaces."""

    number: int
    # dense | seed:NAME | sampler | longer:TRIAL, its plan trained for longer | putback:TRIAL, its plan with layers
    # dense again that cost time | finetune:TRIAL, its model trained on
    origin: str
    spec: TrialSpec
    recipe: str | None  # which of its study's recipes the spec has; None where it has its own
    state: TrialState = TrialState.RUNNING
    attempt: int = 0
    retry_of: int | None = None
    started: str  # ISO 8601, UTC
    finished: str | None = None
    result: TrialResult | None = None
