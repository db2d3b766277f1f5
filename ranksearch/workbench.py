"""What a worker keeps between trials: the task on its device, and whatever the dense model decides alone."""

import copy
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import nn

from ranksearch import latency, memory
from ranksearch.calibrate import fisher_loss, gather_metrics
from ranksearch.compress import compress
from ranksearch.evaluate import evaluate
from ranksearch.factorize.cache import FactorCache
from ranksearch.factorize.metric import Metric
from ranksearch.finetune import Batch, fixed_batches
from ranksearch.inputs import Inputs, to_device
from ranksearch.latency import DeviceLock, lock_name
from ranksearch.layers import FoundLayer, activation_bytes, find_layers, total_macs
from ranksearch.outbox import Outbox
from ranksearch.records import Cost, FinetuneConfig, MeasureConfig, Plan, Score
from ranksearch.tasks import Task
from ranksearch.threads import threads

__all__ = ["Workbench"]

# Batches kept between trials may take this much memory; larger ones are made again in every trial.
KEEP_BYTES = 512 * 2**20
# What a batch's layers return, where gradients are followed back through them: of large pictures fewer at a time.
BACKWARD_BYTES = 256 * 2**20
# What gathering metrics may take forwards, and twice that backwards: half a minute of one core. A net of more than half
# a billion MACs gives them from fewer examples, which still show thousands of positions of each layer.
METRIC_MACS = 2.5e11
LEAST_METRIC_EXAMPLES = 64


@dataclass
class Workbench:
    """Everything is made on first use and kept. One per worker process; not shared between threads."""

    task: Task
    device: torch.device
    outbox: Outbox | None = None
    _kept: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = DeviceLock(lock_name(self.device))
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True

    @cached_property
    def dense(self) -> nn.Module:
        with torch.inference_mode(mode=False):  # whoever asks first: others train copies of it
            return copy.deepcopy(self.task.model).to(self.device).eval()

    @cached_property
    def example(self) -> Inputs:
        return to_device(self.task.example_input, self.device)

    @cached_property
    def layers(self) -> tuple[FoundLayer, ...]:
        return find_layers(self.dense, self.example)

    @cached_property
    def dense_cost(self) -> Cost:
        parameters = sum(p.numel() for p in self.dense.parameters())
        return Cost(parameters=parameters, macs=total_macs(self.dense, self.example))

    @cached_property
    def dense_score(self) -> Score:
        return self.validated(self.dense)

    def validated(self, model: nn.Module) -> Score:
        """Raises NonFiniteError."""
        return evaluate(model, self.task.validation, self.task.metric, device=self.device)

    def lost(self, score: Score) -> float:
        """As a share of what the dense model scores on the validation split."""
        dense = self.dense_score.value
        return (dense - score.value) / (abs(dense) or 1.0)

    @cached_property
    def factors(self) -> FactorCache:
        """Shared with the other workers of this host and with later runs."""
        return FactorCache(user_cache_path("ranksearch") / "factors")

    @cached_property
    def forwards(self) -> dict[Hashable, bool]:
        """What `choose_forwards` found on this device."""
        return {}

    def compress(self, plan: Plan, metrics: Mapping[str, Metric] | None = None) -> nn.Module:
        return compress(self.dense, plan, cache=self.factors, layers=self.layers, metrics=metrics)

    def metrics(self, config: FinetuneConfig) -> Mapping[str, Metric] | None:
        """What the config's factors are weighted by; None where they are plain."""
        if config.factors == "plain":
            return None
        return self._keep(("metrics", config.calibration_examples), lambda: self._metrics(config))

    def _metrics(self, config: FinetuneConfig) -> Mapping[str, Metric]:
        """Of the calibration split, on one thread: the name of a decomposition in the cache holds their last bits."""
        affordable = max(LEAST_METRIC_EXAMPLES, int(METRIC_MACS / max(1, self.dense_cost.macs)))
        total = min(config.calibration_examples, len(self.task.calibration), affordable)
        size = min(128, total, max(1, BACKWARD_BYTES // activation_bytes(self.dense, self.example)))
        batches = (self.task.calibration.batch(range(i, i + size)) for i in range(0, total - size + 1, size))
        with threads(1):
            found = gather_metrics(
                self.dense,
                self.layers,
                (to_device(batch, self.device) for batch in batches),
                fisher_loss(self.task),
            )
        memory.trim()
        return found

    def calibration(self, config: FinetuneConfig) -> list[Inputs]:
        """Batches of one size, at least one, of the calibration split's first examples."""
        return self._keep(("calibration", config), lambda: list(self._calibration(config)))

    def _calibration(self, config: FinetuneConfig) -> Iterator[Inputs]:
        total = min(config.calibration_examples, len(self.task.calibration))
        size = min(128, total)
        for start in range(0, total - size + 1, size):
            inputs, _ = self.task.calibration.batch(range(start, start + size))
            yield to_device(inputs, self.device, layout=config.layout)

    def batches(self, config: FinetuneConfig, seed: int) -> list[Batch] | Iterator[Batch]:
        """The fixed training batches, as many as the longest training takes; kept while they are small."""
        config = config.longest

        def make() -> Iterator[Batch]:
            teacher = self.dense if self.task.distillation and config.distillation > 0 else None
            return fixed_batches(self.task, teacher, config, seed, self.device)

        steps = config.num_steps(len(self.task.train))
        step_bytes = config.batch_size * memory.tensor_bytes(self.task.example_input)
        if steps is None or steps * step_bytes > KEEP_BYTES:
            return make()
        return self._keep(("batches", config, seed), lambda: list(make()))

    def measuring(self, config: MeasureConfig) -> tuple[nn.Module, Inputs]:
        """The dense model and a batch as the latency backend wants them."""
        return self._keep(
            ("measuring", config),
            lambda: (
                latency.prepare(self.dense, config, self.device),
                latency.prepare_inputs(self.example, config, self.device),
            ),
        )

    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
