"""Factors that know the data beside plain ones: `python -m benchmarks.factors --data cifar10.npz [--seeds 2]`.

Plans of a profile's knapsack, spread over the faster half of its front, on one trained net. Each is decomposed plainly
and in the metric of inputs and gradients, scored after BatchNorm re-estimation, and trained for so many steps as a
trial would be: the same batches for both, the better of before and after kept. Accuracies are of 1,000 validation
images, means over seeds, which decide the batches.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.cifar import trained_task
from benchmarks.machine import conditions, write
from benchmarks.subset import subset
from ranksearch.allocate import knapsack_seeds
from ranksearch.profile import describe
from ranksearch.profiling import profile_options
from ranksearch.records import FinetuneConfig, MeasureConfig, Recipe, SeedPlan, TrialSpec
from ranksearch.space import layer_records, load_space
from ranksearch.trial import start, train
from ranksearch.workbench import Workbench

FACTORS = ("plain", "fisher")
STEPS = (20, 40)
NUM_PLANS, NUM_SEEDS = 6, 14


def plans_of(bench: Workbench, config: FinetuneConfig, seconds: float) -> list[SeedPlan]:
    """The fastest first; not the very fastest, of which nothing is left."""
    layers = layer_records(load_space("default"), bench.layers)
    budget = {"latencies": seconds, "losses": seconds}
    profile = profile_options(bench, layers, MeasureConfig(), seconds=budget, metrics=bench.metrics(config))
    return sorted(knapsack_seeds(layers, profile, NUM_SEEDS), key=lambda seed: seed.origin)[1 : 1 + NUM_PLANS]


def scores(bench: Workbench, spec: TrialSpec, seeds: int) -> dict[str, float]:
    """After one shot and in the end."""
    runs = []
    for seed in range(seeds):
        seeded = replace(spec, seed=seed)
        runs.append(train(start(seeded, bench), seeded, bench))
    return {"oneshot": mean(run.oneshot.value for run in runs), "accuracy": mean(run.score.value for run in runs)}


def rows(bench: Workbench, base: FinetuneConfig, plans: list[SeedPlan], seeds: int) -> list[dict[str, Any]]:
    found = []
    for plan in plans:
        for factors in FACTORS:
            for steps in STEPS:
                config = replace(base, factors=factors, steps=steps)
                spec = TrialSpec(study="", plan=plan.plan, seed=0, finetune=config, measure=MeasureConfig())
                found.append({"plan": plan.origin, "factors": factors, "steps": steps, **scores(bench, spec, seeds)})
                print(found[-1], file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--profile-seconds", type=float, default=15)
    given, where = parser.parse_args(), conditions("cpu")
    task = subset(trained_task(given.data, "small_resnet9", epochs=5), train=50_000, validation=1000, test=1000)
    bench = Workbench(task, torch.device("cpu"))
    recipe = Recipe(name="averaged", finetune=FinetuneConfig(ema=0.9, factors="fisher"))
    base = describe(bench, [recipe], MeasureConfig(), len(os.sched_getaffinity(0))).recipes[0].finetune
    torch.set_num_threads(base.threads)
    found = rows(bench, base, plans_of(bench, base, given.profile_seconds), given.seeds)
    means = {
        f"{factors}, {steps} steps": mean(
            r["accuracy"] for r in found if (r["factors"], r["steps"]) == (factors, steps)
        )
        for factors in FACTORS
        for steps in STEPS
    }
    write("factors", where | {"seeds": given.seeds, "dense": bench.dense_score.value, "means": means, "rows": found})


if __name__ == "__main__":
    main()
