"""What a model is on a device, found before the first trial: its layers, its cost, and how to train it fastest.

Runs on a worker of the study's device class; takes nothing from the database and returns plain records.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from ranksearch import latency
from ranksearch.finetune import finetune, fixed_batches, memory_format
from ranksearch.layers import FoundLayer
from ranksearch.records import Cost, Environment, FinetuneConfig, MeasureConfig, Recipe
from ranksearch.workbench import Workbench

__all__ = ["Description", "describe", "filled", "step_seconds", "timed"]

# A faster way to train is taken only when it is this much faster: the probe is short and the machine may be noisy.
WORTHWHILE = 0.9
STEP_SECONDS = 0.5  # a probed step has as many examples as fit in about this long
PROBE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    layers: tuple[FoundLayer, ...]
    dense: Cost
    environment: Environment
    identity: dict[str, str]  # of the latency measurements that will be made
    recipes: tuple[Recipe, ...]  # nothing left to "auto"
    measure: MeasureConfig


def describe(bench: Workbench, recipes: Sequence[Recipe], measure: MeasureConfig, cores: int) -> Description:
    """Look at the dense model on the worker's device. `cores` is how many a trial may use for training."""
    resolved = latency.resolve(measure, bench.device)
    latency.check(resolved, bench.device)
    with bench.lock.shared():
        return Description(
            layers=bench.layers,
            dense=bench.dense_cost,
            environment=latency.environment(bench.device),
            identity=latency.identity(resolved, bench.device),
            recipes=_resolved(bench, recipes, cores),
            measure=resolved,
        )


def _resolved(bench: Workbench, recipes: Sequence[Recipe], cores: int) -> tuple[Recipe, ...]:
    """What the first one leaves open is probed; where others leave the same open, they take its answer."""
    found = _resolve(bench, recipes[0].finetune, cores)
    return tuple(dataclasses.replace(recipe, finetune=filled(recipe.finetune, found)) for recipe in recipes)


def filled(config: FinetuneConfig, found: FinetuneConfig) -> FinetuneConfig:
    """`config`, with what it leaves open ("auto", 0 threads) as `found` has it."""
    return dataclasses.replace(
        config,
        threads=config.threads or found.threads,
        layout=found.layout if config.layout == "auto" else config.layout,
        precision=found.precision if config.precision == "auto" else config.precision,
    )


def _resolve(bench: Workbench, config: FinetuneConfig, cores: int) -> FinetuneConfig:
    """Threads, layout and precision that train this model fastest here, one after the other."""
    fixed = dataclasses.replace(
        config,
        threads=config.threads or 1,
        layout="contiguous" if config.layout == "auto" else config.layout,
        precision="float32" if config.precision == "auto" else config.precision,
    )
    rivals: list[Callable[[FinetuneConfig], FinetuneConfig]] = []
    if config.threads == 0 and cores > 1:
        rivals.append(lambda best: dataclasses.replace(best, threads=cores))
    if config.layout == "auto":
        rivals.append(lambda best: dataclasses.replace(best, layout="channels_last"))
    if config.precision == "auto":
        rivals.append(lambda best: dataclasses.replace(best, precision="bfloat16"))
    if not rivals:
        return fixed
    deadline = perf_counter() + PROBE_SECONDS
    seconds_of_8 = step_seconds(bench, fixed, 8)
    size = max(8, min(config.batch_size, int(8 * STEP_SECONDS / seconds_of_8)))
    best, best_seconds = fixed, step_seconds(bench, fixed, size)
    for rival in rivals:
        if perf_counter() > deadline:
            break
        candidate = rival(best)
        seconds = step_seconds(bench, candidate, size)
        if seconds < WORTHWHILE * best_seconds:
            best, best_seconds = candidate, seconds
    return best


def step_seconds(bench: Workbench, config: FinetuneConfig, batch_size: int, num_steps: int = 4) -> float:
    """Least seconds of a training step of `batch_size` examples, after one to warm up: others' load only adds."""
    probe = dataclasses.replace(config, steps=num_steps, epochs=0, seconds=0, batch_size=batch_size, learning_rate=1e-6)
    torch.set_num_threads(config.threads)
    model = copy.deepcopy(bench.dense).to(memory_format=memory_format(config.layout))
    batches = list(fixed_batches(bench.task, bench.dense, probe, 0, bench.device))
    for batch in batches:
        _ = batch.teacher  # trials share it
    seconds = [
        timed(lambda batch=batch: finetune(model, [batch], bench.task, probe, bench.device), bench.device)
        for batch in batches
    ]
    return min(seconds[1:])


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    start = perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
