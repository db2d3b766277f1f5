"""How long a run will take, told from a few timed steps of the dense model. Rough, and rather too much."""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from ranksearch.evaluate import EVALUATION_BATCH
from ranksearch.finetune import finetune, fixed_batches, memory_format
from ranksearch.inputs import forward, to_device
from ranksearch.records import FinetuneConfig, MeasureConfig
from ranksearch.tasks import Task
from ranksearch.workbench import Workbench

__all__ = ["Estimate", "estimate"]

OVERHEAD_SECONDS = 0.15  # a trial's decomposing, building and storing


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Seconds a trial takes at the most, in parts."""

    train: float
    evaluate: float
    measure: float

    @property
    def trial(self) -> float:
        return self.train + self.evaluate + self.measure + OVERHEAD_SECONDS


def estimate(task: Task, finetune: FinetuneConfig, measure: MeasureConfig, device: str, cores: int) -> Estimate:
    """Timed on the dense model, on `device`, in this process, with as many threads as a trial may use."""
    bench = Workbench(task, torch.device(device))
    config = dataclasses.replace(
        finetune,
        layout="contiguous" if finetune.layout == "auto" else finetune.layout,
        precision="float32" if finetune.precision == "auto" else finetune.precision,
    )
    before = torch.get_num_threads()
    try:
        return min(
            (
                _timed_with(threads, bench, config, measure)
                for threads in {config.threads or 1, config.threads or cores}
            ),
            key=lambda found: found.trial,
        )
    finally:
        torch.set_num_threads(before)


def _timed_with(threads: int, bench: Workbench, config: FinetuneConfig, measure: MeasureConfig) -> Estimate:
    torch.set_num_threads(threads)
    return Estimate(
        train=config.steps * _step_seconds(bench, config),
        evaluate=_num_batches(bench.task, config, EVALUATION_BATCH[bench.device.type]) * _forward_seconds(bench),
        measure=measure.max_seconds,
    )


def _num_batches(task: Task, config: FinetuneConfig, batch_size: int) -> int:
    """Full batches without gradients: validation and re-estimation, before fine-tuning and after it."""
    examples = len(task.validation) + min(config.calibration_examples, len(task.calibration))
    return (2 if config.steps else 1) * math.ceil(examples / batch_size)


def _step_seconds(bench: Workbench, config: FinetuneConfig) -> float:
    probe = dataclasses.replace(config, steps=2, learning_rate=1e-6)
    model = copy.deepcopy(bench.dense).to(memory_format=memory_format(config.layout))
    batches = list(fixed_batches(bench.task, None, probe, 0, bench.device))
    # Without its teacher's outputs, which a study computes once: the task's own loss is what remains.
    probe = dataclasses.replace(probe, distillation=0.0)
    return min(
        _timed(lambda b=batch: finetune(model, [b], bench.task, probe, bench.device), bench) for batch in batches
    )


def _forward_seconds(bench: Workbench) -> float:
    size = min(EVALUATION_BATCH[bench.device.type], len(bench.task.validation))
    inputs = to_device(bench.task.validation.batch(range(size))[0], bench.device)
    with torch.inference_mode():
        return min(_timed(lambda: forward(bench.dense, inputs), bench) for _ in range(2))


def _timed(action: Callable[[], object], bench: Workbench) -> float:
    start = perf_counter()
    action()
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    return perf_counter() - start
