"""Which trained weights stay beside the database: the front's, and as many others as have room."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ranksearch.inherit import different_layers
from ranksearch.outbox import Outbox
from ranksearch.records import Plan, TrialRecord, TrialState, key_of

__all__ = ["WeightStore"]

log = logging.getLogger(__name__)


@dataclass
class WeightStore:
    """Files are named by the hash of all that decides them, a trial's spec. What the front needs is never dropped."""

    outbox: Outbox
    limit_bytes: int
    _has_warned: bool = False

    def tidy(self, trials: Mapping[int, TrialRecord], front: Collection[int]) -> None:
        """Keep the front's weights, then those that running trials start from, then, where trials inherit, the newest:
        as long as there is room. What a running trial may have just written stays until its end is heard of."""
        running = [trial for trial in trials.values() if trial.state is TrialState.RUNNING]
        must = {key_of(trials[number].spec) for number in front}
        heirs = [t for t in trials.values() if t.state is TrialState.COMPLETE and t.spec.finetune.inherit]
        others = [trial.spec.parent for trial in running if trial.spec.parent]
        others += [key_of(trial.spec) for trial in reversed(heirs)]
        size = self.outbox.keep_weights(must, others, {key_of(trial.spec) for trial in running}, self.limit_bytes)
        if size > self.limit_bytes and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the weights of the front alone take %.0f MiB, more than --weights-limit-mb %.0f; they are all kept",
                size / 2**20, self.limit_bytes / 2**20,
            )  # fmt: skip

    def parent_of(self, plan: Plan, trials: Mapping[int, TrialRecord], front: Collection[int]) -> str | None:
        """The spec's key of the front's trial whose plan differs from `plan` in the fewest layers; of equals the most
        accurate, then the newest. None where no trial that shares a changed layer has its weights here."""

        def rank(number: int) -> tuple[int, float, int]:
            trial = trials[number]
            assert trial.result is not None
            return -len(different_layers(trial.spec.plan, plan)), trial.result.value_of("accuracy"), number

        able = [number for number in front if self._can_be_parent(trials[number], plan)]
        return key_of(trials[max(able, key=rank)].spec) if able else None

    def _can_be_parent(self, trial: TrialRecord, plan: Plan) -> bool:
        shares = any(trial.spec.plan.get(layer) == choice for layer, choice in plan.items())
        return shares and self.outbox.has_weights(key_of(trial.spec))
