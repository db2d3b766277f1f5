"""Whether the latencies of single layers add up: 1 + Σ (ratio of one layer's option alone − 1) beside whole plans.

Single layers and whole plans are measured in one random order, each beside the dense model.
"""

import logging
import random
from collections.abc import Sequence
from statistics import median
from time import perf_counter

import numpy as np
from scipy.stats import spearmanr

from benchmarks.latency.bench import Bench, spread
from ranksearch.compress import compress, plan_cost
from ranksearch.latency.selftest import Check
from ranksearch.records import LayerChoice, MeasureConfig, Plan
from ranksearch.space import layer_records, load_space

log = logging.getLogger(__name__)

CONFIG = MeasureConfig(half_width=0.005, max_seconds=1.0)
MAX_ERROR, MIN_SPEARMAN = 0.02, 0.99
SEED = 0


def additivity(bench: Bench) -> list[Check]:
    start, chance = perf_counter(), random.Random(SEED)
    options = options_of(bench)
    single = [Plan({layer: choice}) for layer, choices in options.items() for choice in choices]
    whole = whole_plans(options, bench.counts.plans, chance)
    found = measured(bench, single, whole, chance)
    ratios = [found[plan] for plan in whole]
    sums = [1 + sum(found[part] - 1 for part in parts(plan)) for plan in whole]
    dense = bench.workbench.dense_cost
    macs = [plan_cost(bench.workbench.layers, plan, dense).macs / dense.macs for plan in whole]
    ours, theirs = errors(sums, ratios), errors(macs, ratios)
    done = {"num_done": len(whole), "num_wanted": len(whole), "seconds": perf_counter() - start}
    beside = f"{len(single)} options alone; plans at {min(ratios):.2f} to {max(ratios):.2f}"
    return [
        Check(
            test="a plan's ratio as the sum of its layers': relative error, median",
            value=median(ours),
            at_most=MAX_ERROR,
            note=f"{spread(ours, 3)}; MACs {median(theirs):.3f}",
            **done,
        ),
        Check(
            test="a plan's ratio as the sum of its layers': relative error, largest",
            value=max(ours),
            note=f"MACs {max(theirs):.3f}; {beside}",
            **done,
        ),
        Check(
            test="a plan's ratio as the sum of its layers': order (Spearman)",
            value=spearman(sums, ratios),
            at_least=MIN_SPEARMAN,
            note=f"MACs {spearman(macs, ratios):.3f}",
            **done,
        ),
    ]


def options_of(bench: Bench) -> dict[str, list[LayerChoice]]:
    """Layer -> its options in the default space but the dense one; where there are more than wanted, evenly spaced."""
    records = [r for r in layer_records(load_space("default"), bench.workbench.layers) if r.options]
    found = {r.name: [option.choice for option in r.options[:-1]] for r in records}
    return {name: _thinned(choices, bench.counts.options) for name, choices in found.items()}


def _thinned(choices: list[LayerChoice], wanted: int) -> list[LayerChoice]:
    places = np.linspace(0, len(choices) - 1, min(wanted, len(choices))).round().astype(int)
    return [choices[place] for place in places]


def whole_plans(options: dict[str, list[LayerChoice]], num: int, chance: random.Random) -> list[Plan]:
    return [Plan({layer: chance.choice(choices) for layer, choices in options.items()}) for _ in range(num)]


def parts(plan: Plan) -> list[Plan]:
    return [Plan({layer: choice}) for layer, choice in plan.items()]


def measured(bench: Bench, single: Sequence[Plan], whole: Sequence[Plan], chance: random.Random) -> dict[Plan, float]:
    plans = list(dict.fromkeys([*single, *whole]))
    chance.shuffle(plans)
    workbench = bench.workbench

    def work(place: int) -> float:
        if place % 20 == 0:
            log.info("single layers and whole plans: %d of %d", place, len(plans))
        net = compress(workbench.dense, plans[place], layers=workbench.layers, init="random")
        return bench.measure(net, CONFIG, place).ratio

    return {plan: work(place) for place, plan in enumerate(plans)}


def errors(predicted: Sequence[float], ratios: Sequence[float]) -> list[float]:
    return [abs(guess / ratio - 1) for guess, ratio in zip(predicted, ratios, strict=True)]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return float(spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]
