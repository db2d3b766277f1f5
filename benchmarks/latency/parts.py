"""The parts of the report, in its order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.latency.additivity import additivity
from benchmarks.latency.bench import Bench
from benchmarks.latency.contention import contention
from benchmarks.latency.cost import TRAINING_IMAGES, cost
from benchmarks.latency.runtime import PASSES, runtime
from benchmarks.latency.selfchecks import selfchecks
from ranksearch.latency.selftest import Check


@dataclass(frozen=True)
class Part:
    title: str
    text: str  # what a reader has to know
    run: Callable[[Bench], list[Check]]


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "self-test": Part(
            "What `bench --self-test` checks",
            "The example's net beside copies of itself, beside itself run twice, and nets made of it from the cheapest "
            "plan to the dense model. The other clock is `torch.utils.benchmark`, the median of several rounds.",
            selfchecks,
        ),
        "onnxruntime": Part(
            "Beside ONNX Runtime's own timing",
            "The same plans with backend `onnxruntime`, and the `model_run` events of ONNX Runtime's profiler, one "
            f"thread: of each net the median over rounds of the median of {PASSES} runs.",
            runtime,
        ),
        "additivity": Part(
            "Latencies of layers add up",
            "Every option of every layer alone in the net, and random plans of all layers, measured in one random "
            "order. A plan's ratio is predicted as 1 + Σ (ratio of its layer alone − 1); beside it, as its share of "
            "the dense net's MACs.",
            additivity,
        ),
        "cost": Part(
            "What measuring costs",
            "Random plans of the example with the default settings, median. Then trials on torchvision's ResNet-18 "
            f"at 224², batch 8: random weights, {TRAINING_IMAGES} generated pictures to train on with the default "
            "recipe. The more images a trial is validated on, the smaller the share.",
            cost,
        ),
        "training": Part(
            "With a training loop beside",
            "The first three once more, with fewer runs, while another process trains on all cores. ONNX Runtime's own "
            "times are taken after it has ended.",
            contention,
        ),
    }
)
