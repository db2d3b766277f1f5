"""ATCD beside training the factors: `python -m benchmarks.atcd --data cifar10.npz [--seeds 3] [--full]`.

Two questions about a net whose filters have rank one (Kim, Yoon, Jeong, Lee 2018, arXiv 1808.04303): is it better to
step the composed weights and to decompose them again than to train the 1-D convolutions as they stand

- from scratch, where the latter is the flattened net (`ranksearch.nets.flattened`, the same layers), and
- from a trained dense net that was compressed, where the latter is plain fine-tuning?

Every strategy has its own learning rate, the best of a grid on validation images with a seed that is not used again.
Accuracy is on test images, at equal steps; and at equal seconds, where a strategy stops when training the factors
would be over (a projection takes time). An advantage counts as shown where Student's 95 % interval of its mean over the
seeds is above zero. --full: the width of `ranksearch.nets.plain`, all images and 100 epochs, for a GPU; the source's
abstract gives no recipe, so the rates are the grid's there too.
"""

import argparse
import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn

from benchmarks.machine import conditions, write
from benchmarks.subset import subset
from ranksearch import nets
from ranksearch.calibrate import reestimate_batchnorm
from ranksearch.compress import compress, plan_cost
from ranksearch.errors import DivergedError, NonFiniteError
from ranksearch.evaluate import evaluate
from ranksearch.factorize import METHODS
from ranksearch.finetune import finetune, fixed_batches, from_scratch, memory_format
from ranksearch.records import FinetuneConfig, LayerChoice, Plan
from ranksearch.tasks import Task, build_task
from ranksearch.tasks.trained import TrainRecipe, trained
from ranksearch.workbench import Workbench

GRID_SEED = 1000
DENSE, FACTORS = "dense", "factors"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    model: str
    train: int
    validation: int
    test: int
    dense_epochs: int  # of the trained start
    scratch: FinetuneConfig
    tuned: FinetuneConfig
    scratch_rates: tuple[float, ...]
    tuned_rates: tuple[float, ...]
    periods: tuple[int, ...]  # of ATCD


STEP = FinetuneConfig(batch_size=64, schedule="linear", precision="float32", layout="channels_last")
QUICK = Size(
    model=f"{Path(__file__)}:narrow",
    train=10_000,
    validation=1000,
    test=4000,
    dense_epochs=10,
    scratch=replace(STEP, steps=300, distillation=0.0, init="random"),
    tuned=replace(STEP, steps=100),
    scratch_rates=(0.02, 0.05, 0.15),
    tuned_rates=(0.005, 0.02, 0.06),
    periods=(1, 20),
)
FULL = replace(
    QUICK,
    model="ranksearch.nets:plain",
    train=1_000_000,
    validation=1_000_000,
    test=1_000_000,
    dense_epochs=100,
    scratch=replace(QUICK.scratch, steps=0, epochs=100.0, schedule="step"),
    tuned=replace(QUICK.tuned, steps=0, epochs=10.0),
    periods=(1, 100, 700),  # 700 steps: an epoch
)


def narrow(num_classes: int, in_channels: int) -> nn.Sequential:
    return nets.plain(num_classes, in_channels, width=0.25)


@dataclass(frozen=True)
class Outcome:
    model: nn.Module
    seconds: float
    diverged: bool


@dataclass(frozen=True)
class Contest:
    """One start and one form of the net, to be trained by each strategy."""

    bench: Workbench
    plan: Plan
    config: FinetuneConfig
    rates: Sequence[float]
    periods: Sequence[int]

    @property
    def strategies(self) -> dict[str, FinetuneConfig]:
        direct = {FACTORS: self.config}
        if self.config.init == "random":
            direct[DENSE] = self.config
        return direct | {
            f"ATCD every {period}": replace(self.config, atcd="project", atcd_period=period) for period in self.periods
        }

    def play(self, seeds: int) -> dict[str, Any]:
        return {name: self.row(name, config, seeds) for name, config in self.strategies.items()}

    def row(self, name: str, config: FinetuneConfig, seeds: int) -> dict[str, Any]:
        plan = Plan() if name == DENSE else self.plan
        grid = {rate: self.validated(plan, replace(config, learning_rate=rate)) for rate in self.rates}
        rate = max(grid, key=lambda rate: grid[rate])
        found = [self.run(plan, replace(config, learning_rate=rate), seed) for seed in range(seeds)]
        row = {
            "learning_rate": rate,
            "grid": {str(rate): accuracy for rate, accuracy in grid.items()},
            "test": [self.tested(outcome.model) for outcome in found],
            "seconds": [outcome.seconds for outcome in found],
            "diverged": sum(outcome.diverged for outcome in found),
        }
        print(f"{name}: {row}", file=sys.stderr)
        return row

    def at_equal_seconds(self, rows: dict[str, Any], seeds: int) -> None:
        """ATCD once more, for as many seconds as the factors took; into its rows."""
        seconds = mean(rows[FACTORS]["seconds"])
        for name, config in self.strategies.items():
            if config.atcd == "project":
                rate = rows[name]["learning_rate"]
                bounded = replace(config, steps=0, epochs=0.0, seconds=seconds, learning_rate=rate)
                found = [self.tested(self.run(self.plan, bounded, seed).model) for seed in range(seeds)]
                rows[name]["test_at_equal_seconds"] = found

    def run(self, plan: Plan, config: FinetuneConfig, seed: int) -> Outcome:
        """Train and re-estimate. One that diverged is what it was at the start, as in a trial."""
        bench = self.bench
        torch.manual_seed(seed)
        model = self.start(plan).to(memory_format=memory_format(config.layout))
        untrained = copy.deepcopy(model)
        teacher = bench.dense if config.distillation else None
        batches = fixed_batches(bench.task, teacher, config, seed, bench.device)
        start, diverged = perf_counter(), False
        try:
            finetune(model, batches, bench.task, config, bench.device, plan=plan, layers=bench.layers)
        except (DivergedError, NonFiniteError):
            model, diverged = untrained, True
        seconds = perf_counter() - start
        reestimate_batchnorm(model, bench.calibration(STEP))
        return Outcome(model, seconds, diverged)

    def start(self, plan: Plan) -> nn.Module:
        if self.config.init == "decompose":
            return self.bench.compress(plan)
        return from_scratch(compress(self.bench.dense, plan, layers=self.bench.layers, init="random"))

    def validated(self, plan: Plan, config: FinetuneConfig) -> float:
        task = self.bench.task
        return evaluate(
            self.run(plan, config, GRID_SEED).model, task.validation, task.metric, device=self.bench.device
        ).value

    def tested(self, model: nn.Module) -> float:
        task = self.bench.task
        assert task.test is not None
        return evaluate(model, task.test, task.metric, device=self.bench.device).value


def rank_one(bench: Workbench) -> Plan:
    """One term for every convolution behind the first."""
    method = METHODS["rank1"]
    taken = [layer.name for layer in bench.layers if layer.shape and not method.refuses(layer.shape)]
    return Plan({name: LayerChoice(method=method.name, ranks=(1,)) for name in taken[1:]})


def softer(bench: Workbench) -> Plan:
    """The same from the last one forward, until half of the net's MACs are gone."""
    one, plan = rank_one(bench), Plan()
    for name in reversed([layer.name for layer in bench.layers if layer.name in one]):
        if 2 * plan_cost(bench.layers, plan, bench.dense_cost).macs <= bench.dense_cost.macs:
            break
        plan = Plan({**plan, name: one[name]})
    return plan


def contests(task: Task, size: Size, device: torch.device) -> dict[str, Contest]:
    untrained, start = Workbench(task, device), Workbench(trained(task, TrainRecipe(epochs=size.dense_epochs)), device)
    one, more = rank_one(untrained), softer(untrained)
    return {
        "from scratch, rank one": Contest(untrained, one, size.scratch, size.scratch_rates, size.periods),
        "from a trained net, rank one": Contest(start, one, size.tuned, size.tuned_rates, size.periods),
        "from a trained net, half of the MACs": Contest(start, more, size.tuned, size.tuned_rates, size.periods),
    }


def described(contest: Contest) -> dict[str, Any]:
    bench = contest.bench
    cost = plan_cost(bench.layers, contest.plan, bench.dense_cost)
    fixed = {
        "parameters": cost.parameters / bench.dense_cost.parameters,
        "macs": cost.macs / bench.dense_cost.macs,
        "plan": contest.plan.to_json(),
        "finetune": contest.config.to_json(),
    }
    if contest.config.init == "random":
        return fixed
    oneshot = contest.start(contest.plan)
    reestimate_batchnorm(oneshot, bench.calibration(STEP))
    return fixed | {"dense_test": contest.tested(bench.dense), "oneshot_test": contest.tested(oneshot)}


def conclusions(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each contest, strategy and column, from the figures."""
    return [
        f"{title}, {name} beside training the factors, {column}: {verdict(row[key], rows[FACTORS]['test'])}"
        for title, contest in results.items()
        for rows in [contest["strategies"]]
        for name, row in rows.items()
        for key, column in (("test", "at equal steps"), ("test_at_equal_seconds", "at equal seconds"))
        if name not in (DENSE, FACTORS) and key in row
    ]


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Seeds are pairs: they share initial weights and batches."""
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    if len(points) == 1:
        return f"{points[0]:+.1f} points (n = 1): one seed shows nothing"
    half = float(student.ppf(0.975, len(points) - 1)) * stdev(points) / math.sqrt(len(points))
    low, high = mean(points) - half, mean(points) + half
    found = "shows" if low > 0 else "does not show; it is a disadvantage" if high < 0 else "does not show"
    return (
        f"{mean(points):+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, n = {len(points)}): "
        f"the published advantage {found}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    where, began = conditions(), perf_counter()
    size = FULL if options.full else QUICK
    task = build_task(model=size.model, data=f"npz:{options.data}")
    task = subset(task, train=size.train, validation=size.validation, test=size.test)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {}
    for title, contest in contests(task, size, device).items():
        print(title, file=sys.stderr)
        rows = contest.play(options.seeds)
        contest.at_equal_seconds(rows, options.seeds)
        results[title] = described(contest) | {"strategies": rows}
    examples = {name: len(split) for name, split in task.splits.items()}
    result = {"seeds": list(range(options.seeds)), "grid_seed": GRID_SEED, "examples": examples, "results": results}
    seconds = {"seconds": perf_counter() - began, "threads": torch.get_num_threads()}
    write("atcd_full" if options.full else "atcd", where | result | seconds | {"conclusions": conclusions(results)})


if __name__ == "__main__":
    main()
