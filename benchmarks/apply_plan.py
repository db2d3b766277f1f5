"""Applying plans to a ResNet-18: `python -m benchmarks.apply_plan [--plans 20]`.

Ours slices decompositions computed once; the peer decomposes every layer from scratch for every plan, with the
same code and no cache. One thread, random weights (they do not change the cost).
"""

import argparse
import random
import time
from statistics import median, quantiles

import torch
import torchvision

from benchmarks.machine import conditions, write
from ranksearch.compress import compress
from ranksearch.factorize import FactorCache
from ranksearch.layers import find_layers
from ranksearch.space import SearchSpace, layer_records, load_space


def seconds_of(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=20)
    num_plans, chance = parser.parse_args().plans, random.Random(0)
    torch.set_num_threads(1)
    where = conditions()
    model = torchvision.models.resnet18().eval()
    layers = find_layers(model, torch.zeros(1, 3, 224, 224))
    space = SearchSpace(layer_records(load_space("default"), layers))
    plans = [space.plan({n: chance.randrange(size) for n, size in space.sizes.items()}) for _ in range(num_plans)]
    cache = FactorCache()
    first = seconds_of(lambda: [compress(model, plan, cache=cache, layers=layers) for plan in plans])
    warm = [seconds_of(lambda p=plan: compress(model, p, cache=cache, layers=layers)) for plan in plans * 5]
    scratch = [seconds_of(lambda p=plan: compress(model, p, layers=layers)) for plan in plans[: max(3, num_plans // 4)]]
    write(
        "apply_plan",
        where
        | {
            "seed": 0,
            "threads": 1,
            "ms_warm": {
                "median": 1e3 * median(warm),
                "quartiles": [1e3 * q for q in quantiles(warm)[::2]],
                "n": len(warm),
            },
            "ms_from_scratch": {"median": 1e3 * median(scratch), "n": len(scratch)},
            "ratio": median(scratch) / median(warm),
            "seconds_all_decompositions_once": first,
            "target_ms_warm": 50,
        },
    )


if __name__ == "__main__":
    main()
