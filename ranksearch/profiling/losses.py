"""What the network loses when one layer alone takes an option: mean KL(dense ‖ network) of the outputs.

BatchNorm normalises by the statistics of the batch in both networks, so that one pass re-estimates and scores, and the
dense option loses exactly 0. Only what comes behind the layer is computed (replay.py).

Where the time is short some options of each layer are measured: ends, middle and evenly between them in the order of
their errors. The others' losses are interpolated, log loss linear in log error between neighbours; so they are
monotone between measured points, and loss ∝ error^p is met exactly.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ranksearch import memory
from ranksearch.compress import compress
from ranksearch.factorize.metric import Metric
from ranksearch.inputs import to_device
from ranksearch.layers import activation_bytes
from ranksearch.profiling.replay import Replay
from ranksearch.records import DENSE, LayerChoice, LayerRecord
from ranksearch.workbench import Workbench

__all__ = ["OptionLoss", "interpolated", "measure_losses"]

MAX_BYTES = 300 * 2**20  # of all that a batch's layers return: an upper bound of what is remembered at a time
MIN_BATCH = 8  # examples: BatchNorm re-estimates from them
LOST = 100.0  # nats: outputs that are no longer numbers
FEWEST = 3  # options of a layer that are measured: ends and middle

Progress = Callable[[float], None]  # the part that is done, 0 to 1
Point = tuple[str, LayerChoice]


@dataclass(frozen=True, slots=True)
class OptionLoss:
    value: float
    is_measured: bool


def measure_losses(
    bench: Workbench,
    layers: Sequence[LayerRecord],
    errors: Mapping[Point, float],
    *,
    examples: int = 128,
    seconds: float = math.inf,
    metrics: Mapping[str, Metric] | None = None,
    progress: Progress = lambda _: None,
) -> dict[Point, OptionLoss]:
    """The loss of every option of every layer with options, over the calibration split's first `examples`.

    Where `seconds` do not suffice, over fewer of them, then with fewer options measured, at least three a layer.
    `metrics`, from `gather_metrics`, for the methods that take one. Empty for a task without distillation, which is
    what says how far outputs are apart. The dense model is left as it was.
    """
    if bench.task.distillation is None:
        return {}
    run = _Run(bench, [layer for layer in layers if layer.options], errors, metrics or {}, perf_counter() + seconds)
    batches = _batch_ranges(bench, examples)
    for number, indices in enumerate(batches):
        if number and not run.has_time_for(number + 1):
            break
        run.measure(indices, lambda done, number=number: progress((number + done) / len(batches)))
    return run.losses()


class _Run:
    def __init__(
        self,
        bench: Workbench,
        layers: Sequence[LayerRecord],
        errors: Mapping[Point, float],
        metrics: Mapping[str, Metric],
        deadline: float,
    ) -> None:
        self._bench, self._layers, self._errors, self._metrics = bench, layers, errors, metrics
        self._start, self._deadline = perf_counter(), deadline
        self._chosen: dict[str, list[LayerChoice]] = {}
        self._found: dict[Point, list[float]] = {}

    def has_time_for(self, num_batches: int) -> bool:
        taken = perf_counter() - self._start
        return self._start + taken * num_batches / (num_batches - 1) < self._deadline

    def measure(self, indices: range, progress: Progress) -> None:
        """One batch. The first decides which options are measured, so that all of it ends in time."""
        batch, _ = self._bench.task.calibration.batch(indices)
        inputs = to_device(batch, self._bench.device)
        replay = Replay(self._bench.dense, [layer.name for layer in self._layers], inputs)
        for number, layer in enumerate(self._layers):
            if layer.name not in self._chosen:
                self._chosen[layer.name] = self._choose(layer, self._affordable(replay, number))
            replay.reach(layer.name)
            for choice in self._chosen[layer.name]:
                loss = self._loss(replay, layer.name, choice)
                self._found.setdefault((layer.name, choice), []).append(loss)
            memory.trim()
            progress((number + 1) / len(self._layers))

    def losses(self) -> dict[Point, OptionLoss]:
        losses: dict[Point, OptionLoss] = {}
        for layer in self._layers:
            measured = {c: float(np.mean(self._found[layer.name, c])) for c in self._chosen[layer.name]}
            errors = {option.choice: self._errors[layer.name, option.choice] for option in layer.options[:-1]}
            values = interpolated(errors, measured) | {DENSE: 0.0}
            measured |= {DENSE: 0.0}
            losses |= {
                (layer.name, o.choice): OptionLoss(values[o.choice], o.choice in measured) for o in layer.options
            }
        return losses

    def _affordable(self, replay: Replay, number: int) -> int:
        """How many options of each layer from this one on can be measured in the time that is left."""
        behind = [replay.seconds_behind[layer.name] for layer in self._layers[number:]]
        left = self._deadline - perf_counter() - sum(behind)  # each layer is also checked once
        return math.floor(min(left / max(sum(behind), 1e-9), 1e6))

    def _choose(self, layer: LayerRecord, count: int) -> list[LayerChoice]:
        *options, _ = layer.options
        choices = sorted((option.choice for option in options), key=lambda choice: self._errors[layer.name, choice])
        places = np.linspace(0, len(choices) - 1, max(FEWEST, min(count, len(choices)))).round().astype(int)
        return [choices[place] for place in dict.fromkeys(places.tolist())]

    def _loss(self, replay: Replay, layer: str, choice: LayerChoice) -> float:
        metrics = {"0": self._metrics[layer]} if layer in self._metrics else None
        alone = nn.Sequential(replay.dense_layer(layer))
        small = compress(alone, {"0": choice}, cache=self._bench.factors, metrics=metrics).get_submodule("0")
        outputs, dense = _in_float64(replay.replaced(small)), _in_float64(replay.outputs)
        assert self._bench.task.distillation is not None
        loss = float(self._bench.task.distillation(outputs, dense, 1.0))
        return loss if math.isfinite(loss) else LOST


def _batch_ranges(bench: Workbench, examples: int) -> list[range]:
    """The first `examples` of the calibration split in batches of one size, small enough to be remembered."""
    total = min(examples, len(bench.task.calibration))
    most = max(MIN_BATCH, int(MAX_BYTES / activation_bytes(bench.dense, bench.example)))
    num_batches = math.ceil(total / most)
    size = total // num_batches
    return [range(start, start + size) for start in range(0, size * num_batches, size)]


def _in_float64(outputs: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, outputs)


def interpolated(
    errors: Mapping[LayerChoice, float], measured: Mapping[LayerChoice, float]
) -> dict[LayerChoice, float]:
    """Loss of every choice: as measured, or from those measured with the next smaller and the next larger error."""
    floor = 1e-12
    by_error: dict[float, list[float]] = {}
    for choice, loss in measured.items():
        by_error.setdefault(math.log(max(errors[choice], floor)), []).append(math.log(max(loss, floor)))
    places = sorted(by_error)
    values = [float(np.mean(by_error[place])) for place in places]

    def between(error: float) -> float:
        return math.exp(float(np.interp(math.log(max(error, floor)), places, values)))

    return {choice: measured.get(choice, between(error)) for choice, error in errors.items()}
