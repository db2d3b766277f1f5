"""What runs next, and what is written when it ends: the budget's bookkeeping between the study and its workers.

Everything is derived from the trials as they stand in the database, so a resumed run goes on where the last one was
killed: a lost trial awaits a retry, a seed that no trial has is still to come, and the sampler fills the rest.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ranksearch.database import Database
from ranksearch.errors import TooManyFailuresError
from ranksearch.outbox import Outbox
from ranksearch.records import (
    OBJECTIVES,
    Measurement,
    Plan,
    Proposal,
    SeedPlan,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.study.bars import bar_of
from ranksearch.study.longer import num_longer, the_next_longer
from ranksearch.study.mirror import OptunaMirror, values_of
from ranksearch.study.sampler import Sampler
from ranksearch.study.weights import WeightStore
from ranksearch.workers.executor import Job, left_behind

__all__ = ["MAX_RETRIES", "PUT_BACK", "StudySource", "may_retry", "now"]

MAX_RETRIES = 2
PUT_BACK = "putback:"  # and the trial's number: origin of a trial whose plan is that one's with some layers dense again

# A trial that was lost together with its driver. On Ray that is not the trial's fault and costs it no attempt, however
# often it happens; in the driver's own process the trial may be what killed it.
LOST_WITH_DRIVER = "the driver ended while it ran"
LOST_IN_DRIVER = "the process ended while it ran this trial"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class StudySource:
    """Gives jobs until `budget` logical trials are finished, and the `extras`, which no budget counts. A retry takes
    the place of the trial it repeats. A trial that joins the front with a probability of less than `prune_below` is
    stopped, which is an end like another. The last of the budget goes to the front's plans, trained `longer` times as
    long; 0: to proposals as before.

    Raises TooManyFailuresError when the dense model's own trial failed for good, or more than `max_failures` others.
    """

    def __init__(
        self,
        *,
        database: Database,
        mirror: OptunaMirror,
        study: StudyRecord,
        trials: list[TrialRecord],
        make_sampler: Callable[[list[TrialRecord]], Sampler],
        budget: int,
        outbox: Outbox,
        max_failures: int,
        in_driver: bool,
        on_trial: Callable[[TrialRecord], None],
        extras: Sequence[SeedPlan] = (),
        prune_below: float = 0.0,
        longer: int = 0,
        weights_limit_bytes: int = 2**31,
    ) -> None:
        self._database, self._mirror, self._study, self._outbox = database, mirror, study, outbox
        self._trials = {trial.number: trial for trial in trials}
        self._sampler = make_sampler(trials)
        self._budget, self._max_failures, self._on_trial = budget, max_failures, on_trial
        self._prune_below, self._longer_times = prune_below, longer
        self._weights = WeightStore(outbox, weights_limit_bytes)
        self._in_driver = in_driver  # trials run in this process
        self._dry = False  # the space holds no more plans
        self._recipes = {recipe.name: recipe.finetune for recipe in study.recipes}
        self._first = study.recipes[0].name
        tried = {(trial.spec.plan, trial.recipe) for trial in trials}
        self._seeds = deque(seed for seed in study.seeds if (seed.plan, seed.recipe or self._first) not in tried)
        self._extras = deque(extra for extra in extras if (extra.plan, extra.recipe or self._first) not in tried)
        self._front: dict[int, list[float]] = {}  # number -> objectives, all to be minimised
        for trial in trials:
            self._update_front(trial)

    # --- jobs out ---

    def suggest(self) -> Job | None:
        record = next(self._proposals(), None)
        if record is None:
            return None
        self._outbox.drop_result(key_of(record.spec))  # of an earlier attempt
        self._database.start_trial(self._study.name, record)
        self._mirror.start(record)
        self._trials[record.number] = record
        self._sampler.observe(record)
        self._on_trial(record)
        bar = bar_of(record, self._trials, self._front, self._study.objectives, self._prune_below)
        return Job(record.number, record.spec, self._measured(record.spec.plan), bar, self._ancestors(record.spec))

    def _ancestors(self, spec: TrialSpec) -> tuple[TrialSpec, ...]:
        specs = {key_of(trial.spec): trial.spec for trial in self._trials.values()} if spec.parent else {}
        found: list[TrialSpec] = []
        while spec.parent is not None:
            spec = specs[spec.parent]
            found.insert(0, spec)
        return tuple(found)

    def _measured(self, plan: Plan) -> Measurement | None:
        """The latency of an equal plan, measured before. The dense model's own is what milliseconds are counted in, so
        every study measures it itself."""
        return self._database.find_measurement(self._study, plan) if plan else None

    @property
    def exhausted(self) -> bool:
        is_spent = self._dry or self.num_claimed >= self._budget
        return is_spent and not self._extras and not self._awaiting() and not self._running()

    @property
    def num_claimed(self) -> int:
        """Logical trials of the search: neither superseded by a retry nor waiting for one, nor made after it."""
        gone = self._superseded() | {trial.number for trial in self._awaiting()}
        return sum(_is_searched(trial) and trial.number not in gone for trial in self._trials.values())

    def _proposals(self) -> Iterator[TrialRecord]:
        for lost in self._awaiting():
            attempt = lost.attempt + (not _is_blameless(lost))
            yield self._record(lost.origin, lost.spec, lost.recipe, attempt=attempt, retry_of=lost.number)
        if self._extras:
            yield self._seeded(self._extras.popleft())
        if self.num_claimed >= self._budget:
            return
        if self._seeds:
            yield self._seeded(self._seeds.popleft())
        if (longer := self._longer()) is not None:
            yield self._record(*longer, recipe=None)
        proposal = None if self._dry else self._sampler.propose()
        if proposal is None:
            self._dry = True
            return
        yield self._record("sampler", self._heir(self._spec(proposal)), proposal.recipe)

    def _seeded(self, seed: SeedPlan) -> TrialRecord:
        if seed.origin.startswith(PUT_BACK):
            whose = self._trials[int(seed.origin.removeprefix(PUT_BACK))]
            return self._record(seed.origin, replace(whose.spec, plan=seed.plan), whose.recipe)
        proposal = Proposal(plan=seed.plan, recipe=seed.recipe or self._first)
        return self._record(seed.origin, self._spec(proposal), proposal.recipe)

    def _longer(self) -> tuple[str, TrialSpec] | None:
        """In the last of the budget."""
        is_time = self._longer_times and self.num_claimed >= self._budget - num_longer(self._budget)
        return the_next_longer(self._trials, self._front, self._longer_times) if is_time else None

    def _spec(self, chosen: Proposal) -> TrialSpec:
        study, finetune = self._study, self._recipes[chosen.recipe]
        return TrialSpec(study=study.key, plan=chosen.plan, seed=study.seed, finetune=finetune, measure=study.measure)

    def _heir(self, spec: TrialSpec) -> TrialSpec:
        is_one = spec.finetune.inherit and spec.plan
        return replace(spec, parent=self._weights.parent_of(spec.plan, self._trials, self._front)) if is_one else spec

    def _record(
        self, origin: str, spec: TrialSpec, recipe: str | None, *, attempt: int = 0, retry_of: int | None = None
    ) -> TrialRecord:
        return TrialRecord(
            number=len(self._trials),
            origin=origin,
            spec=spec,
            recipe=recipe,
            attempt=attempt,
            retry_of=retry_of,
            started=now(),
        )

    def _superseded(self) -> set[int]:
        return {trial.retry_of for trial in self._trials.values() if trial.retry_of is not None}

    def _awaiting(self) -> list[TrialRecord]:
        superseded = self._superseded()
        return [trial for trial in self._trials.values() if may_retry(trial) and trial.number not in superseded]

    def _running(self) -> bool:
        return any(trial.state is TrialState.RUNNING for trial in self._trials.values())

    # --- results in ---

    def complete(self, job: Job, result: TrialResult) -> None:
        record = self._write(self._trials[job.number], result)
        if not may_retry(record):
            self._sampler.observe(record)
            self._keep_front_weights(record)
        self._on_trial(record)
        self._check_failures(record)

    def _write(self, record: TrialRecord, result: TrialResult) -> TrialRecord:
        finished = now()
        self._database.finish_trial(self._study.name, record.number, result, finished)
        record = replace(record, state=result.state, result=_without_samples(result), finished=finished)
        self._mirror.finish(record)
        self._trials[record.number] = record
        return record

    def adopt_orphans(self) -> None:
        """End the trials that a killed driver left running: with the result its worker left behind, or as lost.

        Only for the one driver that holds the study's lock, before its first job.
        """
        for record in [t for t in self._trials.values() if t.state is TrialState.RUNNING]:
            reason = LOST_IN_DRIVER if self._in_driver else LOST_WITH_DRIVER
            self.complete(Job(record.number, record.spec), left_behind(self._outbox, key_of(record.spec), reason))

    def _check_failures(self, record: TrialRecord) -> None:
        failed = [t for t in self._trials.values() if t.state is TrialState.FAILED and not may_retry(t)]
        failed = [t for t in failed if t.number not in self._superseded()]
        dense_failed = record.origin == "dense" and record in failed
        if dense_failed or len(failed) > self._max_failures:
            reason = record.result.reason if record.result else None
            which = "the dense model's own trial" if dense_failed else f"{len(failed)} trials"
            raise TooManyFailuresError(
                f"{which} failed; the last one: {reason}; see `ranksearch trials --study {self._study.name}`"
            )

    def _keep_front_weights(self, record: TrialRecord) -> None:
        """Weights of dominated trials are dropped: only a front's models are taken home, or passed on."""
        if self._update_front(record):
            self._weights.tidy(self._trials, self._front)

    def _update_front(self, record: TrialRecord) -> bool:
        """Returns whether `record` is complete, and so may have changed which weights are wanted."""
        values = values_of(record, self._study.objectives)
        if values is None:
            return False
        losses = [v if OBJECTIVES[o] else -v for v, o in zip(values, self._study.objectives, strict=True)]
        if not any(_dominates(other, losses) for other in self._front.values()):
            self._front = {n: other for n, other in self._front.items() if not _dominates(losses, other)}
            self._front[record.number] = losses
        return True


def _without_samples(result: TrialResult) -> TrialResult:
    """They are in the database; a driver keeps all its trials in memory."""
    return replace(result, measurement=result.measurement and replace(result.measurement, samples=None))


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def may_retry(trial: TrialRecord) -> bool:
    """Whether a failed trial is to be repeated: it was lost, at most twice before, or without being to blame."""
    is_lost = trial.state is TrialState.FAILED and trial.result is not None and trial.result.retryable
    return is_lost and (trial.attempt < MAX_RETRIES or _is_blameless(trial))


def _is_searched(trial: TrialRecord) -> bool:
    return not trial.origin.startswith((PUT_BACK, "finetune:"))


def _is_blameless(trial: TrialRecord) -> bool:
    return trial.result is not None and trial.result.reason == LOST_WITH_DRIVER
