"""What follows the last trial of a run: the front measured again, layers that only cost time put back, test accuracy.

Latencies that a search saw are the best of many, and so a little too good. Fresh processes measure the front again, and
all that is within 3 % of it; tables show that from then on, while Optuna keeps what the search saw. All of this takes
at most a twentieth of the time that the trials took: `ranksearch bench --front` measures what is left over.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ranksearch import latency
from ranksearch.database import Database
from ranksearch.errors import TrialError
from ranksearch.evaluate import evaluate
from ranksearch.latency.fresh import measure_fresh
from ranksearch.latency.layers import layer_seconds
from ranksearch.latency.quiet import quiet
from ranksearch.records import (
    MeasureConfig,
    Plan,
    Record,
    Score,
    SeedPlan,
    StudyRecord,
    TrialRecord,
    TrialSpec,
    TrialState,
)
from ranksearch.study.remeasure import HALF_WIDTH, NEAR, START_SECONDS, measured_within, net_of, variants
from ranksearch.study.source import PUT_BACK
from ranksearch.trial import restored
from ranksearch.workbench import Workbench
from ranksearch.workers.executor import Executor

__all__ = ["Rival", "conclude", "rivals", "score_on_test"]

log = logging.getLogger(__name__)

SHARE = 0.05  # of the trials' time, for measuring again
MAX_SECONDS = 2.5  # for one trial
SIZES = {"parameters", "bytes", "macs"}  # objectives that a layer may serve without being faster
NOT_FASTER = 0.97  # of the dense layer's time; a look at single layers errs by some per cent


def conclude(
    database: Database,
    study: StudyRecord,
    executor: Executor,
    on_stage: Callable[[str], None],
    run_trials: Callable[[Sequence[SeedPlan]], None],
) -> None:
    """Raises as `executor.call` and `run_trials` do. What was done by an earlier run is not done again."""
    measured = _measure_again(database, study, executor, on_stage)
    if found := _rivals(database, study, executor, on_stage, measured):
        run_trials([SeedPlan(origin=f"{PUT_BACK}{r.trial}", plan=r.plan, recipe=r.recipe) for r in found])
        _measure_again(database, study, executor, on_stage)
    _score_front(database, study, executor, on_stage)


# --- the front measured again ----------------------------------------------------------------------------------------


def _measure_again(
    database: Database, study: StudyRecord, executor: Executor, on_stage: Callable[[str], None]
) -> set[int]:
    """The trials that it measured."""
    wanted = _unmeasured(database, study)
    if not wanted:
        return set()
    seconds = SHARE * float(database.trials_frame(study.name).seconds_total.sum())
    found = []
    if seconds > START_SECONDS:
        on_stage(f"measuring {len({record.number for record, _ in wanted})} trials of the front and near it again")
        found = executor.call(measured_within, wanted, seconds)
    for number, fresh in found:
        database.add_measurement(study.name, number, fresh, "fresh")
    if len(found) < len(wanted):
        log.info(
            "%d of %d were measured again in a twentieth of the trials' time; `ranksearch bench --front --study %s` "
            "measures all", len(found), len(wanted), study.name,
        )  # fmt: skip
    return {number for number, _ in found}


def _unmeasured(database: Database, study: StudyRecord) -> list[tuple[TrialRecord, MeasureConfig]]:
    """The front first, then what is near it, then the front in the other batch sizes: as far as they lack it."""
    front, near = (_factorized(database, study, slack) for slack in (0.0, NEAR))
    own, *others = variants(study.measure, max_seconds=MAX_SECONDS)
    wanted = [(number, own) for number in dict.fromkeys([*front, *near])]
    wanted += [(number, config) for config in others for number in front]
    known = {
        (number, m.batch_size)
        for number, m in database.fresh_measurements(study.name)
        if {**m.identity, "batch_size": ""} == {**study.identity, "batch_size": ""}
    }
    return [(database.trial(study.name, n), config) for n, config in wanted if (n, config.batch_size) not in known]


def _factorized(database: Database, study: StudyRecord, slack: float) -> list[int]:
    """The front's trials, fastest first, but for the dense model's: what it is beside itself needs no measuring."""
    frame = database.pareto_frame(study.name, latency_slack=slack).sort_values("latency_ratio")
    return [int(number) for number in frame.index[frame.origin != "dense"]]


# --- layers put back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival(Record):
    """A trial's plan with the layers dense again that are no faster in its network, which was measured to be faster by
    that: `ratio` of its latency to the trial's."""

    trial: int
    plan: Plan
    recipe: str | None
    layers: tuple[str, ...]
    ratio: float


def _rivals(
    database: Database, study: StudyRecord, executor: Executor, on_stage: Callable[[str], None], numbers: set[int]
) -> list[Rival]:
    """Those of these trials that are on the front, one for each plan that no trial has yet; none where smaller layers
    are worth having for themselves."""
    if SIZES.intersection(study.objectives):
        return []
    asked = [database.trial(study.name, number) for number in _factorized(database, study, 0.0) if number in numbers]
    asked = [record for record in asked if record.spec.parent is None]
    if not asked:
        return []
    on_stage("looking for layers that cost more time than they save")
    tried = {trial.spec.plan for trial in database.trials(study.name)}
    found = {rival.plan: rival for rival in executor.call(rivals, asked) if rival.plan not in tried}
    for rival in found.values():
        on_stage(f"trial {rival.trial} is {1 / rival.ratio:.2f} times as fast with {', '.join(rival.layers)} dense")
    return list(found.values())


def rivals(bench: Workbench, records: Sequence[TrialRecord]) -> list[Rival]:
    """Runs on a worker. A plan that cannot be measured has none."""
    found = []
    for record in records:
        try:
            found.append(_rival(bench, record))
        except TrialError as error:
            log.warning("trial %d could not be measured beside its rival: %s", record.number, error)
    return [rival for rival in found if rival is not None]


def _rival(bench: Workbench, record: TrialRecord) -> Rival | None:
    spec = record.spec
    slow = _not_faster(bench, spec)
    plan = Plan({name: choice for name, choice in spec.plan.items() if name not in slow})
    if not slow or not plan:
        return None
    config = replace(spec.measure, half_width=HALF_WIDTH, max_seconds=MAX_SECONDS)
    found = measure_fresh(
        net_of(spec, bench),
        net_of(replace(spec, plan=plan), bench),
        bench.example,
        config,
        device=bench.device,
        seed=spec.seed,
        lock=bench.lock,
    )
    if found.ratio_high >= 1:
        return None
    return Rival(trial=record.number, plan=plan, recipe=record.recipe, layers=slow, ratio=found.ratio)


def _not_faster(bench: Workbench, spec: TrialSpec) -> tuple[str, ...]:
    """The plan's layers that, run by eager torch, take about as long as the dense ones do, in order of their names."""
    config = latency.resolve(spec.measure, bench.device)
    dense, inputs = bench.measuring(config)
    small = latency.prepare(net_of(spec, bench), config, bench.device)
    with bench.lock.exclusive(), quiet(config, bench.device):
        before, after = layer_seconds([dense, small], spec.plan, inputs)
        # the projections of an attention that the dense model has packed are not to be found in it
    return tuple(n for n in spec.plan if n in before and n in after and after[n] > NOT_FASTER * before[n])


# --- accuracy on the test split --------------------------------------------------------------------------------------


def _score_front(database: Database, study: StudyRecord, executor: Executor, on_stage: Callable[[str], None]) -> None:
    """For the front and the dense model, those that have none yet."""
    frame = database.trials_frame(study.name)
    wanted = set(database.pareto_frame(study.name).index) | set(
        frame.index[(frame.origin == "dense") & (frame.state == TrialState.COMPLETE)]
    )
    missing = [int(n) for n in sorted(wanted) if not frame.test_accuracy.notna()[n]]
    if not missing:
        return
    on_stage(f"scoring {len(missing)} trials on the test split")
    lineages = [database.lineage(study.name, n) for n in missing]
    for number, score in zip(missing, executor.call(score_on_test, lineages), strict=True):
        if score is not None:
            database.add_score(study.name, number, "test", score)


def score_on_test(bench: Workbench, lineages: list[list[TrialSpec]]) -> list[Score | None]:
    """Each trial's model on the test split: from its kept weights, or trained again where they are elsewhere."""
    if bench.task.test is None:
        return [None] * len(lineages)
    with bench.lock.shared():
        return [
            evaluate(restored(bench, lineage), bench.task.test, bench.task.metric, device=bench.device)
            for lineage in lineages
        ]
