"""The bar of a trial: what the front asks of it, and how finished trials that were trained alike came to their ends."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ranksearch.records import ONE_SHOT, Bar, TrialRecord, TrialState
from ranksearch.study.mirror import values_of
from ranksearch.study.summary import RULES

__all__ = ["bar_of"]


def bar_of(
    record: TrialRecord,
    trials: Mapping[int, TrialRecord],
    front: Iterable[int],
    objectives: Sequence[str],
    below: float,
) -> Bar | None:
    """`front`: numbers of the trials on it. None where nothing may stop the trial, or there is no dense model yet.

    Only what the search proposes may be stopped. Plans by closed-form rules are what its gain is told by: they are
    looked at, so that others can be compared with them, and end.
    """
    dense = next((t for t in trials.values() if not t.spec.plan and t.state is TrialState.COMPLETE), None)
    if not below or dense is None or not record.spec.plan or not record.origin.startswith(("sampler", "seed:")):
        return None
    bar = Bar(
        below=0.0 if record.origin.startswith(RULES) else below,
        dense_accuracy=_accuracy(dense),
        objectives=tuple(objectives),
        front=tuple(tuple(values_of(trials[number], objectives) or ()) for number in front),
        finished={},
    )
    alike = [t for t in trials.values() if t.state is TrialState.COMPLETE and _are_trained_alike(t, record)]
    return replace(bar, finished=_ends(alike, bar))


def _are_trained_alike(a: TrialRecord, b: TrialRecord) -> bool:
    starts_alike = (a.spec.parent is None) == (b.spec.parent is None)
    return bool(a.spec.plan) and a.spec.finetune == b.spec.finetune and starts_alike


def _ends(trials: Iterable[TrialRecord], bar: Bar) -> dict[str, tuple[tuple[float, float], ...]]:
    """Stage -> (share of the accuracy lost by then, in the end) of every trial that was looked at then."""
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for trial in trials:
        assert trial.result is not None
        end = bar.lost(_accuracy(trial))
        for stage, score in {ONE_SHOT: trial.result.oneshot, **trial.result.rungs}.items():
            if score is not None:
                found[stage].append((bar.lost(score.value), end))
    return {stage: tuple(pairs) for stage, pairs in found.items()}


def _accuracy(trial: TrialRecord) -> float:
    assert trial.result is not None
    return trial.result.value_of("accuracy")
