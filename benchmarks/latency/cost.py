"""What measuring costs: seconds alone with the device, and its share of a run."""

import logging
import random
from statistics import fmean, median
from time import perf_counter

import torch
import torchvision

from benchmarks.latency.bench import CPU, Bench, spread
from ranksearch import trial
from ranksearch.compress import compress
from ranksearch.latency import environment
from ranksearch.latency.selftest import Check
from ranksearch.profile import Description, describe
from ranksearch.recipes import recipes_of
from ranksearch.records import MeasureConfig, Plan, TrialSpec
from ranksearch.space import SearchSpace, layer_records, load_space
from ranksearch.tasks import Task, task_from
from ranksearch.tasks.split import ArraySplit
from ranksearch.workbench import Workbench

log = logging.getLogger(__name__)

MAX_SECONDS, MAX_SHARE = 0.8, 0.15
SEED = 0
TRAINING_IMAGES = 640


def cost(bench: Bench) -> list[Check]:
    return [*seconds_alone(bench), share_of_run(bench)]


def seconds_alone(bench: Bench) -> list[Check]:
    start, wanted, workbench = perf_counter(), bench.counts.sampled, bench.workbench
    plans = sampled(workbench, wanted)
    log.info("%d plans of the example, measured as in a search", wanted)
    for seed, plan in enumerate(plans):
        bench.measure(compress(workbench.dense, plan, layers=workbench.layers, init="random"), MeasureConfig(), seed)
    warming = [run.warmup_seconds for run in bench.made]
    timing = [run.seconds - run.warmup_seconds for run in bench.made]
    alone = [run.seconds for run in bench.made]
    done = {"num_done": wanted, "num_wanted": wanted, "seconds": perf_counter() - start}
    return [
        Check(
            test="seconds alone with the device", value=median(alone), at_most=MAX_SECONDS, note=spread(alone), **done
        ),
        Check(test="of these warming up", value=median(warming), note=spread(warming), **done),
        Check(test="of these timing", value=median(timing), note=spread(timing), **done),
    ]


def sampled(workbench: Workbench, num: int) -> list[Plan]:
    space = SearchSpace(layer_records(load_space("default"), workbench.layers))
    chance = random.Random(SEED)
    return [space.plan({name: chance.randrange(size) for name, size in space.sizes.items()}) for _ in range(num)]


def share_of_run(bench: Bench) -> Check:
    start, wanted = perf_counter(), bench.counts.trials
    workbench = Workbench(resnet18(bench.counts.images), CPU)
    log.info("ResNet-18: how to train it fastest")
    recipes = recipes_of(load_space("default").recipes, {})
    found = describe(workbench, recipes, MeasureConfig(batch_size=8), environment(CPU).cores)
    plans = sampled(workbench, wanted)
    seconds = bench.until_late(lambda number: phases(workbench, found, plans[number], number), wanted)
    shares = [phase["measure"] / sum(phase.values()) for phase in seconds]
    each = {name: fmean(phase.get(name, 0.0) for phase in seconds) for name in seconds[0]}
    return Check(
        test=f"share of a run on ResNet-18 at 224², {bench.counts.images} validation images",
        value=sum(phase["measure"] for phase in seconds) / sum(sum(phase.values()) for phase in seconds),
        at_most=MAX_SHARE,
        num_done=len(seconds),
        num_wanted=wanted,
        note=f"{min(shares):.2f} to {max(shares):.2f}; mean seconds: "
        + ", ".join(f"{name} {mean:.1f}" for name, mean in each.items() if mean >= 0.05),
        seconds=perf_counter() - start,
    )


def phases(workbench: Workbench, found: Description, plan: Plan, number: int) -> dict[str, float]:
    """Phase -> seconds of one trial."""
    log.info("ResNet-18: trial %d", number + 1)
    spec = TrialSpec(study="benchmark", plan=plan, seed=SEED, finetune=found.recipes[0].finetune, measure=found.measure)
    result = trial.run(spec, workbench)
    if result.score is None:
        raise SystemExit(f"ResNet-18: {result.reason}\n{result.details}")
    return dict(result.seconds)


def resnet18(num_validation: int) -> Task:
    """Random weights and random pictures: they do not change the seconds."""
    torch.manual_seed(SEED)
    return task_from(torchvision.models.resnet18(), (pictures(TRAINING_IMAGES), pictures(num_validation)))


def pictures(num: int) -> ArraySplit:
    images = torch.randint(256, (num, 3, 224, 224), dtype=torch.uint8)
    return ArraySplit(images, torch.randint(1000, (num,)), mean=(0.5,) * 3, std=(0.25,) * 3)
