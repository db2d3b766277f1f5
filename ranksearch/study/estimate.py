"""How long a run will take, told from a few timed steps of the dense model. Rough, and rather too much."""

import dataclasses
import math
from dataclasses import dataclass

import torch

from ranksearch.evaluate import EVALUATION_BATCH
from ranksearch.inputs import forward, to_device
from ranksearch.profile import step_seconds, timed
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
                _timed_with(bench, dataclasses.replace(config, threads=threads), measure)
                for threads in {config.threads or 1, config.threads or cores}
            ),
            key=lambda found: found.trial,
        )
    finally:
        torch.set_num_threads(before)


def _timed_with(bench: Workbench, config: FinetuneConfig, measure: MeasureConfig) -> Estimate:
    torch.set_num_threads(config.threads)
    steps = config.num_steps(len(bench.task.train))
    train = math.inf if steps is None else steps * step_seconds(bench, config, config.batch_size, num_steps=2)
    return Estimate(
        train=min(train, config.seconds or math.inf),
        evaluate=_num_batches(bench.task, config, EVALUATION_BATCH[bench.device.type]) * _forward_seconds(bench),
        measure=measure.max_seconds,
    )


def _num_batches(task: Task, config: FinetuneConfig, batch_size: int) -> int:
    """Full batches without gradients: validation and re-estimation, before fine-tuning and after it."""
    examples = len(task.validation) + min(config.calibration_examples, len(task.calibration))
    return (2 if config.num_steps(len(task.train)) != 0 else 1) * math.ceil(examples / batch_size)


def _forward_seconds(bench: Workbench) -> float:
    size = min(EVALUATION_BATCH[bench.device.type], len(bench.task.validation))
    inputs = to_device(bench.task.validation.batch(range(size))[0], bench.device)
    with torch.inference_mode():
        return min(timed(lambda: forward(bench.dense, inputs), bench.device) for _ in range(2))
