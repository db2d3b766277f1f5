"""Gathering the metrics of a ResNet-18 at 224²: `python -m benchmarks.calibration [--examples 128]`.

All windows of all methods that take a metric, in one pass over random pictures, random weights (they do not change the
cost), in this fresh process: how much its resident peak rises, seconds, and the conditioning that the damping leaves.
"""

import argparse
import os
import time

import torch
import torchvision

from benchmarks.machine import conditions, write
from ranksearch import memory
from ranksearch.calibrate import gather_metrics
from ranksearch.layers import find_layers
from ranksearch.tasks.classification import cross_entropy

BATCH_SIZE = 16
EIGENVALUES_OF_ROWS = 1200  # conditioning is reported of layers with no larger window: eigenvalues take their time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=128)
    num_examples = parser.parse_args().examples
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    where, cpu = conditions(), torch.device("cpu")
    model = torchvision.models.resnet18()
    layers = find_layers(model, torch.zeros(1, 3, 224, 224))
    batches = (
        (torch.randn(BATCH_SIZE, 3, 224, 224), torch.randint(1000, (BATCH_SIZE,)))
        for _ in range(num_examples // BATCH_SIZE)
    )
    memory.reset_peak(cpu)
    before, start, worked = memory.peak(cpu), time.perf_counter(), time.process_time()
    metrics = gather_metrics(model, layers, batches, cross_entropy)
    seconds, processor_seconds, after = time.perf_counter() - start, time.process_time() - worked, memory.peak(cpu)
    sides = [m for metric in metrics.values() for m in (*metric.inputs.values(), metric.outputs) if m is not None]
    small = {name: m for name, m in metrics.items() if max(len(i[0]) for i in m.inputs.values()) <= EIGENVALUES_OF_ROWS}
    worst = {f"{n} {side}": c for n, m in small.items() for side, c in m.conditioning().items()}
    print(f"{'layer and side':34} condition  damping")
    for name, condition in worst.items():
        print(f"{name:34} {condition.number:9.2g}  {condition.damping:g}")
    write(
        "calibration",
        where
        | {
            "seed": 0,
            "threads": torch.get_num_threads(),
            "examples": num_examples // BATCH_SIZE * BATCH_SIZE,
            "batch_size": BATCH_SIZE,
            "layers": len(metrics),
            "largest_moment_rows": max(m.shape[-1] for m in sides),
            "mb_of_moments": sum(m.nbytes for m in sides) / 1e6,
            "mb_peak_rise": (after - before) / 1e6,
            "mb_peak": after / 1e6,
            "target_mb_peak_rise": 2000,
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "largest_condition": max(condition.number for condition in worst.values()),
        },
    )


if __name__ == "__main__":
    main()
