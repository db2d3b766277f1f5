"""What a study fixes when it is created."""

from collections.abc import Mapping
from dataclasses import dataclass

from ranksearch.records.config import MeasureConfig, Recipe
from ranksearch.records.measurement import Environment
from ranksearch.records.plan import LayerRecord, SeedPlan
from ranksearch.records.profile import Profile
from ranksearch.records.record import Record, key_of

__all__ = ["StudyRecord"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord(Record):
    """What a study fixes when it is created; read back on resume and never derived again."""

    name: str
    created: str  # ISO 8601, UTC
    fingerprint: Mapping[str, str]  # what must be equal for a run to resume this study
    objectives: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    seeds: tuple[SeedPlan, ...]
    recipes: tuple[Recipe, ...]  # the first is that of the dense model and the seeds; more than one are searched
    measure: MeasureConfig
    seed: int
    environment: Environment
    settings: Mapping[str, str]  # how the model and data were named, for people and for `export`; no password
    profile: Profile | None = None  # what seeds and proposals start from, also of options that `layers` lack

    @property
    def key(self) -> str:
        return key_of(dict(self.fingerprint))

    @property
    def identity(self) -> dict[str, str]:
        """Of its latency measurements; the fingerprint has each part as `latency PART`."""
        mark = "latency "
        return {part.removeprefix(mark): value for part, value in self.fingerprint.items() if part.startswith(mark)}
