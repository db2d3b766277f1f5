"""The plain records that everything else passes around. Standard library only."""

from ranksearch.records.bar import ONE_SHOT, Bar
from ranksearch.records.config import FinetuneConfig, MeasureConfig, Recipe
from ranksearch.records.measurement import Environment, Measurement, Samples
from ranksearch.records.plan import DENSE, Cost, LayerChoice, LayerRecord, Option, Plan, Proposal, SeedPlan
from ranksearch.records.profile import LayerLatency, OptionProfile, Profile, Staircase, Timings
from ranksearch.records.record import Record, key_of, nearest
from ranksearch.records.study import StudyRecord
from ranksearch.records.trial import OBJECTIVES, Score, TrialRecord, TrialResult, TrialSpec, TrialState

__all__ = [
    "DENSE",
    "OBJECTIVES",
    "ONE_SHOT",
    "Bar",
    "Cost",
    "Environment",
    "FinetuneConfig",
    "LayerChoice",
    "LayerLatency",
    "LayerRecord",
    "MeasureConfig",
    "Measurement",
    "Option",
    "OptionProfile",
    "Plan",
    "Profile",
    "Proposal",
    "Recipe",
    "Record",
    "Samples",
    "Score",
    "SeedPlan",
    "Staircase",
    "StudyRecord",
    "Timings",
    "TrialRecord",
    "TrialResult",
    "TrialSpec",
    "TrialState",
    "key_of",
    "nearest",
]
