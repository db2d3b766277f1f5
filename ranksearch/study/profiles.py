"""A profile made on a worker, with what the database knows of layers by themselves; what is new is stored there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ranksearch.database import Database
from ranksearch.profiling import PROBE, profile_options
from ranksearch.records import FinetuneConfig, LayerRecord, MeasureConfig, Profile, Timings
from ranksearch.workbench import Workbench
from ranksearch.workers.executor import Executor

__all__ = ["made_profile", "profiled"]


def made_profile(
    layers: Sequence[LayerRecord],
    identity: Mapping[str, str],
    measure: MeasureConfig,
    finetune: FinetuneConfig,
    *,
    database: Database,
    executor: Executor,
    seconds: float,
) -> Profile:
    """Of every option of these layers. identity: of the worker's latency measurements. seconds: what measuring
    latencies and what measuring losses may take, each. Raises as `executor.call` does."""
    known = database.timings({**identity, "probe": str(PROBE)})
    config = replace(finetune, threads=finetune.threads or executor.cores)
    found = executor.call(profiled, layers, measure, config, seconds, known)
    database.add_timings(found.timings)
    return found


def profiled(
    bench: Workbench,
    layers: Sequence[LayerRecord],
    measure: MeasureConfig,
    finetune: FinetuneConfig,
    seconds: float,
    known: Timings,
) -> Profile:
    """With the factors and the threads that trials have. Runs on a worker."""
    torch.set_num_threads(finetune.threads)
    budget = {"latencies": seconds, "losses": seconds}
    return profile_options(bench, layers, measure, seconds=budget, metrics=bench.metrics(finetune), known=known)
