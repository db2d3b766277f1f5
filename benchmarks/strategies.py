"""Training strategies at equal seconds: `python -m benchmarks.strategies --data cifar10.npz [--seeds 3] [--full]`.

Every layer of a trained net that the method takes, but the stem and the classifier, at one share of its MACs: from that
same start each strategy trains for as long as plain cross entropy takes for so many steps. The seconds of a step are
timed first, in turns, and say how many steps a strategy makes; they alone decide the accuracies. Batches, and the dense
net's outputs on them, are there before the clock starts, as a study's trials find them. A strategy's learning rate is
the best of a grid at one share, on seeds of its own. Accuracies are of the validation images, which no training saw,
after BatchNorm's statistics are re-estimated: after training, even where a trial would keep its better start.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.cifar import trained_task
from benchmarks.machine import conditions, write
from benchmarks.methods import plan_at
from ranksearch.calibrate import reestimate_batchnorm
from ranksearch.compress import plan_cost
from ranksearch.errors import DivergedError, NonFiniteError
from ranksearch.evaluate import evaluate
from ranksearch.factorize import METHODS
from ranksearch.finetune import Batch, finetune, memory_format, reconstruct
from ranksearch.inputs import Inputs
from ranksearch.profile import describe, timed
from ranksearch.records import FinetuneConfig, MeasureConfig, Plan, Recipe
from ranksearch.workbench import Workbench

# The simpler first: of those that come out even, the first wins. A reconstruction of more examples would not fit into
# the shorter budget; that so few re-estimate BatchNorm, too, costs it points, as it would in a trial.
STRATEGIES: dict[str, dict[str, Any]] = {
    "plain": {"distillation": 0.0},
    "distillation": {},
    "cosine": {"schedule": "cosine"},
    "adamw": {"optimizer": "adamw"},
    "ema": {"ema": 0.9},
    "block-distillation": {"block_distillation": 1.0},
    "reconstruction": {"calibration_examples": 64},
    "reconstruction-distillation": {"calibration_examples": 64},
    "atcd-every-5": {"atcd": "project", "atcd_period": 5},
    "atcd-every-step": {"atcd": "project"},
}
RECONSTRUCTION = {"reconstruction": 1.0, "reconstruction-distillation": 0.5}  # the part of its seconds that goes there

SHARES = (0.5, 0.33, 0.2)
BUDGETS = (20, 60)  # seconds, as steps of plain
FULL_BUDGETS = (*BUDGETS, 400)
SLACK = 1.25  # so many times plain's steps a strategy may make at most: batches for that are made
RATES = {"sgd": (0.005, 0.01, 0.02, 0.04), "adamw": (1e-4, 3e-4, 1e-3)}
GRID_SHARE, GRID_SEEDS = 0.33, (100, 101)
PROBE_STEPS, PROBE_ROUNDS = 10, 3

Rates = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What every strategy begins with at one share."""

    share: float
    plan: Plan
    model: nn.Module  # BatchNorm re-estimated
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    fixed: float  # seconds of no step at all
    step: float

    def steps(self, seconds: float) -> int:
        return max(0, int((seconds - self.fixed) / self.step))

    def seconds(self, steps: int) -> float:
        return self.fixed + steps * self.step


@dataclass(frozen=True, slots=True)
class Course:
    """The net, and what all strategies have in common: `base`, with as many steps as there are batches."""

    bench: Workbench
    base: FinetuneConfig

    def batches(self, seed: int) -> list[Batch]:
        batches = list(self.bench.batches(self.base, seed))
        for batch in batches:
            _ = batch.teacher
        return batches

    def calibration(self, config: FinetuneConfig) -> list[Inputs]:
        return self.bench.calibration(replace(self.base, calibration_examples=config.calibration_examples))

    def accuracy(self, model: nn.Module, config: FinetuneConfig) -> float:
        task = self.bench.task
        reestimate_batchnorm(model, self.calibration(config))
        return evaluate(model, task.validation, task.metric, device=self.bench.device).value

    def start(self, method: str, share: float) -> Start:
        found = plan_at(METHODS[method], self.bench, share)
        if found is None or found[1] != "macs":
            raise SystemExit(f"method is {method!r}; it must be one that saves MACs")
        model = self.bench.compress(found[0]).to(memory_format=memory_format(self.base.layout))
        return Start(share=share, plan=found[0], model=model, accuracy=self.accuracy(model, self.base))

    def reconstruct(self, model: nn.Module, start: Start, config: FinetuneConfig, seed: int) -> None:
        bench, inputs, steps = self.bench, self.calibration(config), config.reconstruction_steps
        reconstruct(model, bench.dense, start.plan, bench.layers, inputs, steps=steps, seed=seed)

    def finetune(self, model: nn.Module, start: Start, config: FinetuneConfig, seed: int) -> None:
        bench, batches = self.bench, self.batches(seed)[: config.steps]
        finetune(
            model, batches, bench.task, config, bench.device, plan=start.plan, layers=bench.layers, dense=bench.dense
        )

    def train(self, start: Start, config: FinetuneConfig, seed: int) -> tuple[float, float]:
        """Accuracy after, and seconds. Where training diverged, the start stands, as in a trial."""
        model = copy.deepcopy(start.model)
        self.batches(seed)

        def train() -> None:
            torch.manual_seed(seed)
            try:
                if config.reconstruction_steps:
                    self.reconstruct(model, start, config, seed)
                self.finetune(model, start, config, seed)
            except (NonFiniteError, DivergedError) as error:
                print(f"the start is kept: {error}", file=sys.stderr)
                model.load_state_dict(start.model.state_dict())

        seconds = timed(train, self.bench.device)
        return self.accuracy(model, config), seconds


def config_of(name: str, base: FinetuneConfig, rates: Rates) -> FinetuneConfig:
    config = replace(base, **STRATEGIES[name])
    return replace(config, learning_rate=rates.get(name, config.learning_rate))


def clocks_of(course: Course, start: Start) -> dict[str, Clock]:
    """The clock of each strategy's fine-tuning, and under `reconstruct` that of a reconstruction, timed in turns."""

    def tuning(name: str, steps: int) -> Callable[[], None]:
        config = replace(config_of(name, course.base, {}), steps=steps, learning_rate=1e-6)
        return lambda: course.finetune(copy.deepcopy(start.model), start, config, GRID_SEEDS[0])

    def reconstruction(steps: int) -> Callable[[], None]:
        config = replace(config_of("reconstruction", course.base, {}), reconstruction_steps=steps)
        return lambda: course.reconstruct(copy.deepcopy(start.model), start, config, GRID_SEEDS[0])

    course.batches(GRID_SEEDS[0])
    runs = {(name, steps): tuning(name, steps) for name in STRATEGIES for steps in (0, PROBE_STEPS)}
    runs |= {("reconstruct", steps): reconstruction(steps) for steps in (0, PROBE_STEPS)}
    rounds = [{key: timed(run, course.bench.device) for key, run in runs.items()} for _ in range(PROBE_ROUNDS)]
    least = {key: min(seconds[key] for seconds in rounds) for key in runs}  # others' load only adds
    return {
        name: Clock(fixed=least[name, 0], step=(least[name, PROBE_STEPS] - least[name, 0]) / PROBE_STEPS)
        for name, steps in runs
        if steps == 0
    }


def within(seconds: float, name: str, config: FinetuneConfig, clocks: Mapping[str, Clock]) -> FinetuneConfig:
    """As many steps as there is time for."""
    reconstruction, part = clocks["reconstruct"], RECONSTRUCTION.get(name, 0.0)
    first = reconstruction.steps(part * seconds)
    left = seconds - (reconstruction.seconds(first) if first else 0)
    steps = 0 if part == 1 else min(clocks[name].steps(left), config.steps)
    return replace(config, reconstruction_steps=first, steps=steps)


def best_rates(course: Course, start: Start, clocks: Mapping[str, Clock]) -> Rates:
    seconds = clocks["plain"].seconds(BUDGETS[0])
    found: dict[str, float] = {}
    for name in STRATEGIES:
        config = within(seconds, name, config_of(name, course.base, {}), clocks)
        if not config.steps:
            continue
        scores = {
            rate: mean(course.train(start, replace(config, learning_rate=rate), seed)[0] for seed in GRID_SEEDS)
            for rate in RATES[config.optimizer]
        }
        found[name] = max(scores, key=lambda rate: scores[rate])
        print(f"{name}: {scores}", file=sys.stderr)
    return found


def row(course: Course, start: Start, name: str, config: FinetuneConfig, num_seeds: int) -> dict[str, Any]:
    runs = [course.train(start, config, seed) for seed in range(num_seeds)]
    accuracies, seconds = [run[0] for run in runs], [run[1] for run in runs]
    print(f"{name} at {start.share}: {accuracies}, {mean(seconds):.2f} s", file=sys.stderr)
    return {
        "share": start.share,
        "strategy": name,
        "steps": config.steps,
        "reconstruction_steps": config.reconstruction_steps,
        "learning_rate": config.learning_rate,
        "accuracies": accuracies,
        "accuracy": mean(accuracies),
        "points_over_oneshot": 100 * (mean(accuracies) - start.accuracy),
        "seconds": mean(seconds),
    }


def rows_at(
    budget: int, course: Course, start: Start, clocks: Mapping[str, Clock], rates: Rates, num_seeds: int
) -> list[dict[str, Any]]:
    seconds = clocks["plain"].seconds(budget)
    configs = {name: within(seconds, name, config_of(name, course.base, rates), clocks) for name in STRATEGIES}
    rows = [row(course, start, name, config, num_seeds) for name, config in configs.items()]
    plain = rows[0]["accuracy"]
    for found in rows:
        gain = 100 * (found["accuracy"] - plain) / seconds
        found |= {"budget": budget, "budget_seconds": seconds, "points_over_plain_per_second": gain}
    return rows


def winner(rows: list[dict[str, Any]]) -> str:
    """The highest mean over the shares, or the simplest whose mean is no worse than that one's worst seed."""
    by_seed = {
        name: [mean(seed) for seed in zip(*(r["accuracies"] for r in rows if r["strategy"] == name), strict=True)]
        for name in STRATEGIES
    }
    best = max(by_seed, key=lambda name: mean(by_seed[name]))
    return next(name for name in STRATEGIES if mean(by_seed[name]) >= min(by_seed[best]))


def summary(
    course: Course, starts: Mapping[float, Start], clocks: Mapping[float, Mapping[str, Clock]], method: str, seeds: int
) -> dict[str, Any]:
    bench, base = course.bench, course.base
    taught = [timed(lambda b=batch: replace(b).teacher, bench.device) for batch in course.batches(GRID_SEEDS[0])[:10]]
    return {
        "method": method,
        "seeds": list(range(seeds)),
        "grid": {"share": GRID_SHARE, "seeds": GRID_SEEDS, "rates": RATES},
        "threads": base.threads,
        "precision": base.precision,
        "layout": base.layout,
        "accuracy_dense": evaluate(bench.dense, bench.task.validation, bench.task.metric, device=bench.device).value,
        "seconds_of_the_dense_net_a_step": min(taught),  # what distillation takes besides where nothing is kept
        "num_examples": len(bench.task.validation),
        "starts": {
            f"{share:g}": {
                "macs": plan_cost(bench.layers, start.plan, bench.dense_cost).macs / bench.dense_cost.macs,
                "accuracy": start.accuracy,
                "clocks": {name: asdict(clock) for name, clock in clocks[share].items()},
            }
            for share, start in starts.items()
        },
    }


def recipe(name: str, rows: list[dict[str, Any]]) -> str:
    """As a space's `recipes` take it, with the steps that the strategy made at the grid's share."""
    made = next(r for r in rows if r["strategy"] == name and r["share"] == GRID_SHARE)
    decided = {"steps": made["steps"], "learning_rate": made["learning_rate"]}
    if made["reconstruction_steps"]:
        decided["reconstruction_steps"] = made["reconstruction_steps"]
    return yaml.safe_dump({"recipes": {name: STRATEGIES[name] | decided}}, sort_keys=False)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| kept MACs | strategy | accuracy, min–max | over one-shot | over plain, a second | seconds | steps | rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = 100 * min(r["accuracies"]), 100 * max(r["accuracies"])
        before = f"{r['reconstruction_steps']} a layer, " if r["reconstruction_steps"] else ""
        lines.append(
            f"| {r['share']:g} | {r['strategy']} | {100 * r['accuracy']:.2f}, {low:.2f}–{high:.2f} "
            f"| {r['points_over_oneshot']:+.2f} | {r['points_over_plain_per_second']:+.3f} | {r['seconds']:.1f} "
            f"| {before}{r['steps']} | {r['learning_rate']:g} |"
        )
    return "\n".join(lines)


def course_on(bench: Workbench, max_steps: int, cores: int) -> Course:
    """Threads, layout and precision as a study on this machine would choose them."""
    recipe = Recipe(name="base", finetune=FinetuneConfig(steps=max_steps))
    base = describe(bench, [recipe], MeasureConfig(), cores).recipes[0].finetune
    torch.set_num_threads(base.threads)
    return Course(bench, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--method", default="channel_svd", help="one that saves MACs (%(default)s, which leaves something to gain)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, … (%(default)s of them)")
    parser.add_argument("--full", action="store_true", help=f"train for {FULL_BUDGETS} plain steps, not {BUDGETS}")
    given, where = parser.parse_args(), conditions()
    budgets = FULL_BUDGETS if given.full else BUDGETS
    bench = Workbench(trained_task(given.data), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    course = course_on(bench, int(SLACK * max(budgets)), where["cores"])
    starts = {share: course.start(given.method, share) for share in SHARES}
    clocks = {share: clocks_of(course, start) for share, start in starts.items()}
    rates = best_rates(course, starts[GRID_SHARE], clocks[GRID_SHARE])
    rows = [
        found
        for budget in budgets
        for share in SHARES
        for found in rows_at(budget, course, starts[share], clocks[share], rates, given.seeds)
    ]
    write("strategies", where | summary(course, starts, clocks, given.method, given.seeds) | {"rows": rows})
    for budget in budgets:
        of_budget = [r for r in rows if r["budget"] == budget]
        print(f"\nAs long as {budget} steps of plain\n\n{table(of_budget)}\n")
        print(f"Best at equal seconds:\n\n{recipe(winner(of_budget), of_budget)}")


if __name__ == "__main__":
    main()
