"""Two studies of one model side by side: two devices, backends, batch sizes or numbers of threads.

A latency is a ratio to the dense model on the same device, so what is compared is how much of it a plan saves there.
Where two 95 % intervals overlap, neither is the faster one: that is a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ranksearch.errors import FingerprintError
from ranksearch.records import Record, StudyRecord, TrialState
from ranksearch.study.summary import DROPS, dense_row, fastest_within

__all__ = ["Fastest", "check_same_model", "differences", "fastest_of", "plans_in_both"]

SHOWN = ("accuracy", "speedup", "speedup_low", "speedup_high")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fastest(Record):
    """The fastest trial of a study within `max_drop` of its dense model's accuracy. `ties`: the others within it whose
    intervals overlap that one's."""

    study: str  # a | b
    max_drop: float
    trial: int
    accuracy: float
    speedup: float
    speedup_low: float
    speedup_high: float
    ties: tuple[int, ...]


def check_same_model(a: StudyRecord, b: StudyRecord) -> None:
    """Raises FingerprintError where the studies are of two models."""
    for part in ("model", "weights"):
        first, second = a.fingerprint.get(part, "none"), b.fingerprint.get(part, "none")
        if first != second:
            raise FingerprintError(
                f"studies {a.name!r} and {b.name!r} are of different models: the {part} hash is {first[:12]} in one, "
                f"{second[:12]} in the other; compare two studies of one model"
            )


def differences(a: StudyRecord, b: StudyRecord) -> dict[str, tuple[str, str]]:
    """What the two measured under, as far as it differs: `backend` → (a's, b's)."""
    both = {part: (a.identity.get(part, ""), b.identity.get(part, "")) for part in {**a.identity, **b.identity}}
    return {part: values for part, values in both.items() if values[0] != values[1]}


def plans_in_both(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """One row a plan that both have measured, a's fastest first: `plan`, of each `trial_`, `accuracy_`, `speedup_`,
    `speedup_low_`, `speedup_high_` and `a` or `b`, and `faster`: `a`, `b` or `tie`. a, b: frames of trials.

    Where a study tried a plan more than once, its most accurate trial stands for it.
    """
    both = _best(a).merge(_best(b), on="plan", suffixes=("_a", "_b"))
    both["faster"] = "tie"
    both.loc[both.speedup_low_a > both.speedup_high_b, "faster"] = "a"
    both.loc[both.speedup_low_b > both.speedup_high_a, "faster"] = "b"
    return both.sort_values("speedup_a", ascending=False, ignore_index=True)


def _best(trials: pd.DataFrame) -> pd.DataFrame:
    best = _with_interval(trials).sort_values("accuracy", ascending=False, kind="stable").drop_duplicates("plan")
    return best.reset_index().loc[:, ["plan", "trial", *SHOWN]]


def _with_interval(trials: pd.DataFrame) -> pd.DataFrame:
    """The complete trials, with both ends of their speed-up."""
    complete = trials.loc[(trials.state == TrialState.COMPLETE) & trials.latency_ratio.notna()]
    return complete.assign(speedup_low=1 / complete.latency_ratio_high, speedup_high=1 / complete.latency_ratio_low)


def fastest_of(trials: pd.DataFrame, side: str, drops: Sequence[float] = DROPS) -> list[Fastest]:
    """The fastest trial within each loss of accuracy; none where the study has no dense model yet."""
    dense = dense_row(trials)
    if dense is None:
        return []
    complete = _with_interval(trials)
    return [
        _fastest(complete.loc[complete.accuracy >= dense.accuracy - drop], side, drop, number)
        for drop, number in fastest_within(trials, drops).items()
    ]


def _fastest(within: pd.DataFrame, side: str, drop: float, number: int) -> Fastest:
    best = within.loc[number]
    tied = within.index[(within.speedup_high >= best.speedup_low) & (within.speedup_low <= best.speedup_high)]
    return Fastest(
        study=side,
        max_drop=drop,
        trial=number,
        ties=tuple(int(n) for n in tied if n != number),
        **{name: float(best[name]) for name in SHOWN},
    )
