"""What a study comes to: the best speed-up at a given loss of accuracy, what failed and why, and what looks wrong."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ranksearch.allocate import hypervolume
from ranksearch.records import TrialState
from ranksearch.study.study import ParetoFilter
from ranksearch.tasks import Task
from ranksearch.tasks.split import targets_of

__all__ = [
    "DROPS",
    "Failure",
    "Gain",
    "Pruned",
    "chance_accuracy",
    "dense_row",
    "doubts",
    "failures",
    "fastest_within",
    "gain_over_rules",
    "nearest_miss",
    "pruned",
    "unmet",
]

RULES = ("seed:uniform", "seed:energy", "seed:evbmf", "seed:alds", "seed:log-energy")  # origins
DROPS = (0.01, 0.02, 0.05)  # of accuracy, in its own unit
# Test accuracy this far below validation accuracy, and by more than so few examples explain: the model was probably
# trained on the latter.
SEEN_BEFORE = 0.03


def dense_row(trials: pd.DataFrame) -> pd.Series | None:
    """The complete trial of the dense model, out of a frame of trials; None where there is none."""
    found = trials[(trials.origin == "dense") & (trials.state == TrialState.COMPLETE)]
    return None if found.empty else found.iloc[0]


def fastest_within(trials: pd.DataFrame, drops: Sequence[float] = DROPS) -> dict[float, int]:
    """Allowed loss of accuracy against the dense model → number of the fastest trial that keeps to it."""
    dense = dense_row(trials)
    if dense is None:
        return {}
    complete = trials.loc[trials.state == TrialState.COMPLETE]
    kept = {drop: complete.loc[complete.accuracy >= dense.accuracy - drop] for drop in drops}
    return {drop: int(rows.latency_ratio.idxmin()) for drop, rows in kept.items()}


@dataclass(frozen=True, slots=True)
class Failure:
    reason: str
    trials: tuple[int, ...]


def failures(trials: pd.DataFrame) -> list[Failure]:
    """The reasons why trials failed, the most frequent first."""
    failed = trials[trials.state == TrialState.FAILED]
    groups = failed.groupby(failed.reason.fillna("unknown")).groups
    found = [Failure(str(reason), tuple(int(n) for n in numbers)) for reason, numbers in groups.items()]
    return sorted(found, key=lambda failure: (-len(failure.trials), failure.trials))


@dataclass(frozen=True, slots=True)
class Pruned:
    num: int
    seconds_saved: float  # estimated: had each taken as long as the median of those that were trained to their end


def pruned(trials: pd.DataFrame) -> Pruned | None:
    """None where no trial was stopped."""
    stopped = trials[trials.state == TrialState.PRUNED]
    if stopped.empty:
        return None
    measuring = trials.seconds_measure.fillna(0) if "seconds_measure" in trials else 0.0  # is done in any case
    seconds = trials.seconds_total - measuring
    usual = seconds[(trials.state == TrialState.COMPLETE) & (trials.origin != "dense")].median()
    return Pruned(len(stopped), max(0.0, float((usual - seconds[stopped.index]).sum())))


# --- what the search was worth ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gain:
    """Hypervolumes of (latency ratio, accuracy) beyond the reference (1, half of the dense model's accuracy)."""

    found: float
    by_rules: float  # by the dense model and the plans of closed-form rules alone


def gain_over_rules(trials: pd.DataFrame) -> Gain | None:
    """None where the study has no latency, no dense model or no plan by a rule, or such plans gain nothing."""
    dense = dense_row(trials)
    complete = trials.loc[(trials.state == TrialState.COMPLETE) & trials.latency_ratio.notna()]
    is_ruled = complete.origin.str.startswith(RULES)
    if dense is None or not is_ruled.any():
        return None
    reference = (1.0, float(dense.accuracy) / 2)
    ruled = complete.loc[is_ruled | (complete.origin == "dense")]
    found, by_rules = (hypervolume(rows[["latency_ratio", "accuracy"]], reference) for rows in (complete, ruled))
    return Gain(found, by_rules) if by_rules > 0 else None


# --- constraints -----------------------------------------------------------------------------------------------------


def unmet(wanted: ParetoFilter, row: Mapping[str, float], dense_accuracy: float | None) -> dict[str, float]:
    """By how much a trial misses each constraint, as a share of what is asked; empty where it meets them all."""
    missed: dict[str, float] = {}
    if wanted.max_latency_ms is not None:
        missed["max_latency_ms"] = row["latency_ms"] / wanted.max_latency_ms - 1
    if wanted.min_speedup is not None:
        missed["min_speedup"] = 1 - row["speedup"] / wanted.min_speedup
    if wanted.min_accuracy is not None:
        missed["min_accuracy"] = wanted.min_accuracy - row["accuracy"]
    if wanted.max_drop is not None and dense_accuracy is not None:
        missed["max_drop"] = dense_accuracy - wanted.max_drop - row["accuracy"]
    return {name: by for name, by in missed.items() if by > 0}


def nearest_miss(front: pd.DataFrame, wanted: ParetoFilter, dense_accuracy: float | None) -> int | None:
    """The trial that misses the constraints by the least in sum; None for an empty front."""
    misses = {
        int(str(number)): sum(unmet(wanted, row.to_dict(), dense_accuracy).values()) for number, row in front.iterrows()
    }
    return min(misses, key=misses.__getitem__, default=None)


# --- doubts ----------------------------------------------------------------------------------------------------------


def chance_accuracy(task: Task) -> float | None:
    """The accuracy of always naming the most frequent class of the validation split; None for another metric, or where
    labels are not at hand."""
    labels = targets_of(task.validation) if task.metric_name == "accuracy" else None
    return None if labels is None else float(labels.bincount().max()) / len(labels)


def doubts(trials: pd.DataFrame, metric: str, *, chance: float | None) -> list[str]:
    """What the dense model's accuracy says against the whole study, one line each. `chance`: see `chance_accuracy`."""
    dense = dense_row(trials)
    if dense is None or metric != "accuracy":
        return []
    found = []
    if chance is not None and dense.accuracy_low <= chance:
        found.append(
            f"the dense model's accuracy, {100 * dense.accuracy:.1f} %, is no better than always naming the most "
            f"frequent class, {100 * chance:.1f} %; check its weights, the order of the labels and --normalize"
        )
    below = dense.accuracy - dense.test_accuracy
    by_chance = math.hypot(dense.accuracy - dense.accuracy_low, dense.test_accuracy_high - dense.test_accuracy)
    if below > SEEN_BEFORE and below > by_chance:
        found.append(
            f"the dense model has {100 * dense.test_accuracy:.1f} % on the test split and {100 * dense.accuracy:.1f} % "
            "on the validation split: it has probably seen the validation examples in training; give it others, or "
            "trust only the test column"
        )
    return found
