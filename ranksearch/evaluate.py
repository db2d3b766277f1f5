"""A model's score on a split, with its 95 % interval.

Scores that are all 0 or 1 get Wilson's interval (E. B. Wilson, "Probable inference, the law of succession, and
statistical inference", JASA 1927); other per-example scores a percentile bootstrap of their mean, and a metric that is
one number over all examples a percentile bootstrap over examples (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, section 13.3). Resampling is seeded: the same scores give the same interval.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from ranksearch.errors import NonFiniteError
from ranksearch.inputs import forward, in_float32, num_examples, take, tensors, to_device
from ranksearch.records import Score
from ranksearch.tasks.metrics import Metric
from ranksearch.tasks.split import Split

__all__ = ["EVALUATION_BATCH", "evaluate", "wilson"]

# Device type -> batch size. On CPUs activations of a small batch stay in the cache: 64 was 1.5 times as fast as 256.
EVALUATION_BATCH = {"cpu": 64, "cuda": 256}

Z_95 = 1.959963984540054  # the standard normal's 97.5 % point
RESAMPLES_OF_MEAN = 1000
RESAMPLES_OF_METRIC = 200  # each calls the metric on all examples


def evaluate(
    model: nn.Module,
    split: Split,
    metric: Metric,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    precision: str = "float32",
    layout: str = "contiguous",
) -> Score:
    """Score `model`, which must be on `device`, over all examples of `split`.

    batch_size: by default what suits the device, EVALUATION_BATCH.
    precision: "float32", or "bfloat16" for autocast; scores are computed on the CPU in float32.
    layout: "contiguous" or "channels_last", applied to 4-D inputs.
    Raises NonFiniteError when an output or a score is NaN or infinite. The model's training modes are restored.
    """
    device = torch.device(device)
    batches = _Batches(model, split, device, batch_size or EVALUATION_BATCH[device.type], precision, layout)
    with _eval_mode(model), torch.inference_mode():
        return _score(batches, metric)


class _Batches:
    """Iterates over (outputs, targets) on the CPU, a batch at a time."""

    def __init__(
        self, model: nn.Module, split: Split, device: torch.device, batch_size: int, precision: str, layout: str
    ) -> None:
        self.model, self.split, self.device = model, split, device
        self.batch_size, self.precision, self.layout = batch_size, precision, layout

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for indices in torch.arange(len(self.split)).split(self.batch_size):
            inputs, targets = self.split.batch(indices)
            outputs = self._run(to_device(inputs, self.device, layout=self.layout))
            _require_finite_output(outputs)
            yield outputs, targets

    def _run(self, inputs: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs = forward(self.model, inputs)
        return in_float32(to_device(outputs, "cpu"))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _score(batches: _Batches, metric: Metric) -> Score:
    """Whether the metric is per example shows on the first batch; one of all examples needs all outputs kept."""
    kept: list[tuple[Any, Any]] = []
    scores: list[torch.Tensor] = []
    for outputs, targets in batches:
        if not kept:
            found = torch.as_tensor(metric(outputs, targets))
            if found.dim():
                scores.append(found.double())
                continue
        kept.append((outputs, targets))
    return _of_examples(torch.cat(scores)) if scores else _of_all(kept, metric, len(batches.split))


def _require_finite_output(outputs: Any) -> None:
    for leaf in tensors(outputs):
        if leaf.is_floating_point() and not leaf.isfinite().all():
            raise NonFiniteError("an output of the model is NaN or infinite")


def _of_examples(scores: torch.Tensor) -> Score:
    _require_finite_score(scores)
    value, n = scores.mean().item(), len(scores)
    if ((scores == 0) | (scores == 1)).all():
        low, high = wilson(int(scores.sum().item()), n)
    else:
        low, high = _bootstrap_of_mean(scores.numpy())
    return Score(value=value, low=min(low, value), high=max(high, value), num_examples=n)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion: of p in |p̂ − p| ≤ z √(p (1 − p) / n), the smallest and the largest."""
    p, z2_n = successes / n, Z_95**2 / n
    centre = (p + z2_n / 2) / (1 + z2_n)
    half_width = Z_95 / (1 + z2_n) * math.sqrt(p * (1 - p) / n + z2_n / (4 * n))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def _bootstrap_of_mean(scores: np.ndarray) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = [scores[generator.integers(len(scores), size=len(scores))].mean() for _ in range(RESAMPLES_OF_MEAN)]
    return _interval(means)


def _of_all(batches: list[tuple[Any, Any]], metric: Metric, n: int) -> Score:
    """One number over all examples. Where batches cannot be joined the metric gets lists, one entry a batch, and
    batches are what is resampled."""
    outputs, targets = (_join(column) for column in zip(*batches, strict=True))
    if outputs is None or targets is None:
        outputs, targets = (list(column) for column in zip(*batches, strict=True))
    value = float(metric(outputs, targets))
    _require_finite_score(torch.tensor(value))
    low, high = _interval(_resampled(outputs, targets, metric) or [value])
    return Score(value=value, low=min(low, value), high=max(high, value), num_examples=n)


def _join(batches: tuple[Any, ...]) -> Any:
    """Batches joined along dimension 0, lists (one entry an example) end to end; None where they do not fit."""
    if all(isinstance(batch, list) for batch in batches):
        return [entry for batch in batches for entry in batch]
    try:
        return tree_map(lambda *leaves: torch.cat(leaves), *batches)
    except (RuntimeError, TypeError, ValueError):
        return None


def _resampled(outputs: Any, targets: Any, metric: Metric) -> list[float]:
    """The metric on each resample; those on which it is undefined (one class only, say) are left out."""
    size = len(outputs) if isinstance(outputs, list) else num_examples(outputs)
    generator = np.random.default_rng(0)
    draws = (torch.from_numpy(generator.integers(size, size=size)) for _ in range(RESAMPLES_OF_METRIC))
    values = [float(metric(_resample(outputs, draw), _resample(targets, draw))) for draw in draws]
    return [value for value in values if math.isfinite(value)]


def _resample(tree: Any, indices: torch.Tensor) -> Any:
    return [tree[i] for i in indices.tolist()] if isinstance(tree, list) else take(tree, indices)


def _interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _require_finite_score(scores: torch.Tensor) -> None:
    if not scores.isfinite().all():
        raise NonFiniteError("the metric is NaN or infinite")
