"""The last of a budget: plans of the front trained for longer, as trials of their own.

Origin `longer:TRIAL`. The same spec but for the length of its training, so from the same start, not from where that
trial ended: it is made again as any other is. Proposals have become less likely to gain anything by then, and a short
training loses most where much was lost.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ranksearch.records import FinetuneConfig, TrialRecord, TrialSpec, TrialState

__all__ = ["LONGER", "num_longer", "the_next_longer"]

LONGER = "longer:"  # and the trial's number
SMALL = 20  # trials: a budget of fewer has none to spare
# Share of the dense model's accuracy that a trial has lost: with less there is nothing to gain, with more nothing worth
# having, as long as there are others.
NEAR_DENSE, RUINED = 0.005, 0.5


def num_longer(budget: int) -> int:
    """A tenth."""
    return max(2, budget // 10) if budget >= SMALL else 0


def the_next_longer(
    trials: Mapping[int, TrialRecord], front: Iterable[int], times: int
) -> tuple[str, TrialSpec] | None:
    """Origin and spec: of the front's trials that have none yet the one that has lost most. None where none is left."""
    dense = next((t for t in trials.values() if not t.spec.plan and t.state is TrialState.COMPLETE), None)
    if dense is None:
        return None
    done = {trial.origin for trial in trials.values()}
    lost = {n: 1 - _accuracy(trials[n]) / (_accuracy(dense) or 1.0) for n in front if f"{LONGER}{n}" not in done}
    able = [n for n in lost if lost[n] > NEAR_DENSE and trials[n].recipe and _is_trained(trials[n].spec.finetune)]
    if not able:
        return None
    number = max(able, key=lambda n: (lost[n] < RUINED, lost[n], -n))
    spec = trials[number].spec
    return f"{LONGER}{number}", replace(spec, finetune=_times(_length_of(trials[number], dense), times))


def _length_of(trial: TrialRecord, dense: TrialRecord) -> FinetuneConfig:
    """As long as it was trained, or would have been had one shot lost enough."""
    config = trial.spec.finetune
    oneshot = trial.result.oneshot if trial.result else None
    allocated = config.allocated(1 - oneshot.value / (_accuracy(dense) or 1.0)) if oneshot else config
    return allocated if _is_trained(allocated) else replace(config, allocation="fixed")


def _is_trained(config: FinetuneConfig) -> bool:
    return bool(config.steps or config.epochs or config.seconds)


def _times(config: FinetuneConfig, times: int) -> FinetuneConfig:
    return replace(config, steps=times * config.steps, epochs=times * config.epochs, seconds=times * config.seconds)


def _accuracy(trial: TrialRecord) -> float:
    assert trial.result is not None
    return trial.result.value_of("accuracy")
