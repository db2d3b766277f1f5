"""Applying plans to a ResNet-18: `python -m benchmarks.apply_plan [--plans 200] [--scratch 10]`.

Ours slices decompositions computed once and builds the whole model. The peer only decomposes, every layer from scratch
for every plan, with torch.linalg and tensorly; a few of its plans are timed and stand for all. One thread, random
weights (they do not change the cost), random plans from the default space.
"""

import argparse
import random
import time
from statistics import median, quantiles

import torch
import torchvision

from benchmarks.machine import conditions, write
from benchmarks.peers.libraries import decompose_plan
from ranksearch.compress import compress
from ranksearch.factorize import FactorCache
from ranksearch.layers import find_layers
from ranksearch.space import SearchSpace, layer_records, load_space


def seconds_of(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def spread(seconds: list[float]) -> dict[str, object]:
    return {
        "median": 1e3 * median(seconds),
        "quartiles": [1e3 * q for q in quantiles(seconds)[::2]],
        "n": len(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--scratch", type=int, default=10)
    arguments, chance = parser.parse_args(), random.Random(0)
    torch.set_num_threads(1)
    where = conditions()
    model = torchvision.models.resnet18().eval()
    layers = find_layers(model, torch.zeros(1, 3, 224, 224))
    space = SearchSpace(layer_records(load_space("default"), layers))
    sizes = space.sizes.items()
    plans = [space.plan({n: chance.randrange(size) for n, size in sizes}) for _ in range(arguments.plans)]
    scratch = [seconds_of(lambda p=plan: decompose_plan(model, p)) for plan in plans[: arguments.scratch]]
    cache = FactorCache()
    first = [seconds_of(lambda p=plan: compress(model, p, cache=cache, layers=layers)) for plan in plans]
    warm = [seconds_of(lambda p=plan: compress(model, p, cache=cache, layers=layers)) for plan in plans]
    ours, peers = sum(first), median(scratch) * len(plans)
    write(
        "apply_plan",
        where
        | {
            "seed": 0,
            "threads": 1,
            "num_plans": len(plans),
            "ms_warm": spread(warm),
            "target_ms_warm": 50,
            "ms_libraries_from_scratch": spread(scratch),
            "seconds_all_plans": ours,
            "seconds_all_plans_libraries_estimated": peers,
            "share_of_libraries": ours / peers,
            "target_share_of_libraries": 1 / 20,
        },
    )


if __name__ == "__main__":
    main()
