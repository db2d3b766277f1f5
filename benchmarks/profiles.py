"""What a profile costs: `python -m benchmarks.profiles [--net resnet18] [--seconds 60]`.

An R9-like net at 32² and ResNet-18 at 224², random weights and pictures (they change no time), Fisher-weighted factors,
an empty cache of decompositions, each net in a process of its own: seconds a phase, options, and how much more memory
the process held at its peak than with the model built and run once. Then the same with what is known of its layers, as
another net with such layers meets it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks.cifar import resnet9
from benchmarks.machine import conditions, write
from ranksearch import memory
from ranksearch.profiling import profile_options, verdict
from ranksearch.records import FinetuneConfig, MeasureConfig, Profile
from ranksearch.space import layer_records, load_space
from ranksearch.tasks import Task
from ranksearch.tasks.classification import cross_entropy, distillation
from ranksearch.tasks.metrics import accuracy
from ranksearch.workbench import Workbench

NETS = {"resnet9": (resnet9, 32, 10), "resnet18": (torchvision.models.resnet18, 224, 1000)}
CPU = torch.device("cpu")


class Noise:
    """512 pictures that are made when they are asked for, so that data takes no memory."""

    fixed = True

    def __init__(self, size: int, num_classes: int) -> None:
        self._size, self._num_classes = size, num_classes

    def __len__(self) -> int:
        return 512

    def batch(self, indices: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = list(indices)
        generator = torch.Generator().manual_seed(numbers[0])
        pictures = torch.randn(len(numbers), 3, self._size, self._size, generator=generator)
        return pictures, torch.randint(self._num_classes, (len(numbers),), generator=generator)


def noise_task(name: str, make: Callable[[], nn.Module], size: int, num_classes: int) -> Task:
    """A net with random weights on random pictures of size × size."""
    torch.manual_seed(0)
    pictures = Noise(size, num_classes)
    return Task(
        model=make(),
        train=pictures,
        calibration=pictures,
        validation=pictures,
        loss=cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        example_input=pictures.batch([0])[0],
        distillation=distillation,
        model_name=name,
        data_name="noise",
    )


def measured(net: str, seconds: float) -> dict[str, Any]:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    bench = Workbench(noise_task(net, *NETS[net]), CPU)
    layers = layer_records(load_space("default"), bench.layers)
    memory.reset_peak(CPU)
    before, start = memory.peak(CPU), perf_counter()
    metrics = bench.metrics(FinetuneConfig(factors="fisher"))
    taken = {"metrics": perf_counter() - start}
    budget = {"latencies": seconds, "losses": seconds}
    peak_of = {"metrics": memory.peak(CPU)}

    def heard(phase: str, done: float) -> None:
        if done == 1.0:
            peak_of[phase] = memory.peak(CPU)
            print(f"{net}: {phase} done after {perf_counter() - start:.0f} s", file=sys.stderr)

    found = profile_options(bench, layers, MeasureConfig(), seconds=budget, metrics=metrics, progress=heard)
    total = perf_counter() - start
    again = profile_options(
        bench, layers, MeasureConfig(), seconds={**budget, "losses": 0.0}, metrics=metrics, known=found.timings
    )
    return {
        "threads": threads,
        "seconds": taken | dict(found.seconds) | {"total": total},
        "seconds_of_latencies_when_known": again.seconds["latencies"],
        "mb_peak_rise": {phase: (peak - before) / 1e6 for phase, peak in peak_of.items()},
        "dense_ms": found.dense_ms,
        "step": found.staircase and found.staircase.step,
        "verdict": verdict(found).splitlines(),
        **counts(found, again),
    }


def counts(found: Profile, again: Profile) -> dict[str, Any]:
    small = [option for option in found.options if not option.choice.is_dense]
    taken = [option for option in again.options if not option.is_latency_measured]
    first = {(option.layer, option.choice): option.latency for option in found.options}
    return {
        "layers": len(found.shapes),
        "distinct_layers": len(set(found.shapes.values())),
        "options": len(small),
        "losses_measured": sum(option.is_loss_measured for option in small),
        "largest_latency_deviation": max(option.latency_deviation for option in small),
        "taken_over_when_known": len(taken),
        "largest_change_when_known": max((abs(o.latency - first[o.layer, o.choice]) for o in taken), default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=NETS, action="append", help="Only this one; may be given twice.")
    parser.add_argument("--seconds", type=float, default=60.0, help="For latencies and for losses, each.")
    parser.add_argument("--child", choices=NETS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(given.child, given.seconds)))
        return
    result: dict[str, Any] = conditions() | {"seed": 0, "n": 1, "seconds_allowed": given.seconds}
    for net in given.net or NETS:
        command = [sys.executable, "-m", "benchmarks.profiles", "--child", net, "--seconds", str(given.seconds)]
        with tempfile.TemporaryDirectory() as cache:
            where = os.environ | {"XDG_CACHE_HOME": cache}
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=where)
        result[net] = json.loads(child.stdout)
    write("profile", result)


if __name__ == "__main__":
    main()
