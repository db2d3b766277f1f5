"""What fine-tuning gives back: `python -m benchmarks.recovery --data cifar10.npz [--net linearconv] [--full]`.

A dense net is trained (once, it is cached), compressed at one go, its BatchNorm statistics re-estimated, and trained
further by distillation from the dense net. Two nets of published systems:

linearconv      VGG11, half of every convolution's filters primary, without and with the correlation regulariser
                (Kahatapitiya, Rodrigo 2021, arXiv 1907.11432: weight 0.01, every tenth batch)
tensorization   conv-fc, tensor trains in place of all layers but the first and the last, at 40 times fewer parameters
                or more (Garipov, Podoprikhin, Novikov, Vetrov 2016, arXiv 1611.03214: 41.65 and 82.87 times, trained
                from scratch; ranks beyond what is useful are clamped)

Aim: at least 60 % of the accuracy that compression took comes back, or the end is within two points of the dense net.
Accuracy is on test images; the better of before and after is kept by validation images, as in a trial.

By default a part of the images and as many epochs as end within twenty minutes on two cores; --full: all images and the
published recipes for a GPU, 250 epochs of Adam and 100 of SGD, for the dense net, for the compressed one from the
dense, and for the compressed one from scratch.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.machine import conditions, write
from benchmarks.subset import subset
from ranksearch.compress import compress, plan_cost
from ranksearch.evaluate import evaluate
from ranksearch.factorize import METHODS
from ranksearch.finetune import from_scratch
from ranksearch.forwards import choose_forwards
from ranksearch.layers import FoundLayer
from ranksearch.profile import step_seconds
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan, TrialSpec
from ranksearch.tasks import Task, build_task
from ranksearch.tasks.trained import TrainRecipe, trained
from ranksearch.trial import Trained, train
from ranksearch.workbench import Workbench

SEED = 0
RECOVERED, WITHIN = 0.6, 0.02
CONSTANT_RANK = 10  # of the low-rank variant in its source
ALL = 10**9  # images
PROBED = 32  # examples of a step that is timed
# start -> what its training has besides the case's: from scratch as published, without a teacher
FROM: Mapping[str, Mapping[str, Any]] = {"decompose": {}, "random": {"init": "random", "distillation": 0.0}}

Layers = tuple[FoundLayer, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A compressed form of the net, and what its training has besides the case's."""

    plan: Callable[[Layers], Plan]
    changes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    model: str
    variants: Mapping[str, Variant]
    train: int
    validation: int
    test: int
    dense: TrainRecipe
    finetune: FinetuneConfig
    starts: tuple[str, ...] = ("decompose",)


def linearconv(method: str, *further: float) -> Callable[[Layers], Plan]:
    """Half of every convolution's filters primary. further: a second rank; below 1 a share of its largest."""

    def plan(layers: Layers) -> Plan:
        return Plan({layer.name: choice(layer) for layer in layers[:-1] if layer.shape})

    def choice(layer: FoundLayer) -> LayerChoice:
        assert layer.shape is not None
        most = METHODS[method].max_ranks(layer.shape)
        ranks = [min(n, round(rank * n) if rank < 1 else int(rank)) for rank, n in zip(further, most[1:], strict=True)]
        return LayerChoice(method=method, ranks=(most[0] // 2, *ranks))

    return plan


def tensor_trains(conv: tuple[int, ...], linear: tuple[int, ...], method: str = "tt_conv") -> Callable[[Layers], Plan]:
    """Every layer but the first and the last. conv: the three ranks of each convolution; linear: the one of each
    linear layer, for all its bonds. Clamped to the largest useful ones."""

    def plan(layers: Layers) -> Plan:
        ranks = iter(linear)
        return Plan({layer.name: choice(layer, ranks) for layer in layers[1:-1]})

    def choice(layer: FoundLayer, ranks: Any) -> LayerChoice:
        assert layer.shape is not None
        name, wanted = (method, conv) if layer.shape.is_convolution else ("tt_linear", (next(ranks),) * 3)
        most = METHODS[name].max_ranks(layer.shape)
        return LayerChoice(method=name, ranks=tuple(map(min, wanted, most)))

    return plan


REGULARISED = {"correlation_weight": 0.01, "correlation_period": 10}
LINEARCONV = Case(
    model="ranksearch.nets:vgg11",
    variants={
        "half primary": Variant(plan=linearconv("linearconv"), changes={}),
        "half primary, regularised": Variant(plan=linearconv("linearconv"), changes=REGULARISED),
    },
    train=20_000,
    validation=1000,
    test=4000,
    dense=TrainRecipe(epochs=6),
    finetune=FinetuneConfig(steps=200, learning_rate=1e-4, ema=0.9),
)
FOUR = {
    "half primary": linearconv("linearconv"),
    f"half primary, rank {CONSTANT_RANK}": linearconv("linearconv_lowrank", CONSTANT_RANK),
    "half primary, a quarter of the largest rank": linearconv("linearconv_lowrank", 0.25),
    "half primary, a tenth nonzero": linearconv("linearconv_sparse", 0.1),
}
FULL_LINEARCONV = replace(
    LINEARCONV,
    variants={
        f"{name}{', regularised' if changes else ''}": Variant(plan=plan, changes=changes)
        for (name, plan), changes in product(FOUR.items(), ({}, REGULARISED))
    },
    train=ALL,
    validation=ALL,
    test=ALL,
    dense=TrainRecipe(epochs=250, optimizer="adam", schedule="constant", batch_size=50, weight_decay=0.0),
    finetune=FinetuneConfig(
        steps=0, epochs=250.0, optimizer="adam", learning_rate=1e-3, schedule="constant", batch_size=50
    ),
    starts=("decompose", "random"),
)
TENSORIZATION = Case(
    model="ranksearch.nets:garipov_conv_fc",
    variants={
        "tt_conv 16x16x16, tt_linear 40 and 30": Variant(plan=tensor_trains((16, 16, 16), (40, 30)), changes={}),
    },
    train=20_000,
    validation=1000,
    test=4000,
    dense=TrainRecipe(epochs=6),
    finetune=FinetuneConfig(steps=600),
)
FULL_TENSORIZATION = replace(
    TENSORIZATION,
    train=ALL,
    validation=ALL,
    test=ALL,
    dense=TrainRecipe(epochs=100, learning_rate=0.1, schedule="step", batch_size=100, weight_decay=0.0),
    finetune=FinetuneConfig(steps=0, epochs=100.0, learning_rate=0.1, schedule="step", batch_size=100, ema=0.9),
    starts=("decompose", "random"),
)
CASES = {
    False: {"linearconv": LINEARCONV, "tensorization": TENSORIZATION},
    True: {"linearconv": FULL_LINEARCONV, "tensorization": FULL_TENSORIZATION},
}


class Laboratory:
    """One case on one device."""

    def __init__(self, case: Case, task: Task, device: torch.device, threads: int) -> None:
        self.bench = Workbench(task, device)
        ways = product(("float32", "bfloat16"), ("contiguous", "channels_last"))
        configs = [replace(case.finetune, threads=threads, precision=p, layout=layout) for p, layout in ways]
        self.finetune = min(configs, key=lambda config: step_seconds(self.bench, config, PROBED))
        self.dense = self.tested(self.bench.dense)

    def row(self, variant: Variant, start: str) -> dict[str, Any]:
        plan, began = variant.plan(self.bench.layers), perf_counter()
        config = replace(self.finetune, **FROM[start], **variant.changes)
        candidate = self.start(plan, start)
        seconds = {"compress": perf_counter() - began}
        oneshot = self.tested(self.trained(candidate, plan, replace(config, steps=0, epochs=0.0)).model)
        began = perf_counter()
        found = self.trained(candidate, plan, config)
        seconds["train"] = perf_counter() - began
        recovered = self.tested(found.model)
        parameters = plan_cost(self.bench.layers, plan, self.bench.dense_cost).parameters
        print(f"{self.dense:.3f} {oneshot:.3f} {recovered:.3f}", file=sys.stderr)
        return {
            "parameters": parameters,
            "compression": self.bench.dense_cost.parameters / parameters,
            "dense": self.dense,
            "oneshot": oneshot,
            "recovered": recovered,
            **judged(self.dense, oneshot, recovered),
            "seconds": seconds,
            "note": found.note,
            "finetune": config.to_json(),
            "plan": plan.to_json(),
        }

    def start(self, plan: Plan, start: str) -> nn.Module:
        """Not trained; each layer that has two forwards runs the faster one."""
        bench = self.bench
        torch.manual_seed(SEED)
        if start == "decompose":
            model = bench.compress(plan)
        else:
            model = from_scratch(compress(bench.dense, plan, layers=bench.layers, init="random"))
        choose_forwards(model, bench.calibration(self.finetune)[0])
        return model

    def trained(self, model: nn.Module, plan: Plan, config: FinetuneConfig) -> Trained:
        spec = TrialSpec(study="benchmark", plan=plan, seed=SEED, finetune=config, measure=MeasureConfig())
        return train(model, spec, self.bench)

    def tested(self, model: nn.Module) -> float:
        task = self.bench.task
        assert task.test is not None
        return evaluate(model, task.test, task.metric, device=self.bench.device).value


def judged(dense: float, oneshot: float, recovered: float) -> dict[str, Any]:
    """How much of the loss came back (None where there was none), and whether that is the aim."""
    share = (recovered - oneshot) / (dense - oneshot) if dense > oneshot else None
    near = dense - recovered <= WITHIN
    return {"recovered_share": share, "reached": near or (share is not None and share >= RECOVERED)}


def sentence(name: str, row: Mapping[str, Any]) -> str:
    start, share = 100 * row["oneshot"], row["recovered_share"]
    if row["finetune"]["init"] == "random":
        story = f"{100 * row['recovered']:.1f} % from scratch"
    elif share is None:
        story = f"{start:.1f} % at one go, {100 * row['recovered']:.1f} % after training: there was no loss"
    else:
        story = (
            f"{start:.1f} % at one go, {100 * row['recovered']:.1f} % after training: {100 * share:.0f} % of the loss "
            f"came back, the aim is {'reached' if row['reached'] else 'missed'}"
        )
    return f"{name}: {row['compression']:.2f} times fewer parameters; {100 * row['dense']:.1f} % dense, {story}"


def run(net: str, case: Case, data: Path) -> dict[str, Any]:
    began = perf_counter()
    task = build_task(model=case.model, data=f"npz:{data}", seed=SEED)
    task = trained(subset(task, train=case.train, validation=case.validation, test=case.test), case.dense, seed=SEED)
    dense_seconds = perf_counter() - began
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    laboratory = Laboratory(case, task, device, torch.get_num_threads())
    rows: dict[str, Any] = {}
    for (name, variant), start in product(case.variants.items(), case.starts):
        print(f"{net}: {name}, {start}", file=sys.stderr)
        rows[f"{name}, {start}"] = laboratory.row(variant, start)
    return {
        "model": case.model,
        "seed": SEED,
        "examples": {name: len(split) for name, split in task.splits.items()},
        "dense_recipe": case.dense.to_json(),
        "dense_seconds": dense_seconds,  # little where it was cached
        "rows": rows,
        "seconds": perf_counter() - began,
        "conclusions": [sentence(name, row) for name, row in rows.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--net", choices=[*CASES[False]], action="append", help="both when absent")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    cases = CASES[options.full]
    for net in options.net or cases:
        where = conditions()
        write(f"recovery_{net}{'_full' if options.full else ''}", where | run(net, cases[net], options.data))


if __name__ == "__main__":
    main()
