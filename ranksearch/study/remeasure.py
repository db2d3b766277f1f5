"""Trials measured again: each in a fresh process, for longer than a search can afford.

What is found is stored beside what the search saw (kind `fresh`). The views show the newest that was measured as the
study measures; another backend, batch size or number of threads stands in the table alone.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import nn

from ranksearch import latency
from ranksearch.database import Database
from ranksearch.errors import ConfigError, ModelError, TrialError
from ranksearch.latency.fresh import measure_fresh
from ranksearch.outbox import Outbox
from ranksearch.records import MeasureConfig, Measurement, Record, TrialRecord, TrialSpec, TrialState, key_of
from ranksearch.study.study import Study, files_folder
from ranksearch.tasks import Task
from ranksearch.trial import run_the_faster_way, start
from ranksearch.workbench import Workbench

__all__ = [
    "HALF_WIDTH",
    "MAX_SECONDS",
    "NEAR",
    "START_SECONDS",
    "Remeasured",
    "front_and_near",
    "measure_again",
    "measured_within",
    "net_of",
    "variants",
]

log = logging.getLogger(__name__)

HALF_WIDTH, MAX_SECONDS = 0.005, 15.0  # of candidates for the front
START_SECONDS = 2.0  # of a fresh process, before it measures
NEAR = 0.03  # of the front: the search's own latencies err by up to so much


@dataclass(frozen=True, kw_only=True, slots=True)
class Remeasured(Record):
    trial: int
    searched: Measurement | None  # what the search saw
    fresh: Measurement


def front_and_near(study: Study, slack: float = NEAR) -> list[int]:
    """The trials of the front and those that would be on it if their latency were smaller by that share."""
    with Database.open(study.storage, create=False) as database:
        return [int(number) for number in database.pareto_frame(study.name, latency_slack=slack).index]


def variants(
    measure: MeasureConfig,
    *,
    backend: str | None = None,
    threads: int | None = None,
    batch_sizes: Sequence[int] = (),
    max_seconds: float = MAX_SECONDS,
) -> list[MeasureConfig]:
    """`measure` with what is given over it, one for each batch size, the study's own where none is given. Raises
    ConfigError."""
    given = {"backend": backend, "threads": threads}
    changed = {key: value for key, value in given.items() if value is not None}
    try:
        return [
            replace(measure, **changed, half_width=HALF_WIDTH, max_seconds=max_seconds, batch_size=batch_size)
            for batch_size in batch_sizes or (measure.batch_size, *measure.also_batch_sizes)
        ]
    except ValueError as error:
        raise ConfigError(f"{error}; change the flags") from error


def measure_again(
    study: Study, numbers: Sequence[int], configs: Sequence[MeasureConfig], *, task: Task, device: str
) -> Iterator[Remeasured]:
    """Measures each trial as each config says, stores it, and then gives it. What cannot be measured is logged.

    Before it measures it raises NotFoundError, ModelError where a trial is not complete or the task is another one,
    ConfigError where a backend cannot work here.
    """
    records = [study.trial(number) for number in numbers]
    if unfit := [record for record in records if record.state is not TrialState.COMPLETE]:
        raise ModelError(f"trial {unfit[0].number} is {unfit[0].state}; only a complete trial can be measured again")
    study.check_task(task)
    for config in configs:
        latency.check(config, torch.device(device))
    bench = Workbench(task, torch.device(device), outbox=Outbox(files_folder(study.storage, study.name)))
    for place, record in enumerate(records, 1):
        log.info("measuring trial %d (%d of %d)", record.number, place, len(records))
        for fresh in _measured(record, configs, bench):
            with Database.open(study.storage) as database:
                database.add_measurement(study.name, record.number, fresh, "fresh")
            searched = record.result.measurement if record.result else None
            yield Remeasured(trial=record.number, searched=searched, fresh=fresh)


def _measured(record: TrialRecord, configs: Sequence[MeasureConfig], bench: Workbench) -> Iterator[Measurement]:
    net = net_of(record.spec, bench)
    for config in configs:
        try:
            yield measure_fresh(
                bench.dense, net, bench.example, config, device=bench.device, seed=record.spec.seed, lock=bench.lock
            )
        except TrialError as error:
            log.warning("trial %d, batch size %d: %s", record.number, config.batch_size, error)


def measured_within(
    bench: Workbench, wanted: Sequence[tuple[TrialRecord, MeasureConfig]], seconds: float
) -> list[tuple[int, Measurement]]:
    """Number and fresh measurement of as many trials as this time allows, the first ones. Runs on a worker.

    The first is measured in any case, where time is left to start a process; each next one where what the longest took
    is left.
    """
    found: list[tuple[int, Measurement]] = []
    start, longest = perf_counter(), START_SECONDS
    for record, config in wanted:
        begin = perf_counter()
        if begin - start + longest > seconds:
            break
        found += [(record.number, fresh) for fresh in _measured(record, [config], bench)]
        longest = max(longest, perf_counter() - begin)
    return found


def net_of(spec: TrialSpec, bench: Workbench) -> nn.Module:
    """The trial's net, with its trained weights where they were kept: latency does not depend on them, so that nothing
    is trained again."""
    weights = bench.outbox.weights(key_of(spec)) if bench.outbox else None
    if weights is not None:
        net = bench.compress(spec.plan)
        net.load_state_dict(weights)
        return net
    net = start(spec, bench)
    run_the_faster_way(net, spec, bench)
    return net
