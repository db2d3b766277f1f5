"""Every method on one trained net: `python -m benchmarks.methods --data cifar10.npz` writes docs/methods.md.

Each method replaces all layers that it takes (the stem and the classifier stay dense) at one share of their MACs, or of
their parameters where a method is there to save those. No fine-tuning: what is shown is the start that it gives.
"""

import argparse
import importlib
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.cifar import trained_task
from benchmarks.machine import conditions, write
from ranksearch import trial
from ranksearch.compress import compress, plan_cost
from ranksearch.errors import SpaceError
from ranksearch.evaluate import evaluate
from ranksearch.factorize import METHODS, Method
from ranksearch.records import FinetuneConfig, LayerChoice, LayerRecord, MeasureConfig, Plan, TrialSpec
from ranksearch.space import RankRule, SpaceConfig, layer_records
from ranksearch.workbench import Workbench

SHARES = (0.5, 0.25)
PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def options_of(method: Method, bench: Workbench, objective: str) -> dict[str, LayerRecord]:
    """Layer -> its record with all ranks of the method, or no entry where it has none."""
    config = SpaceConfig(
        name=method.name,
        objectives=(objective, "accuracy"),
        methods=(method.name,),
        ranks=RankRule(multiple=4, kept=(0.02, 0.98), per_method=1000),
    )
    return {record.name: record for record in layer_records(config, bench.layers) if record.options}


def plan_at(method: Method, bench: Workbench, share: float) -> tuple[Plan, str] | None:
    """For each layer the rank nearest to the share, and what it is a share of; None where no layer has any."""
    for measure in ("macs", "parameters") if method.is_standard else ("parameters",):
        try:
            records = options_of(method, bench, measure)
        except SpaceError:  # nothing of this measure to choose from
            continue
        return Plan({name: nearest(record, measure, share) for name, record in records.items()}), measure
    return None


def nearest(record: LayerRecord, measure: str, share: float) -> LayerChoice:
    dense = getattr(record.cost, measure)
    return min(record.options[:-1], key=lambda o: abs(getattr(o.cost, measure) / dense - share)).choice


def row(method: Method, bench: Workbench, share: float) -> dict[str, Any] | None:
    print(f"{method.name} at {share}", file=sys.stderr)
    found = plan_at(method, bench, share)
    if found is None:
        return None
    plan, measure = found
    small = compress(bench.dense, plan, cache=bench.factors, layers=bench.layers)
    spec = TrialSpec(
        study="benchmark",
        plan=plan,
        seed=0,
        finetune=FinetuneConfig(steps=0, threads=torch.get_num_threads(), precision="float32", layout="contiguous"),
        measure=MeasureConfig(batch_size=8),
    )
    result = trial.run(spec, bench)
    if result.score is None or result.measurement is None:
        raise SystemExit(f"{method.name}: {result.reason}\n{result.details}")
    torch.set_num_threads(spec.finetune.threads)
    cost = plan_cost(bench.layers, plan, bench.dense_cost)
    ratio = result.measurement.ratio
    return {
        "method": method.name,
        "share": share,
        "of": measure,
        "num_layers": len(plan),
        "parameters": cost.parameters / bench.dense_cost.parameters,
        "macs": cost.macs / bench.dense_cost.macs,
        "ratio": ratio,
        "ratio_low": result.measurement.ratio_low,
        "ratio_high": result.measurement.ratio_high,
        "error": mean(errors(plan, bench)),
        "accuracy_oneshot": evaluate(small, bench.task.validation, bench.task.metric, device=bench.device).value,
        "accuracy_reestimated": result.score.value,
        "plan": {name: str(choice) for name, choice in plan.items()},
    }


def errors(plan: Plan, bench: Workbench) -> list[float]:
    shapes = {layer.name: layer.shape for layer in bench.layers}
    return [
        METHODS[choice.method].error(
            bench.factors.factors(
                METHODS[choice.method], bench.dense.get_submodule(name).weight, shapes[name], choice.ranks
            ),
            choice.ranks,
        )
        for name, choice in plan.items()
    ]


def page(rows: list[dict[str, Any]], dense: dict[str, Any], where: dict[str, Any]) -> str:
    lines = [
        "# The methods",
        "",
        "Written by `python -m benchmarks.methods --data cifar10.npz`; do not edit.",
        "",
        f"One net (ResNet-9-like, {dense['parameters'] / 1e6:.2f} M parameters, {dense['macs'] / 1e6:.0f} M MACs, "
        f"{100 * dense['accuracy']:.1f} % of {dense['num_examples']:,} validation images of CIFAR-10). A method "
        "replaces every layer that it takes but the stem and the classifier, at the rank nearest to the given share of "
        "the layer's MACs (of its parameters, marked *, where a method is there to save those). Parameters, MACs "
        "and latency (batch 8, one thread, 95 % interval) are those of the whole net as a share of the dense one's; "
        "the error is ‖W − W̃‖ / ‖W‖, mean over the layers; accuracy is before any training: as decomposed, and after "
        "BatchNorm's statistics are re-estimated.",
        "",
        f"{where['device']}, {where['cores']} cores, torch {where['versions']['torch']}, seed 0, n = 1 plan a row.",
        "",
    ]
    for share in SHARES:
        lines += [
            f"## At {share:g} of the layers' MACs or parameters",
            "",
            "| method | layers | parameters | MACs | latency | error | accuracy | re-estimated |",
            "|---|---|---|---|---|---|---|---|",
            *(table_row(r) for r in rows if r["share"] == share),
            "",
        ]
    lines += ["## What each does", ""]
    for method in METHODS.values():
        text = importlib.import_module(type(method).__module__).__doc__
        lines += [f"### {method.name}", "", "```text", (type(method).__doc__ or text).strip(), "```", ""]
    return "\n".join(lines)


def table_row(r: dict[str, Any]) -> str:
    star = "" if r["of"] == "macs" else "*"
    cells = [
        f"`{r['method']}`{star}",
        str(r["num_layers"]),
        f"{r['parameters']:.2f}",
        f"{r['macs']:.2f}",
        f"{r['ratio']:.2f} [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]",
        f"{r['error']:.2f}",
        f"{100 * r['accuracy_oneshot']:.1f} %",
        f"{100 * r['accuracy_reestimated']:.1f} %",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    where = conditions()
    bench = Workbench(trained_task(parser.parse_args().data), torch.device("cpu"))
    torch.set_num_threads(where["cores"])
    score = evaluate(bench.dense, bench.task.validation, bench.task.metric, device=bench.device)
    dense = {
        "parameters": bench.dense_cost.parameters,
        "macs": bench.dense_cost.macs,
        "accuracy": score.value,
        "num_examples": score.num_examples,
    }
    rows = [found for share in SHARES for m in METHODS.values() if (found := row(m, bench, share))]
    write("methods", where | {"seed": 0, "dense": dense, "rows": rows})
    PAGE.write_text(page(rows, dense, where), encoding="utf-8")


if __name__ == "__main__":
    main()
