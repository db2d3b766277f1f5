"""What a study comes to, against frames small enough to see the answer."""

import math

import pandas as pd
import pytest
import torch

from ranksearch.study.study import ParetoFilter
from ranksearch.study.summary import (
    Failure,
    chance_accuracy,
    dense_row,
    doubts,
    failures,
    fastest_within,
    nearest_miss,
    unmet,
)
from tests.toy import toy_task


def trials(*rows: tuple) -> pd.DataFrame:
    """(origin, state, accuracy, ratio, reason), a row a trial."""
    frame = pd.DataFrame(rows, columns=["origin", "state", "accuracy", "latency_ratio", "reason"])
    frame = frame.astype({"accuracy": float, "latency_ratio": float, "reason": "str"})
    frame.index.name = "trial"
    return frame.assign(speedup=1 / frame.latency_ratio, latency_ms=2 * frame.latency_ratio)


STUDY = trials(
    ("dense", "complete", 0.95, 1.0, None),
    ("sampler", "complete", 0.94, 0.7, None),
    ("sampler", "failed", math.nan, math.nan, "b"),
    ("sampler", "complete", 0.92, 0.5, None),
    ("sampler", "complete", 0.80, 0.2, None),
    ("sampler", "failed", math.nan, math.nan, "a"),
    ("sampler", "running", math.nan, math.nan, None),
    ("sampler", "failed", 0.99, 0.1, "b"),
)


def test_dense_row():
    assert dense_row(STUDY).accuracy == 0.95
    assert dense_row(STUDY[1:]) is None
    assert dense_row(trials(("dense", "failed", math.nan, math.nan, "a"))) is None


@pytest.mark.parametrize(("drop", "number"), [(0.0, 0), (0.01001, 1), (0.02, 1), (0.05, 3), (0.5, 4)])
def test_fastest_within(drop, number):
    assert fastest_within(STUDY, [drop]) == {drop: number}


def test_fastest_within_needs_a_dense_model():
    assert fastest_within(STUDY[1:]) == {}


def test_failures_by_reason_the_most_frequent_first():
    assert failures(STUDY) == [Failure("b", (2, 7)), Failure("a", (5,))]
    assert failures(STUDY[:2]) == []


@pytest.mark.parametrize(
    "wanted",
    [
        ParetoFilter(),
        ParetoFilter(min_speedup=1.5),
        ParetoFilter(max_latency_ms=1.0, min_accuracy=0.9),
        ParetoFilter(max_drop=0.02, min_speedup=1.2),
        ParetoFilter(max_drop=0.0),
        ParetoFilter(min_accuracy=0.96),
    ],
)
def test_a_constraint_is_unmet_just_where_the_filter_drops_the_row(wanted):
    complete = STUDY[STUDY.state == "complete"]
    kept = set(wanted.apply(complete, 0.95).index)
    assert {n for n, row in complete.iterrows() if not unmet(wanted, row.to_dict(), 0.95)} == kept


def test_the_nearest_miss():
    front = STUDY[STUDY.state == "complete"]
    assert nearest_miss(front, ParetoFilter(min_speedup=6), 0.95) == 4
    assert nearest_miss(front, ParetoFilter(min_accuracy=0.97), 0.95) == 0
    assert nearest_miss(front[:0], ParetoFilter(min_speedup=6), 0.95) is None


def dense(accuracy: float, half_width: float, test: float) -> pd.DataFrame:
    return trials(("dense", "complete", accuracy, 1.0, None)).assign(
        accuracy_low=accuracy - half_width, test_accuracy=test, test_accuracy_high=test + half_width
    )


@pytest.mark.parametrize(
    ("frame", "metric", "chance", "words"),
    [
        (dense(0.9, 0.01, 0.89), "accuracy", 0.25, []),
        (dense(0.24, 0.05, 0.24), "accuracy", 0.25, ["most frequent class"]),
        (dense(0.28, 0.05, 0.28), "accuracy", 0.25, ["most frequent class"]),
        (dense(0.28, 0.02, 0.28), "accuracy", 0.25, []),
        (dense(0.24, 0.05, 0.24), "accuracy", None, []),
        (dense(0.24, 0.05, 0.24), "mine:f1", 0.25, []),
        (dense(0.99, 0.01, 0.95), "accuracy", 0.25, ["seen the validation examples"]),
        (dense(0.99, 0.01, 0.97), "accuracy", 0.25, []),
        (dense(0.99, 0.05, 0.95), "accuracy", 0.25, []),  # so few examples may differ by so much
        (dense(0.99, 0.01, math.nan), "accuracy", 0.25, []),
        (STUDY[1:], "accuracy", 0.25, []),
    ],
)
def test_doubts(frame, metric, chance, words):
    found = doubts(frame, metric, chance=chance)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_chance_is_the_share_of_the_most_frequent_class(task):
    labels = task.validation.batch(range(len(task.validation)))[1]
    assert chance_accuracy(task) == max(float((labels == k).double().mean()) for k in range(4))


def test_chance_is_unknown_for_another_metric():
    other = toy_task(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 4)))
    other.metric_name = "mine:f1"
    assert chance_accuracy(other) is None
